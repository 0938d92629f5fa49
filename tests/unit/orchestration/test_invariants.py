"""That every invariant of the machine can fail, and that the machine of a test checks them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest

from parsl_rasda.orchestration.events import TimerFired
from parsl_rasda.orchestration.invariants import VARIABLE
from parsl_rasda.orchestration.machine import Machine
from parsl_rasda.orchestration.states import (
    JOB_TRANSITIONS,
    TRIAL_TRANSITIONS,
    InvariantError,
    JobState,
)
from parsl_rasda.orchestration.trial_record import LiveJob, TrialRecord
from parsl_rasda.placement.cluster_state import PendingTrial
from parsl_rasda.protocol import Checkpoint
from parsl_rasda.types import JobId, Outcome, PilotId, Stretch, TrialId, TrialState
from tests.unit.orchestration.random_world import Setup, Shape
from tests.unit.orchestration.test_machine_stories import Story, story

RUNS, AHEAD = TrialId("0000"), TrialId("0002")


@pytest.fixture
def told() -> Story:
    """A search of three trials that run on three of four slots; the last one has done an epoch."""
    found = story(max_t=8, growth="none")
    found.begin(3, a=1)
    found.pilot("a-0", gpus=4)
    found.epoch("0002.1", 1, 0.5)
    return found


def job_of(machine: Machine, trial: TrialId = RUNS) -> LiveJob:
    job = machine.trials[trial].job
    assert job is not None
    return job


def let_wait(machine: Machine, trial: TrialId) -> None:
    record = machine.trials[trial]
    machine.cluster_state.enqueue(PendingTrial(trial, record.age, record.stretch))


def a_slot_is_lost(machine: Machine) -> None:
    machine.cluster_state.ledger.release(job_of(machine).placement)


def a_slot_is_held_twice(machine: Machine) -> None:
    job_of(machine).placement = job_of(machine, TrialId("0001")).placement


def a_pilot_is_unknown_to_the_ledger(machine: Machine) -> None:
    machine.cluster_state.ledger.remove_pilot(PilotId("a-0"))


def a_trial_has_two_jobs(machine: Machine) -> None:
    machine.jobs[JobId(RUNS, 7)] = machine.trials[RUNS]


def a_job_belongs_to_another_trial(machine: Machine) -> None:
    first, second = (machine.trials[TrialId(t)] for t in ("0000", "0001"))
    first.job, second.job = second.job, first.job
    machine.jobs.update({job_of(machine, t).id: machine.trials[t] for t in (first.id, second.id)})


def a_trial_runs_without_a_job(machine: Machine) -> None:
    job = job_of(machine)
    del machine.jobs[job.id]
    machine.trials[RUNS].job = None
    machine.cluster_state.ledger.release(job.placement)


def a_trial_with_a_job_waits(machine: Machine) -> None:
    machine.trials[RUNS].enter(TrialState.WAITING)
    let_wait(machine, RUNS)


def a_trial_ends_unnoticed(machine: Machine) -> None:
    machine.trials[RUNS].enter(TrialState.FAILED)


def a_trial_that_waits_is_not_queued(machine: Machine) -> None:
    trial = TrialRecord(TrialId("0003"), 3, {}, [Stretch(0, 1, 1)])
    machine.trials[trial.id] = trial


def a_trial_that_runs_is_queued(machine: Machine) -> None:
    let_wait(machine, RUNS)


def an_epoch_is_taken_back(machine: Machine) -> None:
    machine.trials[AHEAD].epoch = 0


def an_attempt_is_counted_twice(machine: Machine) -> None:
    machine.trials[AHEAD].attempt = 0


def stretches_overlap(machine: Machine) -> None:
    machine.trials[RUNS].schedule.append(Stretch(0, 2, 1))


def a_stretch_begins_late(machine: Machine) -> None:
    machine.trials[RUNS].schedule[0] = Stretch(1, 2, 1)


def an_older_checkpoint_holds_more(machine: Machine) -> None:
    trial = machine.trials[AHEAD]
    assert trial.checkpoint is not None
    trial.previous = Checkpoint("other", trial.checkpoint.epoch + 1)


BROKEN: tuple[tuple[Callable[[Machine], None], str], ...] = (
    (a_slot_is_lost, "slots, free, held or set aside"),
    (a_slot_is_held_twice, "none is held twice"),
    (a_pilot_is_unknown_to_the_ledger, "pilots in the ledger"),
    (a_trial_has_two_jobs, "live jobs"),
    (a_job_belongs_to_another_trial, "jobs of another trial"),
    (a_trial_runs_without_a_job, "run without a job"),
    (a_trial_with_a_job_waits, "wait and have a job"),
    (a_trial_ends_unnoticed, "trials that have ended"),
    (a_trial_that_waits_is_not_queued, "trials in the queue"),
    (a_trial_that_runs_is_queued, "trials in the queue"),
    (an_epoch_is_taken_back, "went back"),
    (an_attempt_is_counted_twice, "went back"),
    (stretches_overlap, "stretches out of order"),
    (a_stretch_begins_late, "stretches out of order"),
    (an_older_checkpoint_holds_more, "checkpoints out of order"),
)


@pytest.mark.parametrize(("break_it", "found"), BROKEN, ids=[b.__name__ for b, _ in BROKEN])
def test_what_cannot_be_is_told(told: Story, break_it: Callable[[Machine], None], found: str) -> None:
    told.tell(TimerFired)
    break_it(told.machine)
    with pytest.raises(InvariantError, match=found):
        told.tell(TimerFired)


def test_no_job_starts_on_a_pilot_that_is_not_up(told: Story) -> None:
    told.machine.pilots.accepts_jobs = lambda pilot: False  # type: ignore[method-assign]  # the bug
    with pytest.raises(InvariantError, match="start on a pilot that is not up"):
        told.ends("0000.1", Outcome.LOST)


@pytest.mark.parametrize(("old", "new"), tuple(product(TrialState, TrialState)))
def test_a_trial_changes_its_state_as_the_table_allows(old: TrialState, new: TrialState) -> None:
    trial = TrialRecord(RUNS, 0, {}, [Stretch(0, 1, 1)], state=old)
    if new in TRIAL_TRANSITIONS[old]:
        trial.enter(new)
        assert trial.state is new
    else:
        with pytest.raises(InvariantError, match=f"trial 0000 cannot go from {old.value} to {new.value}"):
            trial.enter(new)
        assert trial.state is old


def test_a_trial_that_has_ended_goes_on_only_if_the_user_asks_for_more_and_a_job_never() -> None:
    """More retries, a larger budget, more rungs: it waits, or has its place in the ranking again."""
    again = {TrialState.WAITING, TrialState.PAUSED, TrialState.STOPPED}
    for state in TrialState:
        assert not state.is_final or TRIAL_TRANSITIONS[state] <= again - {state}
    assert TRIAL_TRANSITIONS[TrialState.FAILED] == {TrialState.WAITING}
    assert [s for s, after in JOB_TRANSITIONS.items() if not after] == [JobState.ENDED]
    assert set(TRIAL_TRANSITIONS) == set(TrialState)
    assert set(JOB_TRANSITIONS) == set(JobState)


def test_a_job_cannot_be_told_to_leave_twice(told: Story) -> None:
    job = job_of(told.machine)
    job.enter(JobState.LEAVING)
    with pytest.raises(InvariantError, match=r"job 0000\.1 cannot go from leaving to leaving"):
        job.enter(JobState.LEAVING)


def test_production_does_not_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE)
    told = Story(Setup("stopping", "none", {"a": Shape(1, 4)}).machine())
    told.begin(1, a=1)
    told.pilot("a-0")
    a_slot_is_lost(told.machine)
    assert told.tell(TimerFired) == []
