"""The port of a scheduler: who trains on, for how long, with how many replicas.

Implementations are pure: they read no clock, start nothing and depend only on the order of calls,
so that a replayed journal decides as the live run did. The executable definition is
`parsl_rasda.testing.SchedulerContract`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple, Protocol, runtime_checkable

from parsl_rasda.types import TrialId


class Action(StrEnum):
    """What becomes of a trial that has reported."""

    CONTINUE = "continue"
    STOP = "stop"
    PAUSE = "pause"


class Decision(NamedTuple):
    """What becomes of a trial, and why.

    Attributes:
        until: Epochs done when it must report next (for `CONTINUE`), else the epochs it has done.
        replicas: As `Scheduler.replicas` of the coming stretch, or of the last one.
        rung: Index of the rung that the coming (or last) stretch ends at; 0 is the first.
        completed: The trial stops because it reached `max_t`.
        reason: One short clause for people, as ``loss 0.3 is within the best half of 7 results before it``.
    """

    trial: TrialId
    action: Action
    until: int
    replicas: int
    rung: int
    completed: bool = False
    reason: str = ""


class Scheduler(Protocol):
    """Decides at rungs. Every method is O(log n) in the number of trials."""

    @property
    def milestones(self) -> tuple[int, ...]:
        """Epochs at which trials are judged, ascending; the last one is `max_t`."""
        ...

    def replicas(self, rung: int) -> int:
        """Return the workers on the stretch that ends at ``milestones[rung]``: the GPUs that the rule gives.

        They are the replicas that share a step, unless `Batching` says otherwise.
        """
        ...

    def add(self, trial: TrialId) -> Decision:
        """Admit a trial; older trials are added first. Returns its first stretch."""
        ...

    def report(self, trial: TrialId, epoch: int, metric: float) -> Decision:
        """Return what becomes of the trial after ``epoch`` epochs; unknown trials are added.

        Between rungs the answer is to continue to the same milestone, except that a metric that
        is not finite stops the trial at any epoch. A trial that has ended gets its `STOP` again.
        """
        ...

    def remove(self, trial: TrialId) -> None:
        """Take out a trial that failed: nobody waits for it, and it never goes on."""
        ...

    def readmit(self, trial: TrialId) -> Decision:
        """Admit a trial that was removed once more, from its start. Returns its first stretch."""
        ...

    def close(self) -> None:
        """Say that no further trial will be added."""
        ...

    def resume_next(self) -> Decision | None:
        """Let the best paused trial that may go on now go on, and return its next stretch."""
        ...

    def dismiss(self) -> tuple[Decision, ...]:
        """Return a `STOP` for each paused trial that can never go on; each is returned once."""
        ...


@runtime_checkable
class Multiobjective(Protocol):
    """A scheduler that judges trials by several metrics."""

    def report_all(self, trial: TrialId, epoch: int, metrics: Mapping[str, float]) -> Decision:
        """Return what becomes of the trial, as `Scheduler.report` does, by all that it reports."""
        ...


@runtime_checkable
class Extensible(Protocol):
    """A scheduler whose trials may train for longer than was said at first."""

    def extend(self, milestones: tuple[int, ...], max_workers: int | None) -> tuple[Decision, ...]:
        """Go on with more rungs above the last one, or more workers; return what becomes of the completed."""
        ...
