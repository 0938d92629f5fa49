"""Lets trials train what was decided before, to its end: nobody is compared with anybody."""

from __future__ import annotations

import math
from collections.abc import Mapping

from parsl_rasda.scheduling.base import Action, Decision, Scheduler
from parsl_rasda.types import TrialId


class RepeatingScheduler:
    """A `Scheduler` of trials that train for so many epochs each; only one that diverges is stopped."""

    def __init__(self, ladder: Scheduler, epochs: Mapping[TrialId, int]) -> None:
        """Repeat what another scheduler has decided.

        Args:
            ladder: The other one, whose rungs they pass again.
            epochs: How many each of them trains.
        """
        self._ladder, self._epochs = ladder, epochs

    @property
    def milestones(self) -> tuple[int, ...]:
        """As in `Scheduler`."""
        return self._ladder.milestones

    def replicas(self, rung: int) -> int:
        """As in `Scheduler`."""
        return self._ladder.replicas(rung)

    def add(self, trial: TrialId) -> Decision:
        """Return all that the trial trains."""
        return self._decision(trial, Action.CONTINUE, self._epochs[trial])

    def report(self, trial: TrialId, epoch: int, metric: float) -> Decision:
        """Let the trial go on until it has trained all of it."""
        if not math.isfinite(metric):
            return self._decision(trial, Action.STOP, epoch)
        if epoch >= self._epochs[trial]:
            return self._decision(trial, Action.STOP, epoch, completed=True)
        return self._decision(trial, Action.CONTINUE, self._epochs[trial])

    def remove(self, trial: TrialId) -> None:
        """Do nothing: nobody waits for the trial."""

    def readmit(self, trial: TrialId) -> Decision:
        """Return all that the trial trains, once more."""
        return self.add(trial)

    def close(self) -> None:
        """Do nothing: all are known from the start."""

    def resume_next(self) -> Decision | None:
        """Return None: nobody ever pauses."""
        return None

    def dismiss(self) -> tuple[Decision, ...]:
        """Return nothing: nobody ever pauses."""
        return ()

    def _decision(self, trial: TrialId, action: Action, until: int, *, completed: bool = False) -> Decision:
        rung = next((k for k, m in enumerate(self.milestones) if m >= until), len(self.milestones) - 1)
        return Decision(trial, action, until, self.replicas(rung), rung, completed)
