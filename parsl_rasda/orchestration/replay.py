"""A run as its journal records it: for `status`, `report`, `plan --from` and `resume`.

A replay feeds the events to a fresh machine and compares what it decides with what was recorded. What another
version decided otherwise stands: see `follower`.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from parsl_rasda.atomic_files import create_file, replace_file
from parsl_rasda.errors import OtherDecisionError, RunDirectoryError
from parsl_rasda.orchestration.assembly import build_machine, build_study_searcher
from parsl_rasda.orchestration.curves import Curves, curves_of
from parsl_rasda.orchestration.driver import replay
from parsl_rasda.orchestration.journal import VERSION, Record, Records, read, version_of
from parsl_rasda.orchestration.machine import Machine
from parsl_rasda.orchestration.run_directory import RunDirectory
from parsl_rasda.orchestration.run_names import SearchRecords
from parsl_rasda.orchestration.summary import summarise
from parsl_rasda.orchestration.usage import Usage
from parsl_rasda.search.base import Searcher
from parsl_rasda.study import (
    SchedulerSpec,
    SiteSpec,
    StudySpec,
    TuneSpec,
    dump_site,
    dump_study,
    load_site,
    load_study,
)
from parsl_rasda.types import JSON, Method, TrialId


@dataclass(frozen=True, slots=True)
class ReplayedSearch:
    """One `tune` stage as its journal records it.

    Attributes:
        records: Every event and what followed from it, in order; see `SearchRecords`.
        version: Of the product that wrote the last of them; empty if it did not say.
        followed: So many versions decided otherwise than this one; their records are taken for decided.
        difference: The first decision that differs, in a sentence, or empty.
        curves: All that its trials have reported, where readers want that.
        begun: What the stage declared when its journal began.
    """

    study: str
    tune: TuneSpec
    machine: Machine
    searcher: Searcher
    usage: Usage
    records: Collection[Record]
    version: str = VERSION
    followed: int = 0
    difference: str = ""
    curves: Curves | None = None
    begun: TuneSpec | None = None

    def fresh_machine(self) -> Machine:
        """Return a machine that its journal can be replayed with."""
        return build_machine(self.begun or self.tune)

    def summary(self, now: float | None = None) -> dict[str, Any]:
        """Return the JSON document of `status`, with `curves` if they are known."""
        found = summarise(self.study, self.machine, self.usage, now)
        if self.curves is not None:
            for trial in found["trial_list"]:
                trial.update(self.curves.document(trial["trial"]))
            if found["best"] is not None:
                found["best"] |= self.curves.document(found["best"]["trial"], at=found["best"]["epoch"])
        return found

    def with_curves(self) -> ReplayedSearch:
        """Return the same with all that its trials have reported, which takes another look at the journal."""
        return replace(self, curves=curves_of(self.records))


class NoSearcher:
    """Stands in where no other configuration is needed."""

    def propose(self, trial: TrialId) -> None:
        """Propose nothing."""

    def restore(self, trial: TrialId, config: Mapping[str, JSON]) -> None:
        """Learn nothing."""

    def observe(self, trial: TrialId, epoch: int, metric: float) -> None:
        """Learn nothing."""

    def conclude(self, trial: TrialId, metric: float | None) -> None:
        """Learn nothing."""


def save_run(
    directory: RunDirectory, study: StudySpec, sites: Sequence[SiteSpec], search_path: Sequence[Path] = ()
) -> None:
    """Write down what a run is started with: enough to take it up on another login node.

    Args:
        directory: The run directory.
        study: What is run.
        sites: Where.
        search_path: Folders where the study's functions are, before Python's own path.
    """
    _save_sites(directory, sites)
    paths = [str(path.resolve()) for path in search_path]
    replace_file(directory.origin, json.dumps({"search_path": paths, "versions": versions_here()}))
    replace_file(directory.study_file, dump_study(study))


def replace_sites(directory: RunDirectory, sites: Sequence[SiteSpec]) -> None:
    """Let a run go on with other sites: they are written down, those of before are taken away."""
    _save_sites(directory, sites)
    names = {site.name for site in sites}
    for file in [f for f in directory.sites.glob("*.yaml") if f.stem not in names]:
        file.unlink()


def _save_sites(directory: RunDirectory, sites: Sequence[SiteSpec]) -> None:
    directory.sites.mkdir(parents=True, exist_ok=True)
    for site in sites:
        replace_file(directory.sites / f"{site.name}.yaml", dump_site(site))


def versions_here() -> dict[str, str]:
    """Return the versions of what computes a study, as far as it is installed here."""
    found = {"python": platform.python_version()}
    for name in ("parsl_rasda", "parsl", "torch", "optuna", "numpy"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def origin_of(directory: Path) -> Mapping[str, Any]:
    """Return what a run has noted of where it came from; nothing if it cannot be read."""
    try:
        found = json.loads(RunDirectory(directory).origin.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def search_path_of(directory: RunDirectory) -> list[str]:
    """Return the folders where the functions of a run's study are."""
    try:
        paths: list[str] = json.loads(directory.origin.read_text(encoding="utf-8"))["search_path"]
    except (OSError, ValueError, KeyError) as error:
        found = f"origin.json cannot be read ({error})"
        raise RunDirectoryError(str(directory.path), found, "Start a new run from the study file.") from error
    return paths


def load_run(directory: RunDirectory) -> tuple[StudySpec, tuple[SiteSpec, ...]]:
    """Return what a run was started with.

    Raises:
        RunDirectoryError: If the directory is not one of a run.
        InvalidFileError: If a variable of a site is not set: its value was not kept.
    """
    study = load_run_study(directory)
    return study, tuple(load_site(path, is_copy=True) for path in sorted(directory.sites.glob("*.yaml")))


def load_run_study(directory: RunDirectory) -> StudySpec:
    """Return the study that a run was started with: all that readers need, who lack the sites' variables.

    Raises:
        RunDirectoryError: If the directory is not one of a run.
    """
    if not directory.study_file.is_file():
        found = "is not a run directory (no study.yaml in it)"
        raise RunDirectoryError(
            str(directory.path), found, "Start one with `parsl-rasda run STUDY --dir DIR`."
        )
    return load_study(directory.study_file, check_targets=False, is_copy=True)


def replay_search(
    directory: RunDirectory,
    study: str,
    tune: TuneSpec,
    *,
    seed: int | None = None,
    known: Sequence[Mapping[str, JSON]] = (),
) -> ReplayedSearch:
    """Return a `tune` stage as its journal records it; without a journal, one that has not begun.

    Args:
        directory: Where its journal is.
        study: Name of the study.
        tune: What the stage declares.
        seed: Seed of the study if its searcher is needed (to go on), else None.
        known: Configurations that the searcher tries first.

    Raises:
        JournalError: If the journal is damaged, if this very version wrote it and decides otherwise now, or
            if it cannot go on from what another one decided.
    """
    path, begun = directory.journal, as_begun(directory, tune)
    first = version_of(path) if path.exists() else VERSION
    followed, difference = 0, ""
    while True:
        machine, usage = build_machine(begun), Usage()
        searcher = NoSearcher() if seed is None else build_study_searcher(tune, seed, known)
        versions = [first]
        try:
            records = read(path) if path.exists() else ()
            count = replay(
                records,
                machine,
                searcher,
                [usage],
                versions=versions,
                followed=followed,
                file=str(path),
            )
        except OtherDecisionError as other:
            if versions[other.section] == VERSION:
                raise
            followed = other.section + 1
            difference = difference or _in_a_sentence(other, versions[other.section])
            continue
        found = SearchRecords(Records(path, count))
        return ReplayedSearch(
            study, tune, machine, searcher, usage, found, versions[-1], followed, difference, begun=begun
        )


def as_begun(directory: RunDirectory, tune: TuneSpec) -> TuneSpec:
    """Return what a `tune` stage declared when its search began: its method may have been changed since.

    Raises:
        RunDirectoryError: If the file that says so is damaged.
    """
    if not directory.first_method.exists():
        return tune
    try:
        scheduler = SchedulerSpec.model_validate_json(directory.first_method.read_bytes())
    except (OSError, ValueError) as error:
        found = f"first_method.json cannot be read ({error})"
        raise RunDirectoryError(str(directory.path), found, "Put a sound copy of it in its place.") from error
    return tune.model_copy(update={"scheduler": scheduler})


def keep_first_method(directory: RunDirectory, tune: TuneSpec) -> None:
    """Write down the method that a search has begun with, before another one is declared; once."""
    if directory.journal.exists():
        create_file(directory.first_method, tune.scheduler.model_dump_json())


def changed_method(machine: Machine, begun: TuneSpec, tune: TuneSpec) -> Method | None:
    """Return the method by which a search is to go on; None if it is the one that it has.

    The last milestone so far stays one: above it come those of the method that is declared.
    """
    known, method = machine.scheduler.milestones, tune.scheduler
    above = tuple(m for m in method.milestones if m > known[-1])
    growth = method.model_dump(mode="json")["growth"]
    wanted = Method((*known, *above), method.max_workers, growth)
    first = begun.scheduler
    present = machine.method or Method(known, first.max_workers, first.model_dump(mode="json")["growth"])
    return None if wanted == present else wanted


def _in_a_sentence(other: OtherDecisionError, before: str) -> str:
    wrote = f"parsl_rasda {before}" if before else "an earlier version of parsl_rasda"
    return (
        f"{other.path}:{other.line}: {wrote} wrote this, {VERSION} would decide otherwise from here on "
        f"({other.words}); the search goes on from what was decided"
    )
