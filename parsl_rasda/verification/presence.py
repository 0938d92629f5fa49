"""What must be in a run directory: what the ranks of each attempt wrote, and the checkpoints that stay.

Files that are missing are explained where an attempt ran in a folder of its site, or no controller
heard of them; else they make a difference.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from parsl_rasda.checkpoint_files import HEADER, number_of
from parsl_rasda.errors import CheckpointError
from parsl_rasda.orchestration.events import EpochReported, StartJob
from parsl_rasda.orchestration.journal import Record
from parsl_rasda.orchestration.machine import Machine
from parsl_rasda.orchestration.retention import released
from parsl_rasda.orchestration.run_directory import RunDirectory
from parsl_rasda.protocol import read_epochs
from parsl_rasda.runtime.checkpoints.seal import check_files
from parsl_rasda.study import SiteSpec
from parsl_rasda.types import JobId, SiteName, TrialId, TrialState
from parsl_rasda.verification.decisions import Count, same_bits, same_metrics


@dataclass(frozen=True, slots=True)
class Places:
    """Where the files of attempts are.

    Attributes:
        started: The site of every attempt that the journal knows.
        is_run: Somebody runs the study now, so files may be newer than the journal that was read.
    """

    run: RunDirectory
    sites: Mapping[SiteName, SiteSpec]
    started: Mapping[JobId, SiteName]
    is_run: bool

    @classmethod
    def of(
        cls, run: RunDirectory, sites: Mapping[SiteName, SiteSpec], records: Iterable[Record], *, is_run: bool
    ) -> Places:
        """Return them for a journal."""
        starts = (i for r in records for i in r.instructions if isinstance(i, StartJob))
        return cls(run, sites, {start.job: start.placement.site for start in starts}, is_run)

    def are_elsewhere(self, job: JobId) -> bool:
        """Whether the files of an attempt may be in a folder of its site."""
        name = self.started.get(job)
        site = self.sites.get(name) if name is not None else None
        return site is None or site.work_dir is not None

    def attempts(self) -> Iterator[JobId]:
        """Yield the attempts that have a folder here."""
        for folder in sorted(self.run.path.glob("trials/*/attempt-*")):
            number = number_of(folder.name)
            if number is not None:
                yield JobId(TrialId(folder.parent.name), number)


def checkpoint_here(run: RunDirectory, path: str) -> Path | None:
    """Return where a checkpoint of the journal is now, or None; the run may have been moved."""
    found = (place for place in (Path(path), _own(run, path)) if (place / HEADER).is_file())
    return next(found, None)


def _own(run: RunDirectory, path: str) -> Path:
    """Return where a checkpoint of the journal is if its attempt ran here."""
    return run.path.joinpath("trials", *Path(path).parts[-3:])


def check_reports(records: Iterable[Record], places: Places) -> Count:
    """Compare what the journal says of each epoch with what its ranks have written, one by one."""
    written = {job: _written(job, places) for job in {*places.attempts(), *places.started}}
    said: set[tuple[JobId, int]] = set()
    total = same = 0
    difference = unknown = ""
    for event in (r.event for r in records if isinstance(r.event, EpochReported)):
        total += 1
        said.add((event.job, event.epoch))
        epochs = written.get(event.job, {})
        if not epochs and places.are_elsewhere(event.job):
            unknown = "directories of attempts are not here: they ran in a folder of their site"
        elif same_metrics(event.metrics, _but_test(epochs.get(event.epoch, {}), event)):
            same += 1
        else:
            ranks = dict(epochs.get(event.epoch, {})) or ("nothing" if epochs else "nothing that is here")
            where = f"trial {event.job.trial}, attempt {event.job.attempt}, epoch {event.epoch}"
            difference = (
                difference or f"{where}: the journal has {dict(event.metrics)}, the ranks wrote {ranks}"
            )
    lacking = [
        (job, epoch) for job, epochs in written.items() for epoch in epochs if (job, epoch) not in said
    ]
    return Count(total, same, difference, unknown) + (
        Count(0, 0) if places.is_run else _lacking(lacking, places)
    )


def _written(job: JobId, places: Places) -> dict[int, Mapping[str, float]]:
    return {report.epoch: report.metrics for report in read_epochs(places.run.attempt(job), job)}


def _but_test(ranks: Mapping[str, float], event: EpochReported) -> Mapping[str, float]:
    """Return what ranks wrote without the test metric, which the journal keeps apart, if it is the same."""
    if event.test is None:
        return ranks
    return {k: v for k, v in ranks.items() if k in event.metrics or not same_bits(v, event.test)}


def _lacking(epochs: list[tuple[JobId, int]], places: Places) -> Count:
    """Count epochs that the journal lacks: no attempt begins before the journal has it."""
    if not epochs:
        return Count(0, 0)
    unheard = sorted({job for job, _ in epochs if job not in places.started})
    if unheard:
        words = f"trial {unheard[0].trial}, attempt {unheard[0].attempt}: ranks trained, the journal lacks it"
        return Count(len(epochs), 0, words)
    words = f"{len(epochs)} that ranks wrote are not in the journal: cut off, or no controller heard of them"
    return Count(len(epochs), 0, unknown=words)


def check_checkpoints(models: Iterable[str], places: Places) -> Count:
    """Read every checkpoint, and look for those that must be there, as `kept_models` returns them."""
    found = {p for p in places.run.path.glob("trials/*/attempt-*/epoch-*") if p.is_dir() and not p.suffix}
    same, differences, unknown = 0, list[str](), ""
    for path in sorted(found):
        try:
            if (path / HEADER).is_file():
                check_files(path)
                same += 1
            else:
                unknown = f"{path} has no {HEADER}: it is damaged, or was half removed"
        except CheckpointError as error:
            differences.append(str(error))
    for model in models:
        if checkpoint_here(places.run, model) is not None:
            continue
        own = _own(places.run, model)
        found.add(own)
        job = JobId(TrialId(own.parts[-3]), number_of(own.parts[-2]) or 0)
        if places.is_run or places.are_elsewhere(job):
            unknown = f"{model} is not here"
        else:
            differences.append(f"{own} is gone, the model of trial {job.trial}")
    return Count(len(found), same, next(iter(differences), ""), unknown)


def kept_models(machine: Machine) -> Iterator[str]:
    """Yield the checkpoints of trials that have ended and keep theirs."""
    gone = released(machine)
    for trial in machine.trials.values():
        model = trial.result_checkpoint
        is_kept = trial.state in (TrialState.STOPPED, TrialState.COMPLETED) and trial.id not in gone
        if is_kept and trial.job is None and model is not None:
            yield model.path
