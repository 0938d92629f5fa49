"""What came of verifying a run: as JSON, and in words that promise no more than was looked at."""

from __future__ import annotations

import functools
import socket
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from parsl_rasda.agent.node_probe import gpu_count
from parsl_rasda.errors import RunDirectoryError
from parsl_rasda.launch.base import LaunchSettings, rank_environment
from parsl_rasda.orchestration.job_specs import trial_seed
from parsl_rasda.orchestration.machine import Machine
from parsl_rasda.orchestration.replay import load_run_study, origin_of
from parsl_rasda.orchestration.run_directory import RunDirectory
from parsl_rasda.orchestration.run_names import SearchRecords
from parsl_rasda.orchestration.stage_records import read_record
from parsl_rasda.orchestration.trial_record import best_trial
from parsl_rasda.protocol import JobSpec, ProtocolError
from parsl_rasda.study import SiteSpec, StudySpec, TuneSpec, load_site
from parsl_rasda.study_code.code import OwnCode, changed_modules
from parsl_rasda.types import JobId, SiteName, StageState, StudyState
from parsl_rasda.verification.decisions import Count, Decisions, check_decisions
from parsl_rasda.verification.presence import (
    Places,
    check_checkpoints,
    check_reports,
    checkpoint_here,
    kept_models,
)
from parsl_rasda.verification.retraining import Retrained, order_of, retrain
from parsl_rasda.verification.stretches import (
    Stretch,
    other_width,
    parted,
    sample,
    stretches_of,
    with_origins,
)

GONE = "begin where nothing leads to any more (a checkpoint in mid-epoch)"
NO_ORDER = "have no order.json here: it is gone, or their attempts ran in a folder of their site"
_SLOT_KINDS = {"cpu": "core", "none": "slot"}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of verifying one search.

    Attributes:
        reports: Epochs that are as the ranks wrote them.
        checkpoints: Those that are there and whole.
        stretches: Those that were trained again.
        eligible: How many could have been.
        left_out: How many could not, by the reason.
        slot_kind: What a slot is called.
    """

    stage: str
    decisions: Count
    configurations: Count
    reports: Count
    checkpoints: Count
    stretches: tuple[Retrained, ...]
    eligible: int
    left_out: Mapping[str, int]
    slot_kind: str

    @property
    def differences(self) -> list[str]:
        """What is not as it was recorded, and must be; a sentence each."""
        found = [count.difference for count in self._counts if count.difference]
        return found + [
            f"{r.stretch}: {r.difference}" for r in self.stretches if r.difference and not r.doubt
        ]

    @property
    def is_whole(self) -> bool:
        """Whether everything could be looked at and is the same; of stretches, all of the sample."""
        is_same = all(count.same == count.total for count in self._counts)
        return is_same and not self.differences and all(r.is_same for r in self.stretches)

    @property
    def _counts(self) -> tuple[Count, ...]:
        return self.decisions, self.configurations, self.reports, self.checkpoints

    def document(self) -> dict[str, Any]:
        """Return it as JSON."""
        counts = {
            "decisions": self.decisions,
            "configurations": self.configurations,
            "reports": self.reports,
            "checkpoints": self.checkpoints,
        }
        return {
            **{
                name: {"total": c.total, "same": c.same, "difference": c.difference, "unknown": c.unknown}
                for name, c in counts.items()
            },
            "stretches": {
                "sampled": len(self.stretches),
                "same": sum(r.is_same for r in self.stretches),
                "eligible": self.eligible,
                "left_out": dict(self.left_out),
                "list": [_retrained_document(r) for r in self.stretches],
            },
            "differences": self.differences,
            "whole": self.is_whole,
        }


def _retrained_document(found: Retrained) -> dict[str, Any]:
    stretch = found.stretch
    return {
        "trial": stretch.job.trial,
        "attempt": stretch.job.attempt,
        "begin": stretch.begin,
        "until": stretch.until,
        "epochs_before": sum(len(part.epochs) for part in stretch.before),
        "width": stretch.width,
        "verified_at_width": found.width,
        "same": found.is_same,
        "weights": found.has_weights,
        "difference": found.difference,
        "doubt": found.doubt,
        "other_metrics": found.note,
    }


def verify_run(
    directory: Path, most: int, seed: int, tell: Callable[[str], None] = lambda _: None
) -> dict[str, Verdict]:
    """Verify each search of a run; return what came of it, by stage.

    Args:
        directory: The run directory.
        most: How many stretches of each search are trained again.
        seed: Of their choice.
        tell: Called with what is done now, in words.

    Raises:
        RunDirectoryError: If it is not a run's, or no search of it has begun.
        InvalidFileError: If a variable that a site file names is not set here.
    """
    run = RunDirectory(directory)
    study = load_run_study(run)
    sites = {SiteName(s.name): s for s in map(_site, sorted(run.sites.glob("*.yaml")))}
    searches, is_run = study.tune_stages, run.controller is not None
    found = {}
    for name, stage in searches.items():
        own = run if len(searches) == 1 else RunDirectory(directory / name)
        if own.journal.exists():
            stage_state = read_record(run.stages / name).state
            verification = _Verification(name, own, study, stage.tune, sites, tell, is_run, stage_state)
            found[name] = verification.verdict(most, seed)
    if not found:
        raise RunDirectoryError(str(directory), "no search of it has begun", "Run or resume it first.")
    return found


def _site(path: Path) -> SiteSpec:
    return load_site(path, is_copy=True)


@dataclass(frozen=True, slots=True)
class _Verification:
    stage: str
    run: RunDirectory
    study: StudySpec
    tune: TuneSpec
    sites: Mapping[SiteName, SiteSpec]
    tell: Callable[[str], None]
    is_run: bool
    stage_state: StageState

    def verdict(self, most: int, seed: int) -> Verdict:
        self.tell("making every decision again")
        optuna = origin_of(self.run.path).get("versions", {}).get("optuna")
        made = check_decisions(self.run, self.tune, self.study.seed, optuna)
        places = Places.of(self.run, self.sites, made.records, is_run=self.is_run)
        self.tell("reading every checkpoint")
        is_at_end = made.decisions.same == made.decisions.total  # else other trials look like the best ones
        checkpoints = check_checkpoints(kept_models(made.machine) if is_at_end else (), places)
        kinds = {_SLOT_KINDS.get(site.accelerator, "GPU") for site in self.sites.values()}
        left_out: Counter[str] = Counter()
        eligible = [*self._eligible(made, left_out)]
        chosen = sample(eligible, most, seed, self._best(made.machine), self._is_here)
        return Verdict(
            self.stage,
            self._to_its_end(made),
            made.configurations,
            check_reports(made.records, places),
            checkpoints,
            tuple(self._trained_again(chosen)),
            len(eligible),
            left_out,
            kinds.pop() if len(kinds) == 1 else "slot",
        )

    def _to_its_end(self, made: Decisions) -> Count:
        """Return what came of the decisions; a search that is done has one by which it ended."""
        count, state = made.decisions, made.machine.state
        is_cut = self.stage_state is StageState.DONE and state is not StudyState.DONE
        if not is_cut or count.same < count.total or count.difference:
            return count
        words = f"the stage is done, but the journal ends where it was {state.value}: its end is gone"
        return replace(count, difference=words)

    def _eligible(self, made: Decisions, left_out: Counter[str]) -> Iterator[Stretch]:
        parts = [
            part
            for whole in stretches_of([*SearchRecords(made.records)])
            for part in parted(whole, self._is_here)
        ]
        code = functools.cache(_code)
        for stretch in with_origins(parts, self._is_here):
            if stretch is None:
                left_out[GONE] += 1
                continue
            all_of_it = (*stretch.before, stretch)
            orders = [self._order(part.job) for part in all_of_it]
            if None in orders:
                left_out[NO_ORDER] += 1
                continue
            gone = {part.site for part in all_of_it} - set(self.sites)
            if gone:
                left_out[f"trained on sites that the study no longer has: {', '.join(sorted(gone))}"] += 1
                continue
            changed = [
                name
                for part, order in zip(all_of_it, orders, strict=True)
                if order is not None and part.code
                for name in changed_modules(part.code, code(order.python, order.search_path))
            ]
            if changed:
                left_out[f"ran other code: changed since, {', '.join(sorted({*changed}))}"] += 1
            else:
                yield stretch

    def _trained_again(self, chosen: Sequence[Stretch]) -> Iterator[Retrained]:
        for number, stretch in enumerate(chosen, 1):
            first = f", after {counted_epochs(stretch)} before it" if stretch.before else ""
            self.tell(f"training {number} of {len(chosen)} stretches again: {stretch}{first}")
            with tempfile.TemporaryDirectory(prefix="verify-") as folder:
                chain = (*stretch.before, stretch)
                origin = self._here(chain[0].origin) if chain[0].origin else None
                found: list[Retrained] = []
                for i, part in enumerate(chain):
                    found.append(self._part_again(part, origin, Path(folder) / str(i)))
                    origin = found[-1].checkpoint
                    if found[-1].difference or origin is None:
                        break
                yield replace(found[-1], stretch=replace(found[-1].stretch, before=stretch.before))

    def _part_again(self, part: Stretch, origin: Path | None, folder: Path) -> Retrained:
        site = self.sites[part.site]
        slots = gpu_count(site.accelerator) if site.accelerator != "none" else part.replicas
        settings = LaunchSettings(threads_per_rank=site.threads_per_rank, environment=site.rank_environment)
        base = self._order(part.job)
        assert base is not None  # noqa: S101 - it was looked at before
        base = _confirmed(base, part, self.study.seed, self.tune)
        place = folder / "trials" / part.job.trial / f"attempt-{part.job.attempt}"
        order = order_of(part, base, other_width(part, max(1, slots)), origin, place)
        end = self._here(part.end) if part.end else None
        return retrain(part, order, rank_environment(settings), end)

    def _order(self, job: JobId) -> JobSpec | None:
        try:
            return JobSpec.load(self.run.attempt(job) / "order.json")
        except (OSError, ValueError, KeyError, TypeError, ProtocolError):
            return None

    def _here(self, path: str) -> Path | None:
        return checkpoint_here(self.run, path)

    def _is_here(self, path: str) -> bool:
        return self._here(path) is not None

    def _best(self, machine: Machine) -> str | None:
        best = best_trial(machine.trials, machine.settings.mode)
        checkpoint = best.result_checkpoint if best is not None else None
        return checkpoint.path if checkpoint is not None else None


def counted_epochs(stretch: Stretch) -> str:
    """Return how many epochs must be trained before a stretch, in words."""
    number = sum(len(part.epochs) for part in stretch.before)
    return f"{number} epoch{'s' * (number > 1)}"


def _confirmed(order: JobSpec, part: Stretch, seed: int, tune: TuneSpec) -> JobSpec:
    """Return an order as the study has it, whatever its file says of what the study decides."""
    training, own = tune.training.resolve(part.config), trial_seed(seed, part.job.trial)
    return replace(order, seed=own, training=training, python=tune.training.python, metric=tune.metric)


def _code(python: str | None, search_path: tuple[str, ...]) -> Mapping[str, str]:
    return {} if python is None else OwnCode.of(python, [Path(path) for path in search_path]).digests


def headline(verdict: Verdict) -> str:
    """Return what was verified, in one line: decisions, and stretches at which width."""
    made = verdict.decisions
    same = [r for r in verdict.stretches if r.is_same]
    words = f"{made.same} of {made.total} decisions"
    if not verdict.stretches:
        return f"{words}; no stretch was trained again"
    words += f"; {len(same)} of {len(verdict.stretches)} stretches, same bits"
    moved = [r for r in same if r.width != r.stretch.width]
    if not moved:
        return words + (" at the same width" if same else "")
    here = _counts({r.width for r in moved}, verdict.slot_kind)
    there = _counts({r.stretch.width for r in moved})
    stayed = len(same) - len(moved)
    return f"{words} on {here} as on {there}" + (f" ({stayed} at the same width)" if stayed else "")


def _counts(widths: set[int], kind: str = "") -> str:
    ranked = [str(w) for w in sorted(widths)]
    text = " and ".join(filter(None, [", ".join(ranked[:-1]), ranked[-1]]))
    return f"{text} {kind}{'s' if ranked != ['1'] else ''}" if kind else text


def lines_of(verdict: Verdict) -> Iterator[tuple[str, str]]:
    """Yield name and text of each line about a search."""
    for name, count, words in (
        ("decisions", verdict.decisions, "as they are made again from the journal"),
        ("configurations", verdict.configurations, "as the searcher proposes them again"),
        ("reports", verdict.reports, "as the ranks wrote them"),
        ("checkpoints", verdict.checkpoints, "whole"),
    ):
        yield name, f"{count.same} of {count.total} {words}" if count.total else "none to compare"
        if count.unknown:
            yield "", count.unknown
    total = len(verdict.stretches)
    yield (
        "stretches",
        f"{total} of the {verdict.eligible} that can be trained again, host {socket.gethostname()}",
    )
    for found in verdict.stretches:
        yield "", _words_of(found, verdict.slot_kind)
    for reason, number in verdict.left_out.items():
        yield "", f"{number} more {reason}"


def _words_of(found: Retrained, kind: str) -> str:
    stretch = found.stretch
    here = f"{found.width} {kind}{'s' * (found.width > 1)}"
    where = f"on {here} as on {stretch.width}" if found.width != stretch.width else f"on {here} again"
    what = "metrics and weights" if found.has_weights else "metrics"
    where += f", after {counted_epochs(stretch)} before it" if stretch.before else ""
    words = f"{stretch}: same {what} {where}" if found.is_same else f"{stretch}, {where}: {found.difference}"
    if not found.is_same and found.doubt:
        words += f"; that may be, since it is not exact ({found.doubt})"
    return words + (f"; {found.note} differ, by which nobody judges" if found.note else "")
