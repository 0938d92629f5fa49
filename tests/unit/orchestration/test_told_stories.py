"""What the user tells a search at a bad moment, told as stories."""

from __future__ import annotations

import math

import pytest

from parsl_rasda.orchestration.events import FinishStudy, RequestPilot, StartJob, TrialProposed, UserTold
from parsl_rasda.orchestration.stopping import StopWhen
from parsl_rasda.types import Outcome, StudyState, TrialId, TrialState
from tests.unit.orchestration.test_machine_stories import Story, of, story


def diverged() -> Story:
    """A search whose first trial has failed, and has not left yet, when the user lets it start afresh."""
    told = story(max_t=2)
    told.begin(2, a=1)
    told.pilot("a-0", gpus=2)
    told.epoch("0000.1", 1, math.nan)
    assert told.machine.trials[TrialId("0000")].state is TrialState.FAILED
    assert of(StartJob, told.tell(UserTold, 1, retry_failed=True)) == []
    return told


@pytest.mark.parametrize("outcome", list(Outcome))
def test_a_failed_trial_that_still_leaves_starts_afresh_once_it_has_left(outcome: Outcome) -> None:
    told = diverged()
    starts = of(StartJob, told.ends("0000.1", outcome, checkpoint="diverged"))
    assert [(str(s.job), s.epoch, s.resume_from) for s in starts] == [("0000.2", 0, None)]
    told.play(lambda trial, epoch: 0.1)
    assert told.machine.state is StudyState.DONE
    assert all(t.state is not TrialState.FAILED for t in told.machine.trials.values())


def test_a_failed_trial_that_still_leaves_starts_afresh_under_the_next_controller() -> None:
    told = diverged()
    told.begin(2, a=1)
    starts = of(StartJob, told.pilot("a-1", gpus=2))
    assert {(str(s.job), s.epoch) for s in starts} == {("0000.2", 0), ("0001.2", 0)}


@pytest.mark.parametrize("resumed_first", [False, True])
def test_a_trial_added_to_an_exhausted_search_is_none_that_the_searcher_may_have(resumed_first: bool) -> None:
    told = story(max_t=2, searched=3)
    told.begin(8, a=1)
    told.pilot("a-0", gpus=4)
    if resumed_first:
        told.play(lambda trial, epoch: 0.1)
    told.tell(TrialProposed, TrialId("0003"), {}, 1)
    if resumed_first:
        told.begin(8, a=1)
        told.pilot("a-1", gpus=4)
    told.play(lambda trial, epoch: 0.1)
    assert told.machine.state is StudyState.DONE
    assert len(told.machine.trials) == 4
    assert not told.machine.lacks(8)
    assert told.machine.lacks(9)


def test_a_search_that_has_found_enough_asks_for_no_pilot_whatever_was_told_before_it_had() -> None:
    told = story(max_t=2, stop_when=StopWhen(target=0.2))
    told.begin(2, a=1)
    told.pilot("a-0", gpus=2)
    told.play(lambda trial, epoch: 0.1)
    told.tell(TrialProposed, TrialId("0002"), {}, 1)
    begun = told.begin(2, a=1)
    assert of(RequestPilot, begun) == []
    assert of(FinishStudy, begun)[0].state is StudyState.DONE
