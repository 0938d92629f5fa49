"""Runs a study in a directory, for the first time or again; refuses what does not fit the directory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from parsl_rasda.atomic_files import replace_file
from parsl_rasda.backends.allocation import counted_here, in_this_allocation
from parsl_rasda.diagnostics import listing, shown
from parsl_rasda.errors import Diagnostic, InvalidFileError, RunDirectoryError
from parsl_rasda.orchestration.admission import AdmittedStudy, admit, tune_problems
from parsl_rasda.orchestration.assembly import batching, build_machine
from parsl_rasda.orchestration.progress import ProgressReporter
from parsl_rasda.orchestration.replay import (
    keep_first_method,
    load_run,
    load_run_study,
    replace_sites,
    save_run,
    search_path_of,
)
from parsl_rasda.orchestration.run_directory import RunDirectory, check_folder
from parsl_rasda.scheduling.base import Extensible
from parsl_rasda.study import StudySpec, dump_study, load_site, load_study
from parsl_rasda.types import JSON
from parsl_rasda.workflow.pinned_code import search_path_in
from parsl_rasda.workflow.run import RunResult, WorkflowRun


def run_study(
    admitted: AdmittedStudy, directory: Path, *, search_path: Sequence[Path], progress: ProgressReporter
) -> RunResult:
    """Run a study in a new directory, or again in one that it was run in before.

    There, whatever still stands is not repeated. Code and arguments may have changed: what depends on
    them runs again, searches included; the settings of a search may not.

    Args:
        admitted: What to run, and where.
        directory: Its run directory; created.
        search_path: Folders where the study's functions are, before Python's own path.
        progress: Who reports.

    Raises:
        RunDirectoryError: If the directory holds a search of another study, or is being run.
        StageFailedError: If a stage other than a search fails; what came before stands, `resume`
            goes on from there.
        SiteUnavailableError: If no site can run a stage.
    """
    run = RunDirectory(directory.resolve())
    check_folder(run.path)
    refuse_other_search(run, admitted.study)
    with run.controlled():
        save_run(run, admitted.study, admitted.sites, search_path)
        paths = search_path_in(run, admitted.study, search_path_of(run))
        return WorkflowRun(admitted, run, paths, progress, may_restart=True).run()


def resume_study(
    directory: Path,
    overrides: Sequence[str],
    *,
    progress: ProgressReporter,
    sites: Sequence[str] = (),
    retry_failed: bool = False,
    wait: bool = False,
) -> RunResult:
    """Take a run up where it ended, after any death, and perhaps otherwise than it began.

    Args:
        directory: Its run directory.
        overrides: ``key=value``; what `check_amendment` lets in.
        progress: Who reports.
        sites: Names or files of all sites it is to have from now on; none for those that it has.
        retry_failed: Let the trials that failed start afresh.
        wait: Wait for another controller to end, instead of being refused.

    Raises:
        RunDirectoryError: If the directory is not one of a run, or is being run.
        InvalidFileError: If an override changes what may not change, or makes it smaller, or a site is wrong.
        InvalidSettingError: If a searcher cannot have so many.
        PlacementImpossibleError: If a trial could never have the GPUs it needs.
    """
    run = RunDirectory(directory.resolve())
    study, found = load_run(run) if not sites else (load_run_study(run), tuple(map(load_site, sites)))
    places = [in_this_allocation(site) for site in found]
    wanted = study
    if overrides:
        wanted = load_study(
            run.study_file, overrides, check_targets=False, check_tune=tune_problems, is_copy=True
        )
    check_amendment(study, wanted)
    admitted = admit(wanted, places, counted_here(places), files=sites)
    origin = search_path_of(run)
    if wait:
        run.await_end()
    with run.controlled():
        if wanted != study:
            _keep_first_methods(run, study, wanted)
            replace_file(run.study_file, dump_study(wanted))
        if sites:
            replace_sites(run, admitted.sites)
        paths = search_path_in(run, wanted, origin)
        return WorkflowRun(admitted, run, paths, progress, retry_failed=retry_failed).run()


def _keep_first_methods(run: RunDirectory, study: StudySpec, wanted: StudySpec) -> None:
    for name, stage in study.tune_stages.items():
        if stage.tune.scheduler != wanted.tune_stages[name].tune.scheduler:
            alone = len(study.tune_stages) == 1
            keep_first_method(run if alone else RunDirectory(run.path / name), stage.tune)


_WATCHERS = ("track", "notify")  # keys of a study that decide nothing
_LARGER = ("tune.num_samples", "tune.scheduler.max_t", "tune.scheduler.max_workers")
_FREE = ("tune.budget", "tune.scheduler.growth", "tune.confirm")
_CHANGEABLE = (*_LARGER, *_FREE, *_WATCHERS)


def refuse_other_search(run: RunDirectory, study: StudySpec, *, may_grow: bool = False) -> None:
    """Refuse a directory in which the search of another study has begun.

    Args:
        run: The directory.
        study: What is to be run there.
        may_grow: Of a search in a program: more trials are the same study, other inputs are not.

    Raises:
        RunDirectoryError: If it is not the same.
    """
    if run.study_file.exists() and not run.origin.exists():
        advice = "Choose another directory (--dir); a run would write over it."
        raise RunDirectoryError(str(run.path), "holds a study.yaml that is not of a run", advice)
    if not (any(run.path.glob("journal.jsonl")) or any(run.path.glob("*/journal.jsonl"))):
        return
    differs = [
        ".".join(loc)
        for loc, old, new in _changes(*_documents(load_run_study(run), study))
        if not (_is_more_trials(loc, old, new) if may_grow else _is_free(loc, study))
    ]
    if differs:
        found = f"holds the search of another study, which differs in {listing(differs)}"
        advice = f"Go on with it by `parsl-rasda resume {run.path}`, or choose another directory (--dir)."
        raise RunDirectoryError(str(run.path), found, advice)


def _is_free(loc: Sequence[str], study: StudySpec) -> bool:
    """Whether a setting may change in a run: what other stages do, and inputs, are known by their results."""
    if loc[0] in _WATCHERS:
        return True
    return loc[:1] == ("stages",) and not (loc[1] in study.tune_stages and loc[2:3] in {(), ("tune",)})


def _is_more_trials(loc: Sequence[str], old: Any, new: Any) -> bool:
    is_larger = loc[2:] == ("tune", "num_samples") and new >= old
    return loc[0] in _WATCHERS or is_larger or loc[2:4] == ("tune", "budget")


def check_amendment(study: StudySpec, wanted: StudySpec) -> None:
    """Refuse every change that would undo what was decided: nothing of it may become smaller."""
    mistakes = []
    for loc, old, new in _changes(*_documents(study, wanted)):
        allowed = None if loc[0] in _WATCHERS else _allowed(loc[2:], old, new)
        if allowed is not None:
            key = ".".join(loc[2:] if len(study.tune_stages) == 1 and loc[2:3] == ("tune",) else loc)
            mistakes.append(Diagnostic((key,), shown(new), allowed, "--set"))
    if not mistakes:
        mistakes += _method_problems(study, wanted)
    if mistakes:
        raise InvalidFileError(mistakes)


def _allowed(loc: Sequence[str], old: Any, new: Any) -> str | None:
    """Return what a setting of a stage may become, in words; None if it may be what it is now."""
    key = ".".join(loc).removesuffix(".auto")  # max_t: {auto: N}
    if key.startswith(_FREE):
        return None
    if key not in _LARGER:
        return f"{shown(old)}, as the run has it: only {listing(_CHANGEABLE)} may change"
    if isinstance(old, Mapping) != isinstance(new, Mapping):
        return f"{'{auto: N}' if isinstance(old, Mapping) else 'a number'}, as the run has it"
    if new is None or (old is not None and new >= old):
        return None
    return "no limit, as the run has it" if old is None else f"at least {old}, which the run has"


def _method_problems(study: StudySpec, wanted: StudySpec) -> Iterator[Diagnostic]:
    """Yield methods that the search of a stage cannot go on by."""
    for name, stage in wanted.tune_stages.items():
        before, after = study.tune_stages[name].tune, stage.tune
        if before.scheduler == after.scheduler:
            continue
        keys = ("max_t", "max_workers")
        key = next((k for k in keys if getattr(before.scheduler, k) != getattr(after.scheduler, k)), None)
        if key is None:
            continue  # growth alone
        loc, found = (f"tune.scheduler.{key}",), shown(getattr(after.scheduler, key))
        old = shown(getattr(before.scheduler, key))
        if not isinstance(build_machine(before).scheduler, Extensible):
            yield Diagnostic(
                loc, found, f"{old}: `kind: {before.scheduler.kind}` cannot go on from it", "--set"
            )
        elif batching(before).constant_replicas != batching(after).constant_replicas:
            allowed = f"{old}: `batch: {before.scheduler.batch}` has cut the batch into as many parts"
            yield Diagnostic(loc, found, allowed, "--set")


def _documents(before: StudySpec, after: StudySpec) -> tuple[JSON, JSON]:
    one, other = (study.model_dump(mode="json", by_alias=True) for study in (before, after))
    return one, other


def _changes(
    before: JSON, after: JSON, loc: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """Yield (place, value, other value) wherever two documents differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in {**before, **after}:
            yield from _changes(before.get(key), after.get(key), (*loc, key))
    elif before != after and repr(before) != repr(after):  # NaN does not equal itself
        yield loc, before, after
