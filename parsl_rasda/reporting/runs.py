"""The contents of a run directory: every stage, every search, and who runs it.

`Run.document` is the one JSON document of `run`, `resume` and `status`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import networkx as nx

from parsl_rasda.orchestration.replay import ReplayedSearch, load_run_study, replay_search
from parsl_rasda.orchestration.run_directory import RunDirectory
from parsl_rasda.orchestration.stage_records import StageRecord, kept_result, read_record
from parsl_rasda.orchestration.summary import cause, no_search, spent, total_energy
from parsl_rasda.reporting.asha import AshaComparison, compare_with_asha
from parsl_rasda.reporting.format import slot_kind_of
from parsl_rasda.simulation.remaining import remaining_s
from parsl_rasda.study import StudySpec
from parsl_rasda.types import StageState, StudyState, TrialState

_TROUBLED = {StageState.FAILED, StageState.NO_SITE}


@dataclass(frozen=True, slots=True)
class StageStatus:
    """The state of a stage now.

    Attributes:
        at: Since when [s]; 0 if that is not known.
        calls: Calls it makes; 0 if that is not known yet. A search is one call.
        ended: How many calls have ended well.
        seconds: Time in calls that have ended well, or under the search's controllers; None without any.
        is_curable: Whether `resume` may help.
        result: What it returned, as later stages receive it; None for a search, which returns its best trial.
    """

    state: StageState
    at: float
    cause: str
    is_curable: bool
    calls: int
    ended: int
    seconds: float | None
    result: Any

    @property
    def is_troubled(self) -> bool:
        """Whether it ended without a result."""
        return self.state in _TROUBLED


@dataclass(frozen=True)
class Run:
    """The contents of a run directory.

    Attributes:
        searches: By stage; one that has not begun has no records.
        directories: Where each search keeps its journal.
        records: Of every stage, in the order of the study.
        kept: Of each stage, the seconds of every call with a valid result.
        controller: Who runs the study now, for people, or None.
    """

    directory: Path
    study: StudySpec
    sites: tuple[str, ...]
    searches: Mapping[str, ReplayedSearch]
    directories: Mapping[str, Path]
    records: Mapping[str, StageRecord]
    kept: Mapping[str, Mapping[str, float]]
    controller: str | None

    @property
    def stages(self) -> dict[str, StageStatus]:
        """The state of each stage, in the order of the study."""
        return {name: self._status(name) for name in self.study.stages}

    @property
    def state(self) -> StudyState:
        """The state of the run: it runs only while its controller lives, and is done when every stage is."""
        stages = self.stages.values()
        if all(s.state is StageState.DONE for s in stages):
            return StudyState.DONE
        if self.controller:
            return StudyState.RUNNING
        trouble = self.trouble
        return StudyState.INTERRUPTED if trouble is None else StudyState(trouble[1].state.value)

    @cached_property
    def asha(self) -> Mapping[str, AshaComparison | None]:
        """Each search beside ASHA; None for one that has not ended well, or has nothing to compare."""
        return {name: compare_with_asha(history) for name, history in self.searches.items()}

    @property
    def trouble(self) -> tuple[str, StageStatus] | None:
        """The first stage that failed or had no site, which ended the run."""
        found = [(s.at, name, s) for name, s in self.stages.items() if s.is_troubled]
        return min(found, key=lambda f: f[0])[1:] if found else None

    @property
    def cause(self) -> str:
        """Why the run cannot go on; empty if nothing is wrong."""
        if self.trouble is None:
            return ""
        name, stage = self.trouble
        return stage.cause if len(self.study.stages) == 1 else f"stage {name}: {stage.cause}"

    def document(self, now: float | None = None) -> dict[str, Any]:
        """Return the JSON document of the run: the same keys for any study in any state.

        ``searches`` has each search by stage, ``stages`` each stage. At the top, ``state`` and ``cause`` are
        those of the run. Costs (times, GPU time, epochs, restarts, faults) are summed over all searches;
        findings (best, trials, rungs) are those of the last search in the graph.

        Args:
            now: Present time [s], by default the clock's; it counts while somebody runs the study.
        """
        summaries = self.summaries(now)
        searches = [name for name in self.order if name in summaries]
        nothing = {**no_search(self.study.name), "asha": None, "slot_kind": self.slot_kind}
        found = summaries[searches[-1]] if searches else nothing
        return {
            **found,
            **spent([history.usage for history in self.searches.values()], self._clock(now)),
            "energy": total_energy([s["energy"] for s in summaries.values()]),
            "gpus": sum(s["gpus"] for s in summaries.values()),
            "gpus_busy": sum(s["gpus_busy"] for s in summaries.values()),
            "pilots": [pilot for s in summaries.values() for pilot in s["pilots"]],
            "awaited": [pilot for s in summaries.values() for pilot in s["awaited"]],
            "resting": [site for s in summaries.values() for site in s["resting"]],
            "set_aside": [what for s in summaries.values() for what in s["set_aside"]],
            "state": self.state.value,
            "cause": self.cause,
            "searches": summaries,
            "stages": {name: _stage_document(stage) for name, stage in self.stages.items()},
            "directory": str(self.directory),
            "controller": self.controller,
        }

    def summaries(self, now: float | None = None) -> dict[str, dict[str, Any]]:
        """Return the summary of each search, by stage; only one that runs has pilots."""
        clock = self._clock(now)
        found = {name: history.summary(clock) for name, history in self.searches.items()}
        for name, summary in found.items():
            standing = self._status(name)
            compared = self.asha[name]
            summary |= {"state": standing.state.value, "cause": standing.cause}
            summary["asha"] = None if compared is None else dict(compared.document)
            summary["slot_kind"] = self.slot_kind
            if not self.searches[name].records:
                total = self.searches[name].tune.num_samples
                summary["trials"] |= {"total": total, "waiting": total}
            if standing.state is StageState.RUNNING and clock is not None:
                summary["left_s"] = remaining_s(self.searches[name].machine, self.searches[name].usage, clock)
            else:
                summary |= {"gpus": 0, "gpus_busy": 0, "pilots": [], "awaited": [], "resting": []}
                summary |= {"left_s": None, **_nobody_runs(summary)}
        return found

    @cached_property
    def slot_kind(self) -> str:
        """What a slot is called: a core, a GPU, or only a slot."""
        return slot_kind_of(RunDirectory(self.directory).sites)

    def _clock(self, now: float | None) -> float | None:
        if not self.controller:
            return None
        return time.time() if now is None else now

    @property
    def order(self) -> list[str]:
        """The stages, each after those that it needs."""
        edges = (
            (before, name) for name, stage in self.study.stages.items() for before in stage.stages_before
        )
        graph: nx.DiGraph[str] = nx.DiGraph(edges)
        graph.add_nodes_from(self.study.stages)
        place = {name: i for i, name in enumerate(self.study.stages)}
        return list(nx.lexicographical_topological_sort(graph, key=place.__getitem__))

    def _status(self, name: str) -> StageStatus:
        record, history = self.records[name], self.searches.get(name)
        state, why, is_curable, at = record.state, record.cause, record.is_curable, record.at
        if history is not None and history.records and state not in _TROUBLED:
            state = StageState(history.machine.state.value)
            why, is_curable = cause(history.machine, history.usage), state is not StageState.FAILED
            at = history.usage.finished_at or at
        if state is StageState.RUNNING and not self.controller:
            state = StageState.INTERRUPTED
        seconds = sum(self.kept[name].values()) if self.kept[name] else None
        ended = len(self.kept[name])
        if history is not None:
            seconds = history.usage.makespan_s(self._clock(None)) if history.records else None
            ended = int(state is StageState.DONE)
        return StageStatus(state, at, why, is_curable, len(record.calls), ended, seconds, record.result)


def read_run(directory: Path) -> Run:
    """Return the contents of a run directory.

    Raises:
        RunDirectoryError: If it is not one of a run.
        JournalError: If a journal is damaged.
    """
    run = RunDirectory(directory)
    controller = run.controller  # before the journal: a run that ends meanwhile must not look interrupted
    study = load_run_study(run)
    sites = tuple(sorted(file.stem for file in run.sites.glob("*.yaml")))
    searches = study.tune_stages
    directories = {n: directory if len(searches) == 1 else directory / n for n in searches}
    histories = {
        n: replay_search(RunDirectory(directories[n]), study.name, s.tune).with_curves()
        for n, s in searches.items()
    }
    records = {name: read_record(run.stages / name) for name in study.stages}
    kept = {name: _kept_seconds(run.stages / name, record) for name, record in records.items()}
    return Run(directory, study, sites, histories, directories, records, kept, controller)


def _kept_seconds(folder: Path, record: StageRecord) -> dict[str, float]:
    found = ((call, kept_result(folder, call, key)) for call, key in record.calls.items())
    return {call: float(f.get("seconds", 0.0)) for call, f in found if f is not None}


def _nobody_runs(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return the trials of a search without a controller: those that ran when it died wait to go on."""
    counts, running = dict(summary["trials"]), TrialState.RUNNING.value
    counts[TrialState.WAITING.value] += counts[running]
    counts[running] = 0
    waits: dict[str, Any] = {"state": TrialState.WAITING.value, "width": None, "slots": []}
    trials = [{**t, **waits} if t["state"] == running else t for t in summary["trial_list"]]
    return {"trials": counts, "trial_list": trials}


def _stage_document(stage: StageStatus) -> dict[str, Any]:
    return {
        "state": stage.state.value,
        "cause": stage.cause,
        "seconds": None if stage.seconds is None else round(stage.seconds, 3),
        "calls": stage.calls,
        "calls_ended": stage.ended,
        "result": stage.result,
    }
