"""The graph of a study as it was decided: one vertex for each stage, one for each stretch of a trial.

A stretch leads from one rung to the next. Its vertex appears when the scheduler decides on it and
holds everything that is known of it: replicas, every placement it was trained on, the metric it
ended with, what was decided then, why, and which trials it was compared with.
"""

from __future__ import annotations

from collections.abc import Sequence

import networkx as nx

from parsl_rasda.orchestration.brackets import bracket_of
from parsl_rasda.orchestration.driver import replay
from parsl_rasda.orchestration.events import (
    EpochReported,
    Event,
    Instruction,
    JobEnded,
    StartJob,
    StudyStarted,
    TrialFinished,
    TrialProposed,
)
from parsl_rasda.orchestration.machine import Machine
from parsl_rasda.orchestration.replay import NoSearcher, ReplayedSearch
from parsl_rasda.orchestration.run_names import OfSearch, all_records
from parsl_rasda.orchestration.trial_record import TrialRecord
from parsl_rasda.types import JobId, Placement, TrialId, TrialState


class DecisionGraph:
    """An observer of one search; `graph` is complete after every event."""

    def __init__(self, machine: Machine, *, after: Sequence[str] = ()) -> None:
        """Begin with the stages that the search waits for."""
        self.machine = machine
        self.graph: nx.DiGraph[str] = nx.DiGraph()
        self._after = tuple(after)
        self._open: dict[TrialId, tuple[int, str]] = {}
        self._reached: dict[tuple[int, int], list[TrialId]] = {}  # by bracket and rung
        self._live: set[JobId] = set()
        for stage in after:
            self.graph.add_node(stage, kind="stage", label=stage)

    def add(self, event: Event, instructions: tuple[Instruction, ...]) -> None:
        """Note one event, which the machine has handled, and what followed from it."""
        match event:
            case StudyStarted():
                self._live.clear()
            case TrialProposed():
                self._begin_stretch(self.machine.trials[event.trial], 0)
            case EpochReported() if event.job in self._live:
                self._end_stretch(self.machine.trials[event.job.trial], event)
            case JobEnded():
                self._live.discard(event.job)
            case _:
                pass
        for instruction in instructions:
            if isinstance(instruction, StartJob):
                self._note_job(instruction)
            elif isinstance(instruction, TrialFinished):
                vertex = self._open[instruction.trial][1]
                self.graph.nodes[vertex].update(decision=instruction.state.value, reason=instruction.reason)

    def _begin_stretch(self, trial: TrialRecord, rung: int) -> None:
        vertex = f"{trial.id}/{rung}"
        self.graph.add_node(
            vertex,
            kind="stretch",
            label=f"{trial.id} to {self.machine.scheduler.milestones[rung]}",
            trial=trial.id,
            rung=rung,
            until=self.machine.scheduler.milestones[rung],
            replicas=trial.schedule[-1].replicas,
            placements=_placed(trial.job.placement) if trial.job and not trial.job.is_leaving else "",
            metric="",
            decision="running",
            reason="",
            compared_with="",
        )
        before = self._open.get(trial.id)
        for source in [before[1]] if before else self._after:
            self.graph.add_edge(source, vertex)
        self._open[trial.id] = (rung, vertex)

    def _end_stretch(self, trial: TrialRecord, event: EpochReported) -> None:
        rung, vertex = self._open[trial.id]
        node = self.graph.nodes[vertex]
        if node["decision"] != "running":
            return  # it trains on until it is killed
        node["metric"] = trial.history[event.epoch]
        if event.epoch < node["until"]:
            return
        bracket = bracket_of(self.machine, trial.id) or 0
        others = self._reached.setdefault((bracket, rung), [])
        is_judged = rung >= bracket
        node.update(compared_with=" ".join(others) if is_judged else "", reason=trial.reason)
        others.append(trial.id)
        if trial.rung > rung:
            node["decision"] = "continue"
            self._begin_stretch(trial, trial.rung)
        elif trial.state is TrialState.PAUSED:
            node["decision"] = "pause"

    def _note_job(self, start: StartJob) -> None:
        self._live.add(start.job)
        trial = self.machine.trials[start.job.trial]
        if trial.rung > self._open[trial.id][0]:  # it was paused, and may go on
            self.graph.nodes[self._open[trial.id][1]].update(decision="continue", reason=trial.reason)
            self._begin_stretch(trial, trial.rung)
        node = self.graph.nodes[self._open[trial.id][1]]
        known, placed = node["placements"].split("; "), _placed(start.placement)
        if known[-1] != placed:
            node["placements"] = "; ".join(filter(None, [*known, placed]))


def _placed(placement: Placement) -> str:
    return f"{placement.pilot}: {', '.join(placement.slots)}"


def last_stretch(graph: nx.DiGraph[str], trial: str) -> str | None:
    """Return the vertex of the last stretch of a trial, or None if it has none."""
    found: list[tuple[int, str]] = [
        (data["rung"], vertex) for vertex, data in graph.nodes(data=True) if data.get("trial") == trial
    ]
    return max(found)[1] if found else None


def graph_of_decisions(history: ReplayedSearch, after: Sequence[str]) -> nx.DiGraph[str]:
    """Return the graph of what a journal tells.

    Args:
        history: One search.
        after: Vertices that the search waited for.
    """
    machine = history.fresh_machine()
    decisions = DecisionGraph(machine, after=after)
    replay(
        all_records(history.records), machine, NoSearcher(), [OfSearch(decisions)], followed=history.followed
    )
    return decisions.graph
