"""Runs a study in a directory, for the first time or again; refuses what does not fit the directory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from parsl_rasda.atomic_files import replace_file
from parsl_rasda.backends.allocation import counted_here, in_this_allocation
from parsl_rasda.diagnostics import listing, shown
from parsl_rasda.errors import Diagnostic, InvalidFileError, RunDirectoryError
from parsl_rasda.orchestration.admission import AdmittedStudy, admit, tune_problems
from parsl_rasda.orchestration.progress import ProgressReporter
from parsl_rasda.orchestration.replay import load_run, load_run_study, save_run, search_path_of
from parsl_rasda.orchestration.run_directory import RunDirectory, check_folder
from parsl_rasda.study import StudySpec, dump_study, load_study
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
    retry_failed: bool = False,
    wait: bool = False,
) -> RunResult:
    """Take a run up where it ended, after any death.

    Args:
        directory: Its run directory.
        overrides: ``key=value``; only the number of trials may change.
        progress: Who reports.
        retry_failed: Let the trials that failed start afresh.
        wait: Wait for another controller to end, instead of being refused.

    Raises:
        RunDirectoryError: If the directory is not one of a run, or is being run.
        InvalidFileError: If an override changes more than the number of trials, or makes it smaller.
        InvalidSettingError: If a searcher cannot have so many.
        PlacementImpossibleError: If a trial could never have the GPUs it needs.
    """
    run = RunDirectory(directory.resolve())
    study, found = load_run(run)
    sites = [in_this_allocation(site) for site in found]
    wanted = study
    if overrides:
        wanted = load_study(
            run.study_file, overrides, check_targets=False, check_tune=tune_problems, is_copy=True
        )
    check_amendment(study, wanted)
    admitted = admit(wanted, sites, counted_here(sites))
    origin = search_path_of(run)
    if wait:
        run.await_end()
    with run.controlled():
        if wanted != study:
            replace_file(run.study_file, dump_study(wanted))
        paths = search_path_in(run, wanted, origin)
        return WorkflowRun(admitted, run, paths, progress, retry_failed=retry_failed).run()


_WATCHERS = ("track", "notify")  # keys of a study that decide nothing


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
    """Refuse every change but more trials and other watchers: what was decided must stay decided."""
    mistakes = []
    for loc, old, new in _changes(*_documents(study, wanted)):
        if loc[0] in _WATCHERS or loc[2:4] == ("tune", "budget"):
            continue
        key = ".".join(loc[2:] if len(study.tune_stages) == 1 and loc[2:3] == ("tune",) else loc)
        if loc[2:] != ("tune", "num_samples"):
            allowed = f"{shown(old)}, as the run has it: only tune.num_samples, tune.budget, track and notify may change"
            mistakes.append(Diagnostic((key,), shown(new), allowed, "--set"))
        elif new < old:
            least = f"at least {old}, the number the run has"
            mistakes.append(Diagnostic((key,), shown(new), least, "--set"))
    if mistakes:
        raise InvalidFileError(mistakes)


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
