"""From `StartJob` to the `JobSpec` that ranks understand, and back from what a dead job left on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from parsl_rasda.orchestration.events import EpochReported, Event, JobEnded, StartJob
from parsl_rasda.orchestration.run_directory import RunDirectory
from parsl_rasda.orchestration.trial_record import TrialRecord
from parsl_rasda.protocol import (
    RENDEZVOUS_S,
    EpochReport,
    JobResult,
    JobSpec,
    checkpoint_fields,
    read_epochs,
    read_report,
)
from parsl_rasda.study import TuneSpec
from parsl_rasda.study_code.code import CodeWatch
from parsl_rasda.types import JSON, JobId, JudgedBy, SiteName, TrialId


@dataclass(frozen=True, slots=True)
class SiteFacts:
    """What a job must know of the site it runs on.

    Attributes:
        work_dir: Folder for attempts there; None is the run directory.
        inputs: Inputs that differ on this site, for example where its copy of the data lies.
        paths: ``(input, path)`` pairs that it must have, for no trial can do without.
        rendezvous_s: As in `JobSpec`.
    """

    accelerator: str
    work_dir: Path | None = None
    inputs: Mapping[str, JSON] = field(default_factory=dict)
    paths: tuple[tuple[str, str], ...] = ()
    rendezvous_s: float = RENDEZVOUS_S


@dataclass(frozen=True, slots=True)
class JobSpecBuilder:
    """Builds the specs of the jobs of one `tune` stage.

    Attributes:
        inputs: Results of the stages it needs, and constants, by argument name.
        search_path: Folders of the study's own modules.
        obsolete: Last attempts of the trials whose checkpoints a job on a site is to remove there.
    """

    study: str
    seed: int
    tune: TuneSpec
    directory: RunDirectory
    sites: Mapping[SiteName, SiteFacts]
    inputs: Mapping[str, JSON] = field(default_factory=dict)
    search_path: tuple[str, ...] = ()
    obsolete: Callable[[SiteName], tuple[JobId, ...]] = lambda _: ()
    code: CodeWatch = field(init=False)

    def __post_init__(self) -> None:
        """Watch the code of the training function."""
        paths = [Path(path) for path in self.search_path]
        object.__setattr__(self, "code", CodeWatch(self.tune.training.python, paths))

    def build(
        self, start: StartJob, *, interactive: bool, deadline: float | None, trial: TrialRecord | None = None
    ) -> JobSpec:
        """Return the spec of one attempt.

        Args:
            start: What was decided.
            interactive: Whether it has a control channel.
            deadline: When it must be gone [s], or None.
            trial: Whose it is, if that has checkpoints that must not be removed.
        """
        previous = trial.previous if trial else None
        keep = self.tune.training.keep_checkpoints
        site = self.sites[start.placement.site]
        return JobSpec(
            study=self.study,
            trial=start.job.trial,
            attempt=start.job.attempt,
            config=dict(start.config),
            directory=str(self.attempt(start.job, start.placement.site)),
            seed=trial_seed(self.seed, start.job.trial),
            metric=self.tune.metric,
            mode=self.tune.mode.value,
            epoch=start.epoch,
            until=start.until,
            max_epochs=int(self.tune.scheduler.max_t),
            schedule=start.schedule,
            world_size=start.placement.world_size,
            python=self.tune.training.python,
            command=self.tune.training.command,
            inputs={**self.inputs, **site.inputs},
            search_path=self.search_path,
            paths=site.paths,
            training=self.tune.training.resolve(start.config),
            resume_from=start.resume_from,
            falls_back_to=previous.path if previous else None,
            keeps_rungs=keep.rungs,
            keeps_best=self.tune.best is JudgedBy.EPOCH,
            best_metric=trial.best.metric if trial and trial.best else None,
            kept=trial.kept if trial else (),
            obsolete=self.obsolete(start.placement.site),
            share_at=self._shared(start.job),
            slots=start.placement.slots,
            accelerator=site.accelerator,
            interactive=interactive and self.tune.training.command is None,
            deadline=deadline,
            rendezvous_s=site.rendezvous_s,
        )

    def attempt(self, job: JobId, site: SiteName) -> Path:
        """Return the directory of an attempt on a site."""
        base = self.sites[site].work_dir  # which other runs use, too
        own = base / f"{self.study}-{self.directory.mark}" if base is not None else None
        return self.directory.attempt(job, own).resolve()

    def _shared(self, job: JobId) -> str | None:
        """Return the folder of an attempt that all sites reach, if checkpoints are shared."""
        trial = self.shared_trial(job.trial)
        return None if trial is None else f"{trial}/attempt-{job.attempt}"

    def shared_trial(self, trial: TrialId) -> str | None:
        """Return the folder of a trial that all sites reach, if checkpoints are shared."""
        base = self.tune.checkpoints
        return None if base is None else f"{base.rstrip('/')}/{self.study}-{self.directory.mark}/{trial}"

    def events_on_disk(self, jobs: Iterable[tuple[JobId, SiteName, int]], at: float) -> Iterator[Event]:
        """Yield what jobs left on disk while no controller was listening, oldest first per job.

        Args:
            jobs: Each with its site and the epochs that its trial is known to have finished.
            at: Present time [s], for those that did not say when they ended.
        """
        for job, site, known in jobs:
            folder = self.attempt(job, site)
            yield from (epoch_event(r, at) for r in read_epochs(folder, job) if r.epoch > known)
            report = read_report(folder, job)
            if report is not None:
                yield end_event(report, at)


def trial_seed(seed: int, trial: TrialId) -> int:
    """Return a 31-bit seed that depends on the study's seed and the trial alone."""
    digest = hashlib.blake2b(f"{seed}/{trial}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1


def epoch_event(report: EpochReport, now: float) -> EpochReported:
    """Return the event of an epoch; it happened ``now`` [s] if the report does not say when."""
    return EpochReported(
        report.at or now,
        JobId(report.trial, report.attempt),
        report.epoch,
        report.metrics,
        report.seconds,
        report.checkpoint,
        report.slots,
        report.samples,
        report.noise,
        report.steps,
        report.includes_startup,
        report.exact,
        report.devices,
    )


def end_event(report: JobResult, now: float) -> JobEnded:
    """Return the event of an attempt's end; it happened ``now`` [s] if the report does not say when."""
    saved = checkpoint_fields(report.checkpoint, report.epoch)
    return JobEnded(
        report.at or now,
        JobId(report.trial, report.attempt),
        report.outcome,
        report.cause,
        unreadable=report.unreadable,
        blame=report.blame,
        phase=report.phase,
        finished=report.finished,
        energy_j=report.energy_j,
        **saved,
    )
