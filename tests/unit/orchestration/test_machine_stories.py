from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest

from parsl_rasda.orchestration.events import (
    ContinueJob,
    EndJob,
    EpochReported,
    FinishStudy,
    Instruction,
    JobEnded,
    JobStarted,
    ObserveTrial,
    PilotEnded,
    PilotStarted,
    ProposeTrial,
    ReleasePilot,
    RequestPilot,
    SearchExhausted,
    StartJob,
    StudyInterrupted,
    StudyStarted,
    TrialFinished,
    TrialProposed,
)
from parsl_rasda.orchestration.machine import Machine
from parsl_rasda.protocol import Checkpoint
from parsl_rasda.types import (
    GradientNoise,
    JobId,
    NodeName,
    NodeSlots,
    Outcome,
    PilotId,
    SiteName,
    StudyState,
    TrialId,
    TrialState,
)
from tests.unit.orchestration.random_world import Setup, Shape


class Story:
    """A machine that is told one event a second; proposals are answered at once."""

    def __init__(self, machine: Machine, searched: int = 1000) -> None:
        self.machine, self.now, self.searched = machine, 0.0, searched
        self.configs: Iterator[dict[str, int]] = iter(())

    def tell(self, kind, *values, **named) -> list[Instruction]:
        self.now += 1.0
        found = list(self.machine.handle(kind(self.now, *values, **named)))
        asked = [i for i in found if isinstance(i, ProposeTrial)]
        for ask in asked:
            if len(self.machine.trials) < self.searched:
                found += self.tell(TrialProposed, ask.trial, next(self.configs, {}))
            else:
                found += self.tell(SearchExhausted)
        return found

    def begin(self, samples: int, *, later: int = 0, **pilots: int) -> list[Instruction]:
        more = {SiteName("a"): later} if later else {}
        return self.tell(StudyStarted, samples, {SiteName(s): n for s, n in pilots.items()}, later=more)

    def pilot(self, pilot: str, nodes: int = 1, gpus: int = 4, **named) -> list[Instruction]:
        shape = tuple(NodeSlots(NodeName(f"{pilot}-n{i}"), tuple(range(gpus))) for i in range(nodes))
        return self.tell(PilotStarted, PilotId(pilot), site_of(pilot), shape, **named)

    def pilot_ends(self, pilot: str, *, usable: bool = True, refused: bool = False) -> list[Instruction]:
        return self.tell(PilotEnded, PilotId(pilot), site_of(pilot), "walltime", usable, refused)

    def loses(self, pilot: str) -> list[Instruction]:
        """A pilot goes: jobs end first, and what is started there meanwhile finds it gone."""
        there = [j for j, t in self.machine.jobs.items() if t.job and t.job.placement.pilot == pilot]
        for job in there:
            self.ends(str(job), Outcome.PREEMPTED)
        told = self.pilot_ends(pilot)
        late = [j for j, t in self.machine.jobs.items() if t.job and t.job.placement.pilot == pilot]
        for job in late:
            told += self.ends(str(job), Outcome.PREEMPTED)
        return told

    def epoch(self, job: str, epoch: int, loss: float, *, saved: bool = True) -> list[Instruction]:
        checkpoint = Checkpoint(f"{job}/{epoch}", epoch) if saved else None
        return self.tell(EpochReported, JobId.parse(job), epoch, {"loss": loss}, 10.0, checkpoint)

    def ends(self, job: str, outcome=Outcome.REACHED, checkpoint: str | None = None) -> list[Instruction]:
        return self.tell(JobEnded, JobId.parse(job), outcome, "because", checkpoint)

    def finds_nothing(self, job: str, place: str) -> list[Instruction]:
        """The checkpoint that a job was to go on from is gone."""
        return self.tell(JobEnded, JobId.parse(job), Outcome.LOST, "gone", unreadable=place)

    def on(self, trial: str, *, leaves: bool = True) -> list[Instruction]:
        """A trial trains for one more epoch, the faster the wider, and leaves if it is told to."""
        record = self.machine.trials[TrialId(trial)]
        job, done = record.job.id, record.epoch + 1
        said = (
            job,
            done,
            {"loss": 0.1},
            100.0 / record.job.placement.world_size,
            Checkpoint(f"{job}/{done}", done),
        )
        found = self.tell(EpochReported, *said)
        return found + self.ends(str(job)) if leaves and record.job.is_leaving else found

    def world_size(self, trial: str) -> int:
        return self.machine.trials[TrialId(trial)].job.placement.world_size

    def play(self, loss: Callable[[str, int], float]) -> None:
        """Let every job report and leave as it is told, the one behind first, until all is done."""
        while self.machine.jobs:
            trial = min(self.machine.jobs.values(), key=lambda t: (t.epoch, t.age))
            job = trial.job
            if not job.is_leaving:
                self.epoch(str(job.id), trial.epoch + 1, loss(trial.id, trial.epoch + 1))
            if job.is_leaving:
                self.ends(str(job.id))

    def state(self, trial: str) -> TrialState:
        return self.machine.trials[TrialId(trial)].state


def site_of(pilot: str) -> SiteName:
    return SiteName(pilot.partition("-")[0])


def story(growth: str = "elastic", variant: str = "stopping", **named) -> Story:
    searched = named.pop("searched", 1000)
    return Story(Setup(variant, growth, {"a": Shape(1, 4)}, **named).machine(), searched)


def of(kind, instructions: list[Instruction]) -> list:
    return [i for i in instructions if isinstance(i, kind)]


def test_a_study_from_the_first_pilot_to_the_last_trial() -> None:
    told = story(max_t=2)
    assert told.begin(2, a=1) == [RequestPilot(PilotId("a-0"), SiteName("a"))]
    starts = of(StartJob, told.pilot("a-0", gpus=2))
    assert [(str(s.job), s.placement.world_size, s.until) for s in starts] == [
        ("0000.1", 1, 1),
        ("0001.1", 1, 1),
    ]
    assert told.tell(JobStarted, JobId.parse("0000.1")) == []
    first = told.epoch("0000.1", 1, 0.5)
    assert first == [
        ObserveTrial(TrialId("0000"), 1, 0.5),
        ContinueJob(JobId.parse("0000.1"), until=2, replicas=2),
    ]
    stopped = told.epoch("0001.1", 1, 0.6)
    assert of(EndJob, stopped) == [EndJob(JobId.parse("0001.1"), "stopped")]
    assert of(TrialFinished, stopped)[0].state is TrialState.STOPPED
    assert told.ends("0001.1") == []
    last = told.epoch("0000.1", 2, 0.4)
    assert of(TrialFinished, last)[0].state is TrialState.COMPLETED
    assert told.ends("0000.1") == [FinishStudy(StudyState.DONE)]


def test_a_trial_widens_into_the_slots_of_one_that_left_and_starts_once_it_has_left_itself() -> None:
    told = story(max_t=16)
    told.begin(2, a=1)
    told.pilot("a-0", gpus=2)
    told.epoch("0000.1", 1, 0.1)
    told.epoch("0001.1", 1, 0.9)
    assert of(StartJob, told.ends("0001.1")) == []
    assert told.epoch("0000.1", 2, 0.1)[-1] == EndJob(JobId.parse("0000.1"), "resize")
    (start,) = of(StartJob, told.ends("0000.1"))
    assert (str(start.job), start.placement.world_size, start.epoch) == ("0000.2", 2, 2)
    assert start.resume_from == "0000.1/2"
    assert start.schedule == ((0, 1), (1, 2), (2, 4))


def test_only_one_trial_shrinks_for_one_that_waits() -> None:
    """Two hold four GPUs each, and a third one loses its pilot: what one of the two gives is enough."""
    told = story(max_t=64, max_workers=4)
    told.begin(3, a=2)
    told.pilot("a-1", gpus=1)
    told.pilot("a-0", gpus=8)
    for _ in range(2):
        for trial in ("0001", "0002"):
            told.on(trial)
    assert [told.world_size(trial) for trial in ("0001", "0002")] == [4, 4]
    told.loses("a-1")
    assert told.on("0001", leaves=False)[-1] == EndJob(JobId.parse("0001.3"), "resize")
    assert of(ContinueJob, told.on("0002")), "one GPU is wanted, and two are about to be free"
    started = of(StartJob, told.ends("0001.3"))
    assert {s.job.trial: s.placement.world_size for s in started} == {"0000": 1, "0001": 2}
    assert of(ContinueJob, told.on("0002"))


@pytest.mark.parametrize("outcome", [Outcome.LOST, Outcome.PREEMPTED])
def test_a_trial_lost_while_it_moves_costs_nothing_and_goes_on(outcome: Outcome) -> None:
    told = story(max_t=16, max_retries=0)
    told.begin(1, a=1)
    told.pilot("a-0", gpus=2)
    assert told.epoch("0000.1", 1, 0.1)[-1] == EndJob(JobId.parse("0000.1"), "resize")
    (start,) = of(StartJob, told.ends("0000.1", outcome))
    assert start.epoch == 1


def test_a_trial_whose_pilot_goes_while_it_moves_waits_for_the_next_one() -> None:
    told = story(max_t=16, max_retries=0)
    told.begin(1, a=1)
    told.pilot("a-0", gpus=2)
    told.epoch("0000.1", 1, 0.1)
    told.ends("0000.1", Outcome.LOST)  # it starts anew on a pilot that goes at the same moment
    assert of(RequestPilot, told.pilot_ends("a-0"))
    told.ends("0000.2", Outcome.PREEMPTED)
    assert told.state("0000") is TrialState.WAITING
    (start,) = of(StartJob, told.pilot("a-1", gpus=2))
    assert (start.epoch, start.placement.pilot) == (1, "a-1")


def test_losses_are_retried_from_the_last_checkpoint_and_then_fail_the_trial() -> None:
    told = story(max_t=4, max_retries=1)
    told.begin(1, a=1)
    told.pilot("a-0", gpus=1)
    told.epoch("0000.1", 1, 0.5)
    told.epoch("0000.1", 2, 0.5, saved=False)
    (again,) = of(StartJob, told.ends("0000.1", Outcome.LOST))
    assert (str(again.job), again.epoch, again.resume_from) == ("0000.2", 1, "0000.1/1")
    last = told.ends("0000.2", Outcome.LOST)
    (conclusion,) = of(TrialFinished, last)
    assert (conclusion.state, conclusion.metric) == (TrialState.FAILED, None)
    assert "because" in conclusion.reason
    assert of(FinishStudy, last) == [FinishStudy(StudyState.FAILED)]


def test_a_trial_whose_checkpoint_is_gone_goes_on_from_the_one_before_and_then_from_the_start() -> None:
    told = story("none", max_t=4, max_retries=0)
    told.begin(1, a=1)
    told.pilot("a-0")
    for epoch in (1, 2):
        told.epoch("0000.1", epoch, 0.5)
    told.ends("0000.1", Outcome.PREEMPTED)
    (start,) = of(StartJob, told.finds_nothing("0000.2", "0000.1/2"))
    assert (start.epoch, start.resume_from, start.schedule) == (1, "0000.1/1", ((0, 1), (1, 2)))
    (start,) = of(StartJob, told.finds_nothing("0000.3", "0000.1/1"))
    assert (start.epoch, start.resume_from, start.schedule) == (0, None, ((0, 1),))
    trial = told.machine.trials[TrialId("0000")]
    assert (trial.retries, trial.reason) == (0, "gone")
    for epoch in (1, 2, 3):
        told.epoch("0000.4", epoch, 0.5)
    assert told.state("0000") is TrialState.RUNNING
    told.epoch("0000.4", 4, 0.5)
    assert told.state("0000") is TrialState.COMPLETED


def test_checkpoints_that_vanish_again_and_again_fail_their_trial_in_the_end() -> None:
    told = story("none", max_t=4, max_retries=1)
    told.begin(1, a=1)
    told.pilot("a-0")
    for attempt in range(1, 20, 2):
        told.epoch(f"0000.{attempt}", 1, 0.5)
        told.ends(f"0000.{attempt}", Outcome.PREEMPTED)
        told.finds_nothing(f"0000.{attempt + 1}", f"0000.{attempt}/1")
        if told.state("0000") is TrialState.FAILED:
            break
    assert attempt > 9
    assert "gone" in told.machine.trials[TrialId("0000")].reason


def test_preemptions_cost_no_retry_unless_nothing_ever_finishes() -> None:
    told = story(max_t=4, max_retries=0)
    told.begin(1, a=1)
    told.pilot("a-0", gpus=1)
    for attempt in range(1, 6):
        assert of(StartJob, told.ends(f"0000.{attempt}", Outcome.PREEMPTED))
    told.epoch("0000.6", 1, 0.5)
    for attempt in range(6, 11):
        assert of(StartJob, told.ends(f"0000.{attempt}", Outcome.PREEMPTED))
    assert told.state("0000") is TrialState.RUNNING
    assert of(FinishStudy, told.ends("0000.11", Outcome.PREEMPTED)) == [FinishStudy(StudyState.FAILED)]


def test_user_code_that_raises_or_returns_early_fails_its_trial_at_once() -> None:
    told = story(max_t=4)
    told.begin(2, a=1)
    told.pilot("a-0", gpus=2)
    (raised,) = of(TrialFinished, told.ends("0000.1", Outcome.FAILED))
    (returned,) = of(TrialFinished, told.ends("0001.1", Outcome.REACHED))
    assert (raised.state, returned.state) == (TrialState.FAILED, TrialState.FAILED)
    assert "returned after epoch 0" in returned.reason


def test_user_code_that_ends_its_trial_after_a_report_completes_it() -> None:
    told = story(max_t=4)
    told.begin(2, a=1)
    told.pilot("a-0", gpus=2)
    told.epoch("0000.1", 1, 0.1)
    job = JobId.parse("0000.1")
    (finished,) = of(TrialFinished, told.tell(JobEnded, job, Outcome.REACHED, "", "0000.1/1", finished=True))
    assert (finished.state, finished.metric) == (TrialState.COMPLETED, 0.1)
    assert "ended by itself after epoch 1" in finished.reason
    told.play(lambda _, epoch: 1.0 / epoch)
    assert told.state("0001").is_final
    assert told.machine.state is StudyState.DONE


def test_user_code_that_ends_its_trial_while_it_is_to_move_completes_it() -> None:
    told = story(max_t=8)
    told.begin(2, a=1)
    told.pilot("a-0", gpus=2)
    told.epoch("0000.1", 1, 0.1)
    told.tell(StudyInterrupted)
    told.tell(JobEnded, JobId.parse("0000.1"), Outcome.REACHED, "", "0000.1/1", finished=True)
    assert told.state("0000") is TrialState.COMPLETED


@pytest.mark.parametrize("variant", ["stopping", "promotion", "synchronous"])
@pytest.mark.parametrize("epoch", [1, 2])
def test_a_diverged_trial_fails_alone(variant: str, epoch: int) -> None:
    told = story(variant=variant, max_t=4)
    told.begin(2, a=1)
    told.pilot("a-0", gpus=2)
    told.play(lambda trial, done: math.nan if (trial, done) == ("0000", epoch) else 0.1 + 0.1 * int(trial))
    assert told.machine.state is StudyState.DONE
    assert {t.id for t in told.machine.trials.values() if t.state is TrialState.FAILED} == {"0000"}


# ------------------------------------------------------------------------ what was found by reading


def test_a_search_that_runs_dry_lets_the_survivors_of_a_synchronous_rung_go_on() -> None:
    told = story(variant="synchronous", max_t=2, searched=2)
    told.begin(16, a=1)
    told.pilot("a-0", gpus=4)
    assert told.machine.num_samples == 2
    for trial, loss in (("0000", 0.5), ("0001", 0.6)):
        told.epoch(f"{trial}.1", 1, loss)
        told.ends(f"{trial}.1")
    assert told.state("0001") is TrialState.STOPPED
    assert told.state("0000") is TrialState.RUNNING


def test_a_search_that_is_dry_from_the_start_fails_the_study() -> None:
    told = story(searched=0)
    told.begin(4, a=1)
    assert told.pilot("a-0")[-1] == FinishStudy(StudyState.FAILED)


def test_a_smaller_budget_on_resume_completes_the_rung() -> None:
    told = story(variant="synchronous", max_t=2)
    told.begin(3, a=1)
    told.pilot("a-0", gpus=1)
    told.epoch("0000.1", 1, 0.5)
    told.ends("0000.1")
    told.epoch("0001.1", 1, 0.6)
    told.tell(StudyInterrupted)
    told.ends("0001.1")
    told.begin(2, a=1)
    told.pilot("a-1", gpus=1)
    assert told.state("0001") is TrialState.STOPPED
    assert told.state("0000") is TrialState.RUNNING


def test_a_study_ends_once_however_often_ctrl_c_is_pressed() -> None:
    told = story()
    told.begin(1, a=1)
    told.pilot("a-0")
    told.tell(StudyInterrupted)
    assert told.ends("0000.1", Outcome.PREEMPTED) == [FinishStudy(StudyState.INTERRUPTED)]
    assert told.tell(StudyInterrupted) == []
    assert told.pilot_ends("a-0") == []


def test_ctrl_c_after_the_end_leaves_a_study_done() -> None:
    told = story(max_t=1)
    told.begin(1, a=1)
    told.pilot("a-0")
    told.epoch("0000.1", 1, 0.5)
    assert told.ends("0000.1") == [FinishStudy(StudyState.DONE)]
    assert told.tell(StudyInterrupted) == []
    assert told.machine.state is StudyState.DONE


def test_a_study_of_which_nothing_is_left_ends_without_a_pilot() -> None:
    told = story(max_t=1)
    told.begin(1, a=1)
    told.pilot("a-0")
    told.epoch("0000.1", 1, 0.5)  # the controller dies before the job has left
    assert told.begin(1, a=1) == [FinishStudy(StudyState.DONE)]


def test_a_larger_budget_takes_a_study_up_again() -> None:
    told = story(max_t=1)
    told.begin(1, a=1)
    told.pilot("a-0")
    told.epoch("0000.1", 1, 0.5)
    told.ends("0000.1")
    assert of(RequestPilot, told.begin(2, a=1))
    assert [str(s.job) for s in of(StartJob, told.pilot("a-1"))] == ["0001.1"]
    told.epoch("0001.1", 1, 0.4)
    assert told.ends("0001.1") == [FinishStudy(StudyState.DONE)]


def test_a_larger_budget_never_ends_a_trial_twice() -> None:
    """Whoever the end of a study left behind at a rung stays behind."""
    told = story(variant="promotion", max_t=2, num_workers=1)
    told.begin(3, a=1)
    told.pilot("a-0", gpus=3)
    for trial, loss in (("0000", 0.5), ("0001", 0.6), ("0002", 0.7)):
        told.epoch(f"{trial}.1", 1, loss)
        told.ends(f"{trial}.1")
    told.epoch("0000.2", 2, 0.4)
    assert told.ends("0000.2") == [FinishStudy(StudyState.DONE)]
    told.begin(9, a=1)
    ended = {t.id: t.state for t in told.machine.trials.values()}
    told.pilot("a-1", gpus=6)
    told.play(lambda _, epoch: 0.9 / epoch)
    assert {t: told.state(t) for t in ended} == ended
    assert told.machine.state is StudyState.DONE


def test_a_preempted_trial_resumes_at_the_epoch_that_its_checkpoint_holds() -> None:
    told = story(max_t=8)
    told.begin(1, a=1)
    told.pilot("a-0", gpus=1)
    told.epoch("0000.1", 1, 0.5)
    told.epoch("0000.1", 2, 0.5)
    told.epoch("0000.1", 3, 0.5, saved=False)
    (start,) = of(StartJob, told.ends("0000.1", Outcome.PREEMPTED, "0000.1/2"))
    assert (start.epoch, start.resume_from) == (2, "0000.1/2")


@pytest.mark.parametrize("outcome", [Outcome.PREEMPTED, Outcome.REACHED])
def test_a_checkpoint_written_on_leaving_is_used(outcome: Outcome) -> None:
    told = story(max_t=8, restart_s=0.0)
    told.begin(1, a=1)
    told.pilot("a-0", gpus=1)
    told.epoch("0000.1", 1, 0.5)
    told.epoch("0000.1", 2, 0.5)
    told.epoch("0000.1", 3, 0.5, saved=False)
    told.tell(StudyInterrupted)
    told.ends("0000.1", outcome, "0000.1/3")
    told.begin(1, a=1)
    (start,) = of(StartJob, told.pilot("a-1", gpus=1))
    assert (start.epoch, start.resume_from) == (3, "0000.1/3")


def test_a_trial_that_has_ended_stays_as_it_ended_whatever_its_job_still_says() -> None:
    told = story(max_t=8)
    told.begin(1, a=1)
    told.pilot("a-0", gpus=1, interactive=False)
    told.epoch("0000.1", 1, 0.5)
    (start,) = of(StartJob, told.ends("0000.1"))
    told.epoch("0000.2", 2, 0.5)
    assert start.until == 2
    told.ends("0000.2")
    told.epoch("0000.3", 3, math.nan)
    assert told.state("0000") is TrialState.FAILED
    assert told.epoch("0000.3", 4, 0.1) == []
    assert told.state("0000") is TrialState.FAILED


@pytest.mark.parametrize("growth", ["elastic", "strict", "none"])
def test_a_request_that_can_never_fit_ends_the_study_at_once(growth: str) -> None:
    told = story(growth, num_workers=4, max_t=8)
    told.begin(2, a=1)
    (finish,) = of(FinishStudy, told.pilot("a-0", gpus=2))
    assert finish.state is StudyState.NO_SITE
    assert "needs" in finish.cause


def test_strict_refuses_a_width_in_the_middle_that_no_pilot_has() -> None:
    """5, 10, then 12 by `max_workers`: three nodes of 4 take 12 evenly, but never 10."""
    told = story("strict", num_workers=5, max_workers=12, max_t=4)
    told.begin(1, a=1)
    (finish,) = of(FinishStudy, told.pilot("a-0", nodes=3, gpus=4))
    assert finish.state is StudyState.NO_SITE


def test_a_trial_that_outgrows_its_site_starts_afresh_where_it_fits() -> None:
    told = story("strict", max_t=2)
    told.begin(2, a=1, b=1)
    told.pilot("a-0", gpus=1)
    told.pilot("b-1", gpus=2)
    sites = {t.id: t.site for t in told.machine.trials.values()}
    small = next(t for t, site in sites.items() if site == "a")
    other = next(t for t, site in sites.items() if site == "b")
    told.epoch(f"{other}.1", 1, 0.9)
    told.epoch(f"{small}.1", 1, 0.1)
    told.ends(f"{small}.1")
    told.ends(f"{other}.1")
    while told.machine.jobs:  # the other one, if it goes on, is done first
        job = next(iter(told.machine.jobs.values()))
        if job.id == small:
            break
        told.epoch(str(job.job.id), 2, 0.9)
        told.ends(str(job.job.id)) if job.job else None
    trial = told.machine.trials[small]
    assert (trial.site, trial.epoch) == ("b", 0)
    assert trial.job is not None
    assert (trial.job.placement.world_size, trial.job.until) == (1, 1), "each stretch with its own replicas"
    told.epoch(str(trial.job.id), 1, 0.1)
    told.ends(str(trial.job.id))
    assert (trial.site, trial.epoch, trial.job.placement.world_size) == ("b", 1, 2)


def test_a_study_ends_when_the_only_large_enough_site_cannot_be_had() -> None:
    told = story(num_workers=4, max_t=2)
    told.begin(2, small=1, large=1)
    told.pilot("small-0", gpus=2)
    for number in (1, 2, 3):
        last = told.pilot_ends(f"large-{number}", usable=False)
    (finish,) = of(FinishStudy, last)
    assert finish.state is StudyState.NO_SITE


def test_a_site_that_is_refused_but_still_awaited_keeps_its_trials() -> None:
    told = story(max_t=4)
    told.begin(2, a=2, b=1)
    told.pilot("b-2", gpus=1)
    told.pilot("a-0", gpus=1)
    pinned = next(t.id for t in told.machine.trials.values() if t.site == "a")
    told.epoch(f"{pinned}.1", 1, 0.5)
    told.loses("a-0")
    for number in (1, 4, 5):
        told.pilot_ends(f"a-{number}", usable=False)
    assert "a-3" in told.machine.pilots.requested
    assert told.machine.trials[pinned].checkpoint.epoch == 1
    (start,) = of(StartJob, told.pilot("a-3", gpus=1))
    assert (start.job.trial, start.epoch) == (pinned, 1)


def test_trials_of_a_site_that_is_given_up_start_afresh_elsewhere() -> None:
    told = story(max_t=4)
    told.begin(2, a=1, b=1)
    told.pilot("a-0", gpus=1)
    told.epoch("0000.1", 1, 0.5)
    told.loses("a-0")
    told.pilot("b-1", gpus=2)
    assert told.state("0000") is TrialState.WAITING
    for number in (2, 3):
        assert of(RequestPilot, told.pilot_ends(f"a-{number}", usable=False))
    (start,) = of(StartJob, told.pilot_ends("a-4", usable=False))
    assert (start.job.trial, start.epoch, start.placement.site) == ("0000", 0, "b")


def test_a_trial_that_starts_afresh_trains_each_stretch_with_its_own_replicas() -> None:
    """Bit for bit as before: replicas set batch and learning rate."""
    told = story("none", max_t=4)
    told.begin(1, a=1, b=1)
    told.pilot("a-0")
    told.epoch("0000.1", 1, 0.5)
    told.epoch("0000.1", 2, 0.4)
    told.loses("a-0")
    told.pilot("b-1")
    for number in (2, 3):
        told.pilot_ends(f"a-{number}", usable=False)
    (start,) = of(StartJob, told.pilot_ends("a-4", usable=False))
    assert (start.epoch, start.until, start.schedule) == (0, 1, ((0, 1),))
    answers = [of(ContinueJob, told.epoch(str(start.job), epoch, 0.5)) for epoch in (1, 2, 3)]
    assert [(a.until, a.replicas) for (a,) in answers] == [(2, 2), (4, 4), (4, 4)]


def test_trials_of_a_site_that_a_resume_does_not_name_start_afresh() -> None:
    told = story(max_t=4)
    told.begin(1, a=1)
    told.pilot("a-0", gpus=1)
    told.epoch("0000.1", 1, 0.5)
    told.begin(1, b=1)
    (start,) = of(StartJob, told.pilot("b-1", gpus=1))
    assert (start.epoch, start.resume_from, start.schedule) == (0, None, ((0, 1),))


def test_paused_trials_are_taken_on_past_one_whose_site_is_away() -> None:
    told = story(variant="synchronous", max_t=2, eta=2, num_workers=1)
    told.begin(4, a=1, b=1)
    told.pilot("a-0", gpus=2)
    told.pilot("b-1", gpus=2)
    away = [t.id for t in told.machine.trials.values() if t.site == "a"]
    here = [t.id for t in told.machine.trials.values() if t.site == "b"]
    best = {away[0]: 0.1, here[0]: 0.2, away[1]: 0.8, here[1]: 0.9}
    for trial in (*away, here[0]):
        told.epoch(f"{trial}.1", 1, best[trial])
        told.ends(f"{trial}.1")
    told.loses("a-0")
    told.epoch(f"{here[1]}.1", 1, best[here[1]])
    told.ends(f"{here[1]}.1")
    assert told.state(away[0]) is TrialState.WAITING
    assert told.state(here[0]) is TrialState.RUNNING


def test_a_site_whose_pilots_never_start_is_given_up() -> None:
    told = story()
    told.begin(1, a=1)
    assert of(RequestPilot, told.pilot_ends("a-0", usable=False))
    assert of(RequestPilot, told.pilot_ends("a-1", usable=False))
    assert told.pilot_ends("a-2", usable=False) == [FinishStudy(StudyState.NO_SITE, "walltime")]
    assert told.begin(1, a=1) == [RequestPilot(PilotId("a-3"), SiteName("a"))]


def test_without_any_site_a_study_ends() -> None:
    assert story().begin(1) == [FinishStudy(StudyState.NO_SITE, "no pilot could be had")]


def test_words_about_unknown_pilots_trials_and_jobs_are_passed_over() -> None:
    told = story()
    told.begin(1, a=1)
    told.pilot("a-0")
    assert told.pilot_ends("x-9") == []
    assert told.tell(TrialProposed, TrialId("0000"), {"lr": 9}) == []
    assert told.epoch("0000.7", 1, 0.0) == []
    assert told.ends("0042.1") == []


def test_an_interrupted_study_goes_on_where_it_was_left_at_no_cost() -> None:
    told = story(max_t=4, max_retries=0)
    told.begin(1, a=1)
    told.pilot("a-0", gpus=1)
    told.epoch("0000.1", 1, 0.5)
    assert told.tell(StudyInterrupted) == [EndJob(JobId.parse("0000.1"), "interrupted")]
    assert told.ends("0000.1", Outcome.LOST) == [FinishStudy(StudyState.INTERRUPTED)]
    told.begin(1, a=1)
    (start,) = of(StartJob, told.pilot("a-1", gpus=1))
    assert (str(start.job), start.epoch) == ("0000.2", 1)


def test_a_paused_trial_is_let_on_while_it_still_leaves() -> None:
    told = story(variant="promotion", max_t=2)
    told.begin(2, a=1)
    told.pilot("a-0", gpus=3)
    assert of(EndJob, told.epoch("0000.1", 1, 0.5)) == [EndJob(JobId.parse("0000.1"), "paused")]
    told.epoch("0001.1", 1, 0.6)  # now 0000 is the best of two
    assert told.state("0000") is TrialState.RUNNING
    (start,) = of(StartJob, told.ends("0000.1"))
    assert (start.job.trial, start.epoch, start.until) == ("0000", 1, 2)


def test_the_slowest_restart_is_learnt_and_a_clock_that_runs_behind_teaches_nothing() -> None:
    told = story(max_t=16, restart_s=0.3)
    told.begin(1, a=1)
    told.pilot("a-0", gpus=2)
    told.machine.handle(JobStarted(0.5, JobId.parse("0000.1")))  # before it was started
    assert told.machine.cluster_state.times.restart_s == 0.3
    told.epoch("0000.1", 1, 0.5)
    told.ends("0000.1")
    told.tell(JobStarted, JobId.parse("0000.2"))
    assert told.machine.cluster_state.times.restart_s == 2.0


def test_how_long_jobs_take_to_leave_is_not_learnt_from_the_time_without_a_controller() -> None:
    told = story(max_t=16)
    told.begin(1, a=1)
    told.pilot("a-0", gpus=2)
    assert of(EndJob, told.epoch("0000.1", 1, 0.5)), "it is to leave"
    before = told.machine.cluster_state.times.release_s(SiteName("a"))
    told.now += 36_000.0
    told.begin(1, a=1)
    assert told.machine.cluster_state.times.release_s(SiteName("a")) == before


def test_nothing_starts_on_a_pilot_whose_end_sends_its_jobs_away() -> None:
    """Else a trial would start and leave in turns until the walltime, and then have no retries left."""
    told = story(max_t=4, max_retries=0)
    told.begin(2, a=1)
    told.pilot("a-0", gpus=2, deadline=100.0)
    told.now = 60.0
    assert of(StartJob, told.ends("0000.1", Outcome.PREEMPTED)) == []
    assert of(FinishStudy, told.ends("0001.1", Outcome.PREEMPTED)) == [], "its end is awaited"
    assert told.state("0000") is TrialState.WAITING
    assert of(RequestPilot, told.pilot_ends("a-0"))
    assert len(of(StartJob, told.pilot("a-1", gpus=2, deadline=5000.0))) == 2
    assert of(StartJob, told.ends("0000.2", Outcome.PREEMPTED)), "long before its end it is something else"


def test_jobs_that_leave_untold_early_in_the_life_of_a_short_pilot_start_again_there() -> None:
    """As those do that Slurm signals (`scancel --signal`), on a pilot whose whole life is ten minutes."""
    told = story(max_t=8)
    told.begin(1, a=1)
    told.pilot("a-0", gpus=1, deadline=600.0)
    told.epoch("0000.1", 1, 0.5)
    assert of(StartJob, told.ends("0000.1", Outcome.PREEMPTED))
    told.now = 400.0
    assert told.ends("0000.2", Outcome.PREEMPTED) == [ReleasePilot(PilotId("a-0"))]


def test_jobs_that_still_run_on_a_pilot_that_ends_soon_train_on() -> None:
    told = story(max_t=8)
    told.begin(2, a=1)
    told.pilot("a-0", gpus=2, deadline=100.0)
    told.now = 60.0
    told.ends("0000.1", Outcome.PREEMPTED)
    assert told.epoch("0001.1", 1, 0.5)[-1] == ContinueJob(JobId.parse("0001.1"), until=2, replicas=2)
    assert told.ends("0001.1", Outcome.PREEMPTED) == [ReleasePilot(PilotId("a-0"))], "it is of no more use"
    told.pilot_ends("a-0")
    assert len(of(StartJob, told.pilot("a-1", gpus=2))) == 2


def test_what_only_the_first_start_on_a_node_takes_is_no_estimate_of_a_restart() -> None:
    told = story(max_t=16, restart_s=0.3)
    told.begin(1, a=1)
    told.pilot("a-0")
    told.now += 8.0
    told.tell(JobStarted, JobId.parse("0000.1"), 7.0)
    assert told.machine.cluster_state.times.restart_s == 2.0


def reported(
    story: Story, trial: str, samples: int | None, noise: GradientNoise | None = None
) -> list[Instruction]:
    """A trial trains for one more epoch and says how many samples it has, and how noisy they are."""
    record = story.machine.trials[TrialId(trial)]
    assert record.job is not None
    at = Checkpoint(f"{record.job.id}/{record.epoch + 1}", record.epoch + 1)
    said = (record.job.id, record.epoch + 1, {"loss": 0.1}, 10.0, at)
    return story.tell(EpochReported, *said, samples=samples, noise=noise)


BOTH = "best effort because it ran on different GPUs: A100, H100"


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ([("", ())], ""),  # a script, which nobody can say it of
        ([("yes", ()), ("", ())], "yes"),
        ([("yes", ("A100",)), ("", ()), ("yes", ("A100",))], "yes"),
        ([("yes", ("A100",)), ("yes", ("H100",))], BOTH),
        ([("yes", ("A100", "H100"))], BOTH),
        ([("yes", ()), ("best effort because x", ()), ("yes", ())], "best effort because x"),
        ([("no: reduce is ddp", ("A100",)), ("yes", ("H100",))], "no: reduce is ddp"),
    ],
)
def test_a_trial_is_as_exact_as_the_least_exact_of_its_epochs(said, words) -> None:
    told = story("none", max_t=8)
    told.begin(1, a=1)
    told.pilot("a-0")
    record = told.machine.trials[TrialId("0000")]
    for epoch, (exact, devices) in enumerate(said, 1):
        told.tell(EpochReported, record.job.id, epoch, {"loss": 0.1}, 1.0, None, exact=exact, devices=devices)
    assert record.exact == words


def test_the_batch_grows_no_further_than_the_first_report_allows_and_the_gpus_do() -> None:
    told = story("strict", max_workers=4)
    told.begin(1, a=1)
    told.pilot("a-0")
    assert EndJob(JobId(TrialId("0000"), 1), "resize") in reported(told, "0000", 800)
    (start,) = (i for i in told.ends("0000.1") if isinstance(i, StartJob))
    assert start.schedule == ((0, 1), (1, 2)), "100 steps, then 50"
    reported(told, "0000", 800)
    (start,) = (i for i in told.ends("0000.2") if isinstance(i, StartJob))
    assert start.schedule == ((0, 1), (1, 2), (2, 4, 2))
    assert start.placement.world_size == 4


def test_a_restart_is_due_before_the_next_boundary_of_a_trial_that_was_resized() -> None:
    told = story("elastic", scaling=4, max_workers=4, max_t=4)
    told.begin(1, a=1)
    told.pilot("a-0", gpus=2)
    reported(told, "0000", None)
    told.ends("0000.1")
    cluster = told.machine.cluster_state
    running = cluster.running[TrialId("0000")]
    epoch_s = cluster.times.epoch_s(running.trial, 2, SiteName("a"))
    assert running.boundary_at == pytest.approx(told.now + cluster.times.restart_s + epoch_s)


def test_a_script_shows_its_start_by_stretches_of_different_lengths() -> None:
    told = story("none", interactive=False, max_t=4)
    told.begin(1, a=1)
    told.pilot("a-0")
    times = told.machine.cluster_state.times
    for attempt, done, took_s in ((1, 1, 17.0), (2, 2, 17.0), (3, 4, 19.0)):
        job = JobId(TrialId("0000"), attempt)
        told.now += took_s - 1.0
        at = Checkpoint(f"{job}/{done}", done)
        told.tell(EpochReported, job, done, {"loss": 0.1}, took_s, at, includes_startup=True)
        told.now -= 1.0
        told.ends(str(job))
    assert times.script_start_s(SiteName("a")) == pytest.approx(15.0)
    assert times.epoch_s(TrialId("0000"), 1, SiteName("a")) == pytest.approx(2.0)


def test_the_number_of_samples_is_that_of_a_trials_first_report() -> None:
    told = story("none", max_workers=4)
    told.begin(1, a=1)
    told.pilot("a-0")
    reported(told, "0000", 800)
    reported(told, "0000", 900)
    assert told.machine.trials[TrialId("0000")].samples == 800


def test_a_search_of_a_version_that_counted_no_samples_goes_on_as_it_began() -> None:
    told = story("strict", max_workers=4)
    told.begin(1, a=1)
    told.pilot("a-0")
    reported(told, "0000", None)
    told.ends("0000.1")
    reported(told, "0000", 800)
    (start,) = (i for i in told.ends("0000.2") if isinstance(i, StartJob))
    assert start.schedule == ((0, 1), (1, 2), (2, 4))


def test_a_measured_batch_follows_the_noise_since_the_last_rung_and_the_gpus_double_all_the_same() -> None:
    told = story("strict", max_t=8, max_workers=8, batch="measured")
    told.begin(1, a=1)
    told.pilot("a-0", gpus=8)
    reported(told, "0000", 8000, GradientNoise(1.0, 15.0))
    (start,) = of(StartJob, told.ends("0000.1"))
    assert (start.schedule, start.placement.world_size) == (((0, 8, 1),), 2), "15 samples are less than 2 x 8"
    reported(told, "0000", 8000, GradientNoise(1.0, 16.0))
    (start,) = of(StartJob, told.ends("0000.2"))
    assert (start.schedule, start.placement.world_size) == (((0, 8, 1), (2, 8, 2)), 4)
    assert of(ContinueJob, reported(told, "0000", 8000, GradientNoise(-2.0, 100.0))), "no rung: no change"
    reported(told, "0000", 8000, GradientNoise(4.0, 28.0))
    (start,) = of(StartJob, told.ends("0000.3"))
    assert start.schedule == ((0, 8, 1), (2, 8, 2), (4, 8)), "the means are 1 and 64"
    assert start.placement.world_size == 8


def test_a_measured_batch_of_which_nothing_is_known_stays() -> None:
    told = story("strict", max_workers=4, batch="measured")
    told.begin(1, a=1)
    told.pilot("a-0")
    reported(told, "0000", None)
    (start,) = of(StartJob, told.ends("0000.1"))
    assert (start.schedule, start.placement.world_size) == (((0, 4, 1),), 2)
