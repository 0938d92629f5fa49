"""Which states of a trial and of a job may follow one another, and the error if another one does."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TypeVar

from parsl_rasda.types import TrialState


class InvariantError(RuntimeError):
    """The machine contradicts itself: a bug, or an event that no backend may post. Never a user's mistake."""


class JobState(StrEnum):
    """Where a job stands."""

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
    # Back to RUNNING if it is promoted before its job has left.
    TrialState.PAUSED: frozenset(
        {TrialState.PAUSED, TrialState.RUNNING, TrialState.WAITING, TrialState.STOPPED}
    ),
    TrialState.STOPPED: frozenset(),
    TrialState.COMPLETED: frozenset(),
    TrialState.FAILED: frozenset({TrialState.WAITING}),  # if the user wants it retried
}
JOB_TRANSITIONS: Mapping[JobState, frozenset[JobState]] = {
    JobState.STARTING: frozenset({JobState.TRAINING, JobState.LEAVING, JobState.ENDED}),
    JobState.TRAINING: frozenset({JobState.LEAVING, JobState.ENDED}),
    JobState.LEAVING: frozenset({JobState.ENDED}),
    JobState.ENDED: frozenset(),
}

_State = TypeVar("_State", TrialState, JobState)


def checked(table: Mapping[_State, frozenset[_State]], old: _State, new: _State, who: str) -> _State:
    """Return the new state of a trial or a job.

    Raises:
        InvariantError: If it must not follow the old one.
    """
    if new not in table[old]:
        raise InvariantError(f"{who} cannot go from {old.value} to {new.value}")
    return new
