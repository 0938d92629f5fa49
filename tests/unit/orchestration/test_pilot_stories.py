"""Pilots that end, idle, come back and come to nothing, told as stories."""

from __future__ import annotations

from parsl_rasda.orchestration.events import (
    ContinueJob,
    EndJob,
    FinishStudy,
    Instruction,
    PilotLost,
    ReleasePilot,
    RequestPilot,
    StartJob,
    TimerFired,
)
from parsl_rasda.types import JobId, Outcome, PilotId, SiteName, StudyState, TrialId, TrialState
from tests.unit.orchestration.test_machine_stories import Story, of, site_of, story

EPOCH_S = 10.0  # as `Story.epoch` reports


def first_of(told: Story, deadline: float | None, **named) -> None:
    """Begin with one trial on one pilot of one GPU."""
    told.begin(1, a=1)
    assert len(of(StartJob, told.pilot("a-0", gpus=1, deadline=deadline, **named))) == 1


def test_no_epoch_starts_that_cannot_end_and_the_next_pilot_takes_the_trial_up() -> None:
    told = story(max_t=8, max_retries=0)
    first_of(told, deadline=100.0)
    told.now = 60.0
    assert of(ContinueJob, told.epoch("0000.1", 1, 0.5)), "29 s are left, an epoch takes 10"
    told.now = 82.0
    answer = told.epoch("0000.1", 2, 0.5)
    assert of(EndJob, answer) == [EndJob(JobId.parse("0000.1"), "walltime")], "ranks leave at 90 s"
    assert told.ends("0000.1") == [ReleasePilot(PilotId("a-0"))]
    assert told.pilot_ends("a-0") == [RequestPilot(PilotId("a-1"), SiteName("a"))]
    start = of(StartJob, told.pilot("a-1", gpus=1, deadline=1000.0))[0]
    assert (start.epoch, start.resume_from) == (2, "0000.1/2")
    assert told.machine.trials[TrialId("0000")].retries == 0


def test_nothing_starts_where_not_one_epoch_could_end() -> None:
    told = story(max_t=8)
    told.begin(2, a=1, b=1)
    told.pilot("a-0", gpus=2, deadline=200.0)
    told.epoch("0000.1", 1, 0.5)
    told.now = 180.0
    assert of(StartJob, told.ends("0001.1", Outcome.LOST)) == []
    assert of(StartJob, told.pilot("b-1", gpus=1, deadline=1000.0)), "another pilot has the time"


def test_a_trial_that_left_to_be_widened_does_not_start_again_where_not_one_epoch_could_end() -> None:
    told = story(max_t=8)
    told.begin(1, a=1)
    told.pilot("a-0", gpus=2, deadline=200.0)
    assert of(EndJob, told.epoch("0000.1", 1, 0.5)) == [EndJob(JobId.parse("0000.1"), "resize")]
    told.now = 185.0  # it took long to leave
    assert told.ends("0000.1") == [ReleasePilot(PilotId("a-0"))]


def test_epochs_that_no_pilot_is_long_enough_for_go_on_from_one_to_the_next() -> None:
    told = story(max_t=8)
    first_of(told, deadline=30.0)
    told.now = 24.0  # its epoch was begun on an earlier pilot, say
    told.machine.cluster_state.times.saw_epoch(TrialId("0000"), 1, SiteName("a"), 100.0)
    assert of(StartJob, told.ends("0000.1", Outcome.LOST)), "a fresh pilot would end too early as well"


def test_a_pilot_without_a_deadline_is_used_for_ever() -> None:
    told = story(max_t=8)
    first_of(told, deadline=None)
    told.now = 1e9
    assert of(ContinueJob, told.epoch("0000.1", 1, 0.5))


def test_a_script_is_not_told_to_go_on_where_it_never_asks() -> None:
    told = story(max_t=4, interactive=False)
    first_of(told, deadline=None)
    assert of(ContinueJob, told.epoch("0000.1", 1, 0.5)) == []
    assert [s.until for s in of(StartJob, told.ends("0000.1"))] == [2]


# ------------------------------------------------------------------------------------------ lost pilots


def test_nothing_starts_again_on_a_pilot_that_is_lost() -> None:
    told = story(max_t=8)
    told.begin(2, a=1)
    assert len(of(StartJob, told.pilot("a-0", gpus=2))) == 2
    assert told.tell(PilotLost, PilotId("a-0")) == []
    for job in ("0000.1", "0001.1"):
        assert told.ends(job, Outcome.LOST) == [], "neither a start nor a release: it goes by itself"
    assert told.pilot_ends("a-0") == [RequestPilot(PilotId("a-1"), SiteName("a"))]
    assert len(of(StartJob, told.pilot("a-1", gpus=2))) == 2


def test_the_jobs_of_a_lost_pilot_go_on_elsewhere_before_it_has_ended() -> None:
    told = story(max_t=8)
    told.begin(1, a=1, b=1)
    told.pilot("a-0", gpus=1)
    told.pilot("b-1", gpus=1)
    told.tell(PilotLost, PilotId("a-0"))
    (start,) = of(StartJob, told.ends("0000.1", Outcome.LOST))
    assert start.placement.site == "b"


def test_words_of_a_pilot_that_is_not_up_are_passed_over() -> None:
    told = story(max_t=8)
    told.begin(1, a=1)
    assert told.tell(PilotLost, PilotId("a-0")) == []
    assert of(StartJob, told.pilot("a-0"))


# ------------------------------------------------------------------------------------------ idle pilots


def tapering() -> Story:
    """Two pilots of one GPU each and two trials; the second one has just been stopped."""
    told = story(max_t=8)
    told.begin(2, a=2)
    told.pilot("a-0", gpus=1, release_idle_after_s=60.0)
    told.pilot("a-1", gpus=1, release_idle_after_s=60.0)
    told.epoch("0000.1", 1, 0.5)
    told.epoch("0001.1", 1, 0.9)
    assert told.machine.wake_at is None, "both work"
    told.ends("0001.1")
    return told


def test_an_idle_pilot_is_given_back_when_the_study_drains() -> None:
    told = tapering()
    due = told.machine.wake_at
    assert due == told.now + 60.0
    told.now = due - 2.0
    assert told.tell(TimerFired) == [], "not before its time"
    assert told.tell(TimerFired) == [ReleasePilot(PilotId("a-1"))]
    assert told.machine.wake_at is None
    assert told.tell(TimerFired) == [], "once"
    assert told.pilot_ends("a-1") == [], "there is no work for another"


def test_a_pilot_that_works_is_never_given_back() -> None:
    told = tapering()
    told.now += 1000.0
    assert of(ReleasePilot, told.tell(TimerFired)) == [ReleasePilot(PilotId("a-1"))]
    told.pilot_ends("a-1")
    told.now += 1000.0
    assert told.tell(TimerFired) == []
    assert of(ContinueJob, told.epoch("0000.1", 2, 0.4))


def test_a_pilot_that_was_given_back_is_asked_for_again_when_somebody_waits() -> None:
    told = story(max_t=8)
    told.begin(3, a=2)
    told.pilot("a-0", gpus=2)
    told.pilot("a-1", gpus=1, release_idle_after_s=60.0)
    told.epoch("0000.1", 1, 0.4)
    told.epoch("0001.1", 1, 0.4)
    told.epoch("0002.1", 1, 0.9)
    told.ends("0002.1")
    told.now += 60.0
    assert told.tell(TimerFired) == [ReleasePilot(PilotId("a-1"))]
    told.pilot_ends("a-1")
    assert told.loses("a-0") == [RequestPilot(PilotId("a-2"), SiteName("a"))], (
        "in place of the one that ended"
    )
    smaller = told.pilot("a-2", gpus=1)
    assert len(of(StartJob, smaller)) == 1
    assert of(RequestPilot, smaller) == [RequestPilot(PilotId("a-3"), SiteName("a"))], "one trial still waits"
    assert len(of(StartJob, told.pilot("a-3", gpus=1))) == 1


def test_pilots_beyond_the_least_are_asked_for_one_by_one_while_trials_wait() -> None:
    told = story(max_t=8)
    asked = told.begin(3, a=1, later=3)
    assert of(RequestPilot, asked) == [RequestPilot(PilotId("a-0"), SiteName("a"))]
    first = told.pilot("a-0", gpus=1)
    assert of(RequestPilot, first) == [RequestPilot(PilotId("a-1"), SiteName("a"))], "two trials wait"
    assert of(RequestPilot, told.epoch("0000.1", 1, 0.5)) == [], "one at a time"
    assert of(RequestPilot, told.pilot("a-1", gpus=1)) == [RequestPilot(PilotId("a-2"), SiteName("a"))]
    assert of(RequestPilot, told.pilot("a-2", gpus=1)) == [], "all have slots"
    assert told.loses("a-2") == [RequestPilot(PilotId("a-3"), SiteName("a"))], "it is replaced"
    assert of(RequestPilot, told.pilot("a-3", gpus=1)) == []


def test_a_pilot_beyond_the_least_is_replaced_only_if_somebody_waits() -> None:
    told = story(max_t=8)
    told.begin(2, a=1, later=1)
    told.pilot("a-0", gpus=1)
    told.pilot("a-1", gpus=1)
    told.epoch("0000.1", 1, 0.5)
    told.epoch("0001.1", 1, 0.9)
    told.ends("0001.1")
    assert told.pilot_ends("a-1") == [], "there is no work for another"
    assert told.loses("a-0") == [RequestPilot(PilotId("a-2"), SiteName("a"))], "this one is the least"
    assert len(of(StartJob, told.pilot("a-2", gpus=1))) == 1


# --------------------------------------------------------------------------- pilots that come to nothing


def test_a_site_whose_pilots_die_right_after_their_start_is_given_up() -> None:
    told = story(max_t=8, max_retries=99)
    told.begin(1, a=1)
    for n in range(3):
        assert of(StartJob, told.pilot(f"a-{n}"))
        if n:
            told.tell(PilotLost, PilotId(f"a-{n}"))
        last = told.loses(f"a-{n}")
        assert bool(of(RequestPilot, last)) == (n < 2)
    assert of(FinishStudy, last) == [FinishStudy(StudyState.NO_SITE, "walltime")]


def refused(told: Story, pilot: str, times: int = 3) -> Story:
    """A site refuses several pilots in a row; each request after the first answers the refusal before."""
    number = int(pilot.partition("-")[2])
    for _ in range(times):
        asked = of(RequestPilot, told.pilot_ends(f"{site_of(pilot)}-{number}", usable=False))
        number = int(asked[0].pilot.partition("-")[2]) if asked else number
    assert asked == [], "it is given up"
    return told


def two_sites() -> Story:
    """Two trials for the one GPU of a site that works; the other site has been given up at 6 s."""
    told = story(max_t=8, max_retries=99)
    told.begin(2, a=1, b=1)
    told.pilot("a-0", gpus=1)
    return refused(told, "b-1")


def test_a_site_that_was_given_up_is_asked_again_while_another_carries_on() -> None:
    told = two_sites()
    given_up_at = told.now
    assert told.machine.wake_at == given_up_at + 60.0
    assert told.machine.pilots.cooling_down == {"b": given_up_at + 60.0}
    told.now += 30.0
    assert of(RequestPilot, told.epoch("0000.1", 1, 0.5)) == [], "not before its time"
    told.now = given_up_at + 60.0
    assert told.tell(TimerFired) == [RequestPilot(PilotId("b-4"), SiteName("b"))]
    assert told.machine.wake_at is None
    assert not told.machine.pilots.cooling_down
    (start,) = of(StartJob, told.pilot("b-4", gpus=1))
    assert start.placement.site == "b"


def test_a_site_that_goes_on_refusing_is_asked_less_and_less_often() -> None:
    told = two_sites()
    pauses = []
    for number in range(4, 12):
        due = told.machine.wake_at
        assert due is not None
        pauses.append(due - told.now)
        told.now = due
        assert told.tell(TimerFired) == [RequestPilot(PilotId(f"b-{number}"), SiteName("b"))]
        assert told.pilot_ends(f"b-{number}", usable=False) == []
    assert pauses == [60.0, 120.0, 240.0, 480.0, 960.0, 1800.0, 1800.0, 1800.0]


def test_a_site_that_was_given_up_is_not_asked_for_what_nobody_waits_for() -> None:
    told = two_sites()
    told.ends("0000.1", Outcome.FAILED)
    assert len(told.machine.jobs) == 1, "the other trial runs, and nobody waits"
    assert told.machine.wake_at is None
    told.now += 100.0
    assert told.tell(TimerFired) == []
    (job,) = told.machine.jobs
    told.tell(PilotLost, PilotId("a-0"))
    assert of(RequestPilot, told.ends(str(job), Outcome.LOST)) == [
        RequestPilot(PilotId("b-4"), SiteName("b"))
    ]


def test_a_site_that_works_again_is_trusted_again_with_all_its_pilots() -> None:
    told = story(max_t=8, max_retries=99)
    told.begin(4, a=1, b=2)
    told.pilot("a-0", gpus=1)
    for pilot in ("b-1", "b-2", "b-3", "b-4"):
        told.pilot_ends(pilot, usable=False)
    told.now += 200.0
    assert told.tell(TimerFired) == [RequestPilot(PilotId("b-5"), SiteName("b"))], "one at a time"
    up = told.pilot("b-5", gpus=1)
    assert of(RequestPilot, up) == [RequestPilot(PilotId("b-6"), SiteName("b"))]


def test_the_end_of_the_last_site_ends_the_study_whatever_rests() -> None:
    told = two_sites()
    told.tell(PilotLost, PilotId("a-0"))
    told.ends("0000.1", Outcome.PREEMPTED)
    told.pilot_ends("a-0")
    last = refused_to_the_end(told, "a-4")
    assert last == [FinishStudy(StudyState.NO_SITE, "walltime")]


def refused_to_the_end(told: Story, pilot: str) -> list[Instruction]:
    site, number = site_of(pilot), int(pilot.partition("-")[2])
    while True:
        last = told.pilot_ends(f"{site}-{number}", usable=False)
        if not of(RequestPilot, last):
            return last
        number += 1


def test_pilots_that_bring_trials_on_may_die_as_often_as_they_like() -> None:
    told = story(max_t=8, max_retries=99)
    told.begin(1, a=1)
    for n in range(7):
        started = of(StartJob, told.pilot(f"a-{n}"))[0]
        told.epoch(str(started.job), n + 1, 0.5)
        assert of(RequestPilot, told.loses(f"a-{n}"))


# ------------------------------------------------------------------------------------- refused submissions


def refuses(told: Story, pilot: str) -> list[Instruction]:
    return told.pilot_ends(pilot, usable=False, refused=True)


def test_a_site_that_refuses_is_asked_after_2_s_and_then_half_as_often_whatever_trains_elsewhere() -> None:
    told = story(max_t=64, max_retries=99)
    told.begin(2, a=1, b=1)
    told.pilot("a-0", gpus=1)
    assert refuses(told, "b-1") == [], "not at once"
    pauses = []
    for number in range(2, 13):
        due = told.machine.wake_at
        pauses.append(due - told.now)
        told.now = max(told.now, due - 2.0)
        assert of(RequestPilot, told.epoch("0000.1", number, 0.5)) == [], "an epoch elsewhere is no reason"
        told.now = due
        assert told.tell(TimerFired) == [RequestPilot(PilotId(f"b-{number}"), SiteName("b"))]
        assert refuses(told, f"b-{number}") == []
    assert pauses == [2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 600.0, 600.0]


def test_epochs_on_the_pilot_that_a_site_has_are_no_reason_to_ask_it_for_the_second_it_refuses() -> None:
    told = story(max_t=64, max_retries=99)
    told.begin(2, a=2)
    told.pilot("a-0", gpus=1)
    asked = []
    refuses(told, "a-1")
    for epoch in range(1, 30):
        asked += of(RequestPilot, told.epoch("0000.1", epoch, 0.5))
        if asked:
            refuses(told, asked[-1].pilot)
    assert len(asked) <= 4, "within half a minute: after 2, 4, 8 and 16 s"


def test_a_site_that_refuses_three_times_with_no_other_ends_the_study() -> None:
    told = story(max_t=8)
    told.begin(1, a=1)
    for number in range(2):
        assert refuses(told, f"a-{number}") == []
        told.now = told.machine.wake_at
        assert told.tell(TimerFired) == [RequestPilot(PilotId(f"a-{number + 1}"), SiteName("a"))]
    assert refuses(told, "a-2") == [FinishStudy(StudyState.NO_SITE, "walltime")]


def test_a_pilot_that_ends_is_replaced_whatever_its_site_has_refused_beside_it() -> None:
    told = story(max_t=64, max_retries=99)
    told.begin(2, a=1, later=1)
    asked = of(RequestPilot, told.pilot("a-0", gpus=1, deadline=10_000.0))
    told.epoch("0000.1", 1, 0.5)
    for _ in range(5):  # no more than one is allowed there
        assert refuses(told, asked[0].pilot) == []
        told.now = told.machine.wake_at
        asked = of(RequestPilot, told.tell(TimerFired))
    refuses(told, asked[0].pilot)
    assert of(RequestPilot, told.loses("a-0")) == [RequestPilot(PilotId("a-7"), SiteName("a"))]
    assert refuses(told, "a-7") == [], "the first refusal since then, not the seventh"
    assert told.machine.wake_at == told.now + 2.0
    told.now = told.machine.wake_at
    assert of(RequestPilot, told.tell(TimerFired)) == [RequestPilot(PilotId("a-8"), SiteName("a"))]
    assert of(StartJob, told.pilot("a-8", gpus=1))


def test_what_is_refused_together_is_refused_once() -> None:
    told = story(max_t=8)
    told.begin(8, a=4)
    for number in range(4):
        told.now -= 1.0  # at the same moment
        assert refuses(told, f"a-{number}") == []
    assert told.machine.wake_at == told.now + 2.0
    told.now = told.machine.wake_at
    assert told.tell(TimerFired) == [RequestPilot(PilotId("a-4"), SiteName("a"))], "one to try"
    assert of(RequestPilot, told.pilot("a-4", gpus=1)) == [RequestPilot(PilotId("a-5"), SiteName("a"))]


def test_a_trial_that_waits_for_a_site_that_gives_up_goes_to_one_that_has_refused_once() -> None:
    told = story(max_t=8, max_retries=99)
    told.begin(1, a=1, b=1)
    told.pilot("a-0", gpus=1)
    told.epoch("0000.1", 1, 0.5)
    refuses(told, "b-1")
    asked = of(RequestPilot, told.loses("a-0"))
    while asked[0].site == "a":
        asked = of(RequestPilot, refuses(told, asked[0].pilot))
        while not asked:
            told.now = told.machine.wake_at
            asked = of(RequestPilot, told.tell(TimerFired))
    assert told.machine.pilots.is_given_up(SiteName("a"))
    (start,) = of(StartJob, told.pilot(asked[0].pilot, gpus=1))
    assert (start.placement.site, start.epoch) == ("b", 0), "its checkpoint is on the other"


# ------------------------------------------------------------------------------ the controller's allocation


def in_own_allocation(deadline: float = 100.0) -> Story:
    told = story(max_t=64, max_retries=0)
    told.begin(2, a=1)
    assert len(of(StartJob, told.pilot("a-0", gpus=2, deadline=deadline, is_own_allocation=True))) == 2
    return told


def test_at_the_end_of_the_allocation_it_is_in_the_controller_lets_all_save_and_ends() -> None:
    told = in_own_allocation()
    told.epoch("0000.1", 1, 0.5)
    due = told.machine.wake_at
    assert due is not None
    assert due < 100.0
    told.now = due
    assert told.tell(TimerFired) == [
        EndJob(JobId.parse("0000.1"), "interrupted"),
        EndJob(JobId.parse("0001.1"), "interrupted"),
    ]
    assert told.ends("0000.1", Outcome.PREEMPTED, "0000.1/2") == []
    (finish,) = told.ends("0001.1", Outcome.PREEMPTED, "0001.1/1")
    assert (finish.state, "allocation" in finish.cause) == (StudyState.INTERRUPTED, True)
    told.begin(2, a=1)
    starts = of(StartJob, told.pilot("a-1", gpus=2, deadline=1000.0, is_own_allocation=True))
    assert sorted(s.resume_from for s in starts) == ["0000.1/2", "0001.1/1"], "the next one goes on"
    assert [t.retries for t in told.machine.trials.values()] == [0, 0]


def test_an_own_allocation_too_short_for_another_epoch_is_left_neither_released_nor_replaced() -> None:
    told = in_own_allocation()
    told.now = 82.0
    assert of(EndJob, told.epoch("0000.1", 1, 0.5)) == [EndJob(JobId.parse("0000.1"), "walltime")]
    assert told.ends("0000.1") == [], "the other one still trains"
    told.epoch("0001.1", 1, 0.5)
    (finish,) = told.ends("0001.1")
    assert finish.state is StudyState.INTERRUPTED


def test_an_own_allocation_that_is_taken_away_at_its_end_ends_the_controller() -> None:
    told = in_own_allocation()
    told.now = 99.0
    told.tell(PilotLost, PilotId("a-0"))
    told.ends("0000.1", Outcome.PREEMPTED)
    told.ends("0001.1", Outcome.PREEMPTED)
    assert told.machine.state is StudyState.INTERRUPTED
    assert told.pilot_ends("a-0") == []
    assert all(not t.state.is_final for t in told.machine.trials.values())


def test_a_pilot_of_the_own_allocation_that_has_ended_unannounced_ends_the_controller() -> None:
    told = in_own_allocation()
    told.now = 99.0
    found = told.pilot_ends("a-0")
    assert of(RequestPilot, found) == []
    told.ends("0000.1", Outcome.PREEMPTED)
    (finish,) = of(FinishStudy, told.ends("0001.1", Outcome.PREEMPTED))
    assert (finish.state, "allocation" in finish.cause) == (StudyState.INTERRUPTED, True)


def test_a_pilot_in_the_own_allocation_that_dies_early_is_replaced() -> None:
    told = in_own_allocation(deadline=10_000.0)
    told.epoch("0000.1", 1, 0.5)
    told.tell(PilotLost, PilotId("a-0"))
    assert told.loses("a-0") == [RequestPilot(PilotId("a-1"), SiteName("a"))]


# ------------------------------------------------------------------------------------------ standstills


def outgrown() -> Story:
    """A trial has outgrown its site, and the other site, which has more room, has refused."""
    told = story(variant="promotion", growth="strict", max_t=4)
    told.begin(2, a=1, c=1)
    told.pilot("a-0", gpus=1)
    refuses(told, "c-1")
    told.epoch("0000.1", 1, 0.5)
    told.ends("0000.1")
    told.epoch("0001.1", 1, 0.2)
    assert told.ends("0001.1") == [RequestPilot(PilotId("c-2"), SiteName("c"))], "nothing else is left"
    return told


def test_a_trial_that_has_outgrown_its_site_waits_for_another_that_had_refused() -> None:
    told = outgrown()
    (start,) = of(StartJob, told.pilot("c-2", gpus=4))
    assert (start.job.trial, start.placement.site, start.epoch) == ("0001", "c", 0)


def test_a_trial_that_has_outgrown_every_site_does_not_start_afresh_for_nothing() -> None:
    told = outgrown()
    found = told.pilot("c-2", gpus=1)
    assert not of(StartJob, found)
    (end,) = of(FinishStudy, found)
    assert end.state is StudyState.NO_SITE
    assert "needs 2 GPUs at once" in end.cause


def test_paused_trials_get_a_pilot_also_when_the_first_one_asked_for_is_refused() -> None:
    told = story(variant="synchronous", max_t=4, eta=2)
    told.begin(4, a=1)
    told.pilot("a-0", gpus=1)
    for number, loss in enumerate((0.5, 0.1, 0.7)):
        told.epoch(f"000{number}.1", 1, loss)
        told.ends(f"000{number}.1")
    told.epoch("0003.1", 1, 0.9)
    told.pilot_ends("a-0")
    told.ends("0003.1")
    assert told.state("0000") is TrialState.PAUSED, "who goes on once there are slots"
    assert told.state("0001") is TrialState.WAITING, "the slot that was just being left was for it"
    refuses(told, "a-1")
    told.now = told.machine.wake_at
    assert told.tell(TimerFired) == [RequestPilot(PilotId("a-2"), SiteName("a"))]
    assert of(StartJob, told.pilot("a-2", gpus=1))
