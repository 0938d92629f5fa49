"""Which states of a trial and of a job may follow one another, and the error if another one does."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from parsl_rasda.types import TrialState


class InvariantError(RuntimeError):
    """The machine contradicts itself: a bug, or an event that no backend may post. Never a user's mistake."""


class JobState(StrEnum):
    """Where a job stands."""

    __hash__ = str.__hash__  # that of `Enum` is ten times as slow

    STARTING = "starting"  # until its ranks have finished their first step
    TRAINING = "training"
    LEAVING = "leaving"  # it was told to; its slots are held until it has left
    ENDED = "ended"


TRIAL_TRANSITIONS: Mapping[TrialState, frozenset[TrialState]] = {
    # To FAILED if others fare well where it failed, to STOPPED if the search has found enough.
    TrialState.WAITING: frozenset(
        {TrialState.WAITING, TrialState.RUNNING, TrialState.STOPPED, TrialState.FAILED}
    ),
    TrialState.RUNNING: frozenset(TrialState),
    # Back to RUNNING if it is promoted before its job has left; to COMPLETED where the ladder need not grow.
    TrialState.PAUSED: frozenset(
        {
            TrialState.PAUSED,
            TrialState.RUNNING,
            TrialState.WAITING,
            TrialState.STOPPED,
            TrialState.COMPLETED,
        }
    ),
    TrialState.STOPPED: frozenset({TrialState.WAITING, TrialState.PAUSED}),  # if the budget is larger now
    # If there are more rungs now.
    TrialState.COMPLETED: frozenset({TrialState.WAITING, TrialState.PAUSED, TrialState.STOPPED}),
    TrialState.FAILED: frozenset({TrialState.WAITING}),  # if the user wants it retried
}
JOB_TRANSITIONS: Mapping[JobState, frozenset[JobState]] = {
    JobState.STARTING: frozenset({JobState.TRAINING, JobState.LEAVING, JobState.ENDED}),
    JobState.TRAINING: frozenset({JobState.LEAVING, JobState.ENDED}),
    JobState.LEAVING: frozenset({JobState.ENDED}),
    JobState.ENDED: frozenset(),
}


def impossible(old: TrialState | JobState, new: TrialState | JobState, who: str) -> InvariantError:
    """Return the error of a trial or a job that enters a state which must not follow its old one."""
    return InvariantError(f"{who} cannot go from {old.value} to {new.value}")
