"""A run directory as its journals tell it: every search, every finished stage, and who runs it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parsl_rasda.orchestration.history import History, load_run, rebuild
from parsl_rasda.orchestration.rundir import RunDirectory
from parsl_rasda.study import SiteSpec, StudySpec, TuneStage
from parsl_rasda.vocabulary import StudyState


@dataclass(frozen=True, slots=True)
class FinishedStage:
    """Calls of a stage whose results are kept."""

    name: str
    calls: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Run:
    """What a run directory holds.

    Attributes:
        searches: By stage; one that has not begun has no records.
        directories: Where each search keeps its journal.
        finished: Stages with kept results, in the order of the study.
        controller: Who runs the study now, in words, or None.
    """

    directory: Path
    study: StudySpec
    sites: tuple[SiteSpec, ...]
    searches: Mapping[str, History]
    directories: Mapping[str, Path]
    finished: Sequence[FinishedStage]
    controller: str | None

    def document(self, now: float | None = None) -> dict[str, Any]:
        """Return the JSON document of `status`.

        With one search it is that search's summary; with several, they stand under `searches`.

        Args:
            now: Present time [s], by default the clock's; it counts while somebody runs the study.
        """
        summaries = self.summaries(now)
        about: dict[str, Any] = {
            "directory": str(self.directory),
            "controller": self.controller,
            "stages": [
                {"stage": f.name, "calls": f.calls, "seconds": round(f.seconds, 3)} for f in self.finished
            ],
        }
        if len(summaries) == 1:
            return {**next(iter(summaries.values())), **about}
        states = [s["state"] for s in summaries.values()]
        return {"study": self.study.name, "state": _joint(states), "searches": summaries, **about}

    def summaries(self, now: float | None = None) -> dict[str, dict[str, Any]]:
        """Return the summary of each search, by stage; one that nobody runs any more is interrupted."""
        clock = (time.time() if now is None else now) if self.controller else None
        found = {name: history.summary(clock) for name, history in self.searches.items()}
        for name, summary in found.items():
            if not self.controller and self.searches[name].records and summary["state"] == StudyState.RUNNING:
                summary["state"] = StudyState.INTERRUPTED.value
        return found


def read_run(directory: Path) -> Run:
    """Return what a run directory holds.

    Raises:
        RunDirectoryError: If it is not one of a run.
        JournalError: If a journal is damaged.
    """
    run = RunDirectory(directory)
    controller = run.controller  # before the journal, so that a run that ends meanwhile is not given up
    study, sites = load_run(run)
    stages = study.tune_stages
    directories = {n: directory if len(stages) == 1 else directory / n for n in stages}
    searches = {n: rebuild(RunDirectory(directories[n]), study.name, s.tune) for n, s in stages.items()}
    finished = [
        found
        for name, stage in study.stages.items()
        if not isinstance(stage, TuneStage) and (found := _finished(name, run.stages / name)) is not None
    ]
    return Run(directory, study, sites, searches, directories, finished, controller)


def _finished(name: str, folder: Path) -> FinishedStage | None:
    seconds = [_seconds(file) for file in sorted(folder.glob("*.json"))]
    return FinishedStage(name, len(seconds), sum(seconds)) if seconds else None


def _seconds(file: Path) -> float:
    try:
        return float(json.loads(file.read_text()).get("seconds", 0.0))
    except (OSError, ValueError, AttributeError):
        return 0.0


def _joint(states: Sequence[str]) -> str:
    """Return the state of several searches together: what is not done tells."""
    return next((s for s in states if s != StudyState.DONE), StudyState.DONE.value)
