"""What must hold after every event. Tests check it, production does not: see `are_validated`."""

from __future__ import annotations

import os
from itertools import pairwise

from parsl_rasda.orchestration.events import StartJob
from parsl_rasda.orchestration.search_record import SearchRecord
from parsl_rasda.orchestration.states import InvariantError
from parsl_rasda.orchestration.trial_record import TrialRecord
from parsl_rasda.types import PilotId, TrialId, TrialState

VARIABLE = "PARSL_RASDA_VALIDATE"  # "1" in tests and in the processes that they start


def are_validated() -> bool:
    """Return whether the environment asks for the invariants to be checked."""
    return os.environ.get(VARIABLE) == "1"


class Invariants:
    """Checks one search, event by event."""

    def __init__(self, search: SearchRecord) -> None:
        """Watch a search that has not begun."""
        self._search = search
        self._progress: dict[TrialId, tuple[int, int]] = {}  # attempt and epoch of each trial before

    def check(self) -> None:
        """Look at the search between two events.

        Raises:
            InvariantError: If it contradicts itself; the message says in what.
        """
        self._check_jobs()
        self._check_starts()
        self._check_slots()
        self._check_queue()
        for trial in self._search.trials.values():
            self._check_epochs(trial)

    def _check_jobs(self) -> None:
        """A trial has at most one live job, and has one while it runs."""
        trials, jobs = self._search.trials.values(), self._search.jobs
        _expect({t.job.id: t.id for t in trials if t.job}, {j: t.id for j, t in jobs.items()}, "live jobs")
        _expect([j for j, t in jobs.items() if j.trial != t.id], [], "jobs of another trial")
        idle = [t.id for t in trials if t.state is TrialState.RUNNING and t.job is None]
        _expect(idle, [], "trials that run without a job")
        busy = [t.id for t in trials if t.state is TrialState.WAITING and t.job is not None]
        _expect(busy, [], "trials that wait and have a job")
        _expect(self._search.ended, sum(t.state.is_final for t in trials), "trials that have ended")

    def _check_starts(self) -> None:
        """A job starts on a pilot that is up and stays."""
        starts = [i for i in self._search.instructions if isinstance(i, StartJob)]
        gone = [i.job for i in starts if not self._search.pilots.accepts_jobs(i.placement.pilot)]
        _expect(gone, [], "jobs that start on a pilot that is not up")

    def _check_slots(self) -> None:
        """Each slot of the pilots that accept jobs is free, or held by one job or for its next one."""
        pilots, ledger = self._search.pilots, self._search.cluster_state.ledger
        accepting = {pilot for pilot in pilots.up if pilots.accepts_jobs(pilot)}
        _expect(set(ledger.pilots), accepting, "pilots in the ledger")
        held: list[tuple[PilotId, str]] = []
        for trial in self._search.jobs.values():
            if trial.job is not None:
                places = [p for p in (trial.job.placement, trial.job.next_placement) if p is not None]
                held += {(p.pilot, slot) for p in places for slot in p.slots if p.pilot in accepting}
        _expect(len(held), len(set(held)), "slots held, of which none is held twice")
        total = sum(len(node.gpus) for pilot in accepting for node in pilots.up[pilot].nodes)
        _expect(ledger.free + len(held), total, "slots, free or held")

    def _check_queue(self) -> None:
        """Every trial that waits is in the queue once, and nobody else is."""
        queued = sorted(w.trial for w in self._search.cluster_state.queue())
        waiting = sorted(t.id for t in self._search.trials.values() if t.state is TrialState.WAITING)
        _expect(queued, waiting, "trials in the queue")

    def _check_epochs(self, trial: TrialRecord) -> None:
        """Epochs only grow within an attempt, and attempts within a trial; stretches follow one another."""
        now, before = (trial.attempt, trial.epoch), self._progress.get(trial.id, (0, 0))
        if now[0] < before[0] or (trial.job is not None and now < before):
            raise InvariantError(f"trial {trial.id} went back from {before} to {now} (attempt, epoch)")
        self._progress[trial.id] = now
        edges = [edge for s in trial.schedule for edge in (s.epoch, s.until)]
        gaps = [(a.until, b.epoch) for a, b in pairwise(trial.schedule) if a.until != b.epoch]
        if edges != sorted(edges) or edges[0] != 0 or gaps:
            raise InvariantError(f"trial {trial.id} has stretches out of order: {trial.schedule}")
        saved = [c.epoch for c in (trial.previous, trial.checkpoint) if c is not None]
        if saved != sorted(saved):
            raise InvariantError(f"trial {trial.id} has checkpoints out of order, of epochs {saved}")


def _expect(found: object, expected: object, what: str) -> None:
    if found != expected:
        raise InvariantError(f"{what}: found {found}, expected {expected}")
