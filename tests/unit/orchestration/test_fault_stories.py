"""Whose fault it was, told as stories."""

from __future__ import annotations

from parsl_rasda.orchestration.events import (
    FinishStudy,
    Instruction,
    JobEnded,
    SetAside,
    StartJob,
    StudyStarted,
    TimerFired,
    TrialFinished,
)
from parsl_rasda.orchestration.summary import summarise
from parsl_rasda.orchestration.usage import Usage
from parsl_rasda.types import Blame, JobId, Outcome, SiteName, StudyState, TrialState
from tests.unit.orchestration.test_machine_stories import Story, of, story


def ends(
    told: Story, job: str, blame: Blame, outcome: Outcome = Outcome.LOST, cause: str = "because"
) -> list[Instruction]:
    return told.tell(JobEnded, JobId.parse(job), outcome, cause, blame=blame)


def slot_of(start: StartJob) -> str:
    return start.placement.slots[0]


def test_a_sure_sign_sets_a_slot_aside_and_its_trial_goes_on_elsewhere() -> None:
    told = story("none", max_retries=0)
    told.begin(1, a=1)
    (first,) = of(StartJob, told.pilot("a-0", gpus=2))
    found = ends(told, "0000.1", Blame.SLOT, cause="ECC")
    (aside,) = of(SetAside, found)
    (second,) = of(StartJob, found)
    assert aside.what == f"slot {slot_of(first)}"
    assert slot_of(second) != slot_of(first)
    (shown,) = summarise("s", told.machine, Usage())["set_aside"]
    assert (shown["slot"], shown["cause"]) == (slot_of(first), "ECC")


def test_a_trial_that_dies_everywhere_has_failed_once_it_dies_where_another_fared_well() -> None:
    told = story("none", max_retries=0, max_t=16)
    told.begin(2, a=1)
    first, good = of(StartJob, told.pilot("a-0", gpus=3))
    told.epoch("0001.1", 1, 0.5)
    (again,) = of(StartJob, ends(told, "0000.1", Blame.UNSURE))
    assert slot_of(again) not in {slot_of(first), slot_of(good)}
    assert of(TrialFinished, ends(told, "0000.2", Blame.UNSURE)) == [], "nobody has trained on either"
    assert told.state("0000") is TrialState.WAITING
    told.ends("0001.1", Outcome.PREEMPTED)
    told.epoch("0001.2", 2, 0.5)
    if told.state("0000") is not TrialState.FAILED:
        (end,) = of(TrialFinished, ends(told, "0000.3", Blame.UNSURE, cause="SIGSEGV"))
        assert (end.state, "SIGSEGV" in end.reason) == (TrialState.FAILED, True)
    assert told.state("0001") is TrialState.RUNNING


def test_two_trials_that_fail_in_a_row_set_a_slot_aside_which_is_tried_again_by_a_narrow_job() -> None:
    told = story("none", max_retries=0, max_t=16)
    told.begin(2, a=1)
    told.pilot("a-0", gpus=1)
    ends(told, "0000.1", Blame.UNSURE)
    found = ends(told, "0001.1", Blame.UNSURE)
    assert of(TrialFinished, found) == []
    assert [s.what for s in of(SetAside, found)] == ["slot a-0-n0:0"]
    told.now = told.machine.wake_at or 0.0
    (probe,) = of(StartJob, told.tell(TimerFired))
    assert told.machine.cluster_state.ledger.is_reduced, "only narrow jobs may use it"
    told.epoch(str(probe.job), 1, 0.5)
    assert summarise("s", told.machine, Usage())["set_aside"] == []
    assert not told.machine.cluster_state.ledger.is_reduced, "all may"


def test_a_trial_may_die_as_often_as_the_study_says_where_others_fare_well_on_the_same_slot() -> None:
    told = story("none", max_retries=1, max_t=16)
    told.begin(3, a=1)
    first, _ = of(StartJob, told.pilot("a-0", gpus=2))
    (other,) = of(StartJob, ends(told, "0000.1", Blame.UNSURE))
    assert (other.job.trial, slot_of(other)) == ("0002", slot_of(first)), "it is to try another slot"
    told.epoch("0002.1", 1, 0.5)
    assert told.state("0000") is TrialState.WAITING, "it has died once"


def test_a_trial_that_dies_in_a_wide_job_finds_out_in_a_narrow_one_which_slot_it_was() -> None:
    told = story("strict", max_retries=3, max_t=4, max_workers=2)
    told.begin(1, a=1)
    told.pilot("a-0", gpus=2)
    told.epoch("0000.1", 1, 0.5)
    (wide,) = of(StartJob, told.ends("0000.1"))
    (narrow,) = of(StartJob, ends(told, "0000.2", Blame.UNSURE))
    assert (wide.placement.world_size, narrow.placement.world_size) == (2, 1)


def test_what_fails_its_probes_rests_twice_as_long_each_time_but_not_for_ever() -> None:
    told = story("none", max_retries=0, max_t=16)
    told.begin(2, a=1)
    told.pilot("a-0", gpus=2)
    job, rests_s, times = "0000.1", [], []
    for _ in range(8):
        (aside,) = of(SetAside, ends(told, job, Blame.SLOT, cause="ECC"))
        rests_s.append(aside.until - told.now)
        times.append(aside.times)
        assert told.machine.wake_at == aside.until
        told.now = aside.until
        (probe,) = of(StartJob, told.tell(TimerFired))
        job = str(probe.job)
    assert rests_s == [60, 120, 240, 480, 960, 1800, 1800, 1800]
    assert times == [1, 2, 3, 4, 5, 6, 7, 8]


def test_three_trials_that_fail_alike_end_the_search_and_start_afresh_when_it_was_mended() -> None:
    told = story("none", variant="synchronous", max_t=2)
    told.configs = iter({"lr": n} for n in range(100))
    told.begin(8, a=1)
    told.pilot("a-0", gpus=2)
    for job in ("0000.1", "0001.1", "0002.1"):
        found = ends(told, job, Blame.TRIAL, Outcome.FAILED, "ModuleNotFoundError: x")
    assert told.machine.state is StudyState.FAILED
    assert of(FinishStudy, found) == [], "one is still leaving"
    (end,) = of(FinishStudy, ends(told, "0003.1", Blame.CONTROLLER, Outcome.PREEMPTED))
    assert end == FinishStudy(StudyState.FAILED, "all trials fail alike: ModuleNotFoundError: x")
    told.tell(StudyStarted, 8, {SiteName("a"): 1}, True)
    assert told.state("0000") is TrialState.WAITING
    told.pilot("a-1", gpus=2)
    told.play(lambda trial, epoch: 0.1 + 0.1 * int(trial) + 1 / epoch)
    assert told.machine.state is StudyState.DONE
    assert {t.id for t in told.machine.trials.values() if t.state is TrialState.COMPLETED} == {
        "0000",
        "0001",
        "0002",
        "0003",
    }
    assert all(t.retries == 0 for t in told.machine.trials.values())
