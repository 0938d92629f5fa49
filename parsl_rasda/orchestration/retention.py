"""Whose checkpoints nobody will ask for any more: those of trials that have ended and are not to be kept.

The best of all trials is asked for by the next stage. While trials train it may change, but never to one
that has ended and was not the best of those that have: hence that one, and whoever may go on, is spared; so
are as many of the best as the study says, or with several metrics all of the front.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Callable
from operator import itemgetter

from parsl_rasda.orchestration.events import Event, Instruction, JobEnded, StudyStarted, TrialFinished
from parsl_rasda.orchestration.machine import Machine
from parsl_rasda.orchestration.run_names import is_run
from parsl_rasda.orchestration.trial_record import TrialRecord, front
from parsl_rasda.types import JobId, Keep, Mode, TrialId, TrialState


def released(machine: Machine) -> set[TrialId]:
    """Return the trials of a search whose checkpoints may be gone by now."""
    found: set[TrialId] = set()
    Retention(machine, lambda last: found.add(last.trial)).look_at_all()
    return found


class Retention:
    """An observer of a search, which names each trial once whose checkpoints may go."""

    def __init__(self, machine: Machine, discard: Callable[[JobId], None]) -> None:
        """Observe a search; a controller that takes it up names all of them again.

        Args:
            machine: Of the search.
            discard: Told the last attempt of each trial. It must neither block nor raise.
        """
        self._machine, self._discard = machine, discard
        self._keep, self._mode = machine.settings.keep, machine.settings.mode
        self._seen: set[TrialId] = set()
        self._most = machine.settings.keep_best
        self._best: list[tuple[tuple[float, float, int], TrialRecord]] = []  # the best first
        self._front: list[TrialRecord] = []  # with several metrics, instead of them

    def add(self, event: Event, instructions: tuple[Instruction, ...]) -> None:
        """Look at the trials that may have ended by an event."""
        if self._keep is Keep.ALL:
            return
        trials = self._machine.trials
        if isinstance(event, StudyStarted):
            self.look_at_all()
        elif isinstance(event, JobEnded) and event.job.trial in trials:
            self._look_at(trials[event.job.trial])
        elif isinstance(event, JobEnded) and is_run(event.job.trial):
            self._look_at_run(event.job)
        for instruction in instructions:
            if isinstance(instruction, TrialFinished):
                self._look_at(trials[instruction.trial])

    def _look_at_run(self, job: JobId) -> None:
        """Release a run of the confirmation that has ended: its metric is all that it was trained for."""
        run = self._machine.confirmation.runs.get(job.trial)
        if run is not None and run.state is TrialState.COMPLETED and run.job is None:
            self._discard(JobId(run.id, run.attempt))

    def look_at_all(self) -> None:
        """Look at every trial, of whom only those that have ended count."""
        for trial in self._machine.trials.values() if self._keep is not Keep.ALL else ():
            self._look_at(trial)

    def _look_at(self, trial: TrialRecord) -> None:
        if not trial.state.is_final or trial.job is not None or trial.id in self._seen:
            return  # its job may still write
        if trial.id in self._machine.cut_off:
            return  # it goes on when the budget is larger
        self._seen.add(trial.id)
        metric = trial.result[1] if trial.result is not None else math.nan
        if trial.state is TrialState.FAILED or not math.isfinite(metric):
            self._release(trial)
            return
        objectives, violation = self._machine.settings.objectives, 0.0
        if objectives is not None and len(objectives.metrics) > 1:
            self._keep_front(trial)
            return
        if objectives is not None:
            values = trial.reached.get(trial.result[0]) if trial.result is not None else None
            violation = values.violation if values is not None else math.inf
        key = (violation, metric if self._mode is Mode.MIN else -metric, trial.age)
        insort(self._best, (key, trial), key=itemgetter(0))
        if len(self._best) > self._most:
            self._release(self._best.pop()[1])

    def _keep_front(self, trial: TrialRecord) -> None:
        """Keep the front of those that have ended: who is not on it now never will be."""
        ended = {one.id: one for one in (*self._front, trial)}
        self._front = front(ended)
        for one in ended.values():
            if one not in self._front:
                self._release(one)

    def _release(self, trial: TrialRecord) -> None:
        if not (self._keep is Keep.SURVIVORS and trial.state is TrialState.COMPLETED):
            self._discard(JobId(trial.id, trial.attempt))
