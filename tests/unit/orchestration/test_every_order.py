"""The machine under every event in every order, also doubled and late: it stands all of it, and ends.

The rules below are what ports promise (a job ends once, pilots come when they were asked for), and what
networks make of it: the same words twice, words of those who are gone, a pilot's end before its jobs'.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from msgspec import structs

from parsl_rasda.orchestration.events import (
    ContinueJob,
    EndJob,
    EpochReported,
    Event,
    FinishStudy,
    Instruction,
    JobEnded,
    JobStarted,
    PilotEnded,
    PilotLost,
    PilotStarted,
    ProposeTrial,
    ReleasePilot,
    RequestPilot,
    SearchExhausted,
    SiteDegraded,
    StartJob,
    StudyInterrupted,
    StudyStarted,
    TimerFired,
    TrialFinished,
    TrialProposed,
)
from parsl_rasda.protocol import Checkpoint
from parsl_rasda.types import (
    Blame,
    JobId,
    NodeName,
    NodeSlots,
    Outcome,
    Phase,
    PilotId,
    SiteName,
    StudyState,
    TrialId,
)
from tests.unit.orchestration.random_world import Setup, Shape, metric_of

SITES = ("a", "b")
SECONDS = st.sampled_from([0.0, 0.5, 3.0, 70.0, 700.0])
PICK = st.integers(0, 10**6)  # of a list, whatever its length then is
NOT_THE_TRIALS = (Blame.SLOT, Blame.NODE, Blame.PILOT, Blame.SITE, Blame.CONTROLLER)
ENDS = (
    (Outcome.REACHED, None),
    (Outcome.FAILED, Blame.TRIAL),
    (Outcome.LOST, Blame.UNSURE),
    (Outcome.LOST, None),  # as versions wrote it that did not ask
    (Outcome.PREEMPTED, None),
    *((Outcome.PREEMPTED, blame) for blame in (Blame.PILOT, Blame.CONTROLLER)),
    *((Outcome.LOST, blame) for blame in NOT_THE_TRIALS),
)


@dataclass
class Live:
    """A job that was started and has not ended."""

    start: StartJob
    interactive: bool
    epoch: int
    until: int
    leaving: bool = False


@dataclass
class Books:
    """What the world knows of pilots and jobs."""

    requested: dict[PilotId, SiteName] = field(default_factory=dict)
    up: dict[PilotId, PilotStarted] = field(default_factory=dict)
    gone: list[PilotId] = field(default_factory=list)
    jobs: dict[JobId, Live] = field(default_factory=dict)
    ended: list[JobId] = field(default_factory=list)
    suspects: set[TrialId] = field(default_factory=set)  # with an end that may have been their own fault
    saved: dict[str, int] = field(default_factory=dict)  # the epoch of each checkpoint


class EveryOrder(RuleBasedStateMachine):
    is_sound = False

    @initialize(
        variant=st.sampled_from(["stopping", "promotion", "synchronous"]),
        growth=st.sampled_from(["elastic", "strict", "none"]),
        nodes=st.integers(1, 2),
        trials=st.integers(1, 6),
        num_workers=st.sampled_from([1, 2]),
        max_retries=st.integers(0, 2),
        shared=st.booleans(),
        interactive=st.booleans(),
    )
    def begin(self, variant, growth, nodes, trials, num_workers, max_retries, shared, interactive) -> None:
        shape = Shape(nodes, 4)
        self.setup = Setup(
            variant,
            growth,
            dict.fromkeys(SITES, shape),
            trials=trials,
            max_t=4,
            num_workers=num_workers,
            max_workers=4,
            max_retries=max_retries,
            checkpoints_shared=shared,
            interactive=interactive,
        )
        self.now, self.books = 0.0, Books()
        self.machine = self.setup.machine()
        self.told: list[Event] = []
        self.record: list[tuple[Event, tuple[Instruction, ...]]] = []
        self.asked: TrialId | None = None
        self.has_more = True
        self.finished: FinishStudy | None = None
        self.start_controller(1, 1)

    # ----------------------------------------------------------------------------- the machine's port

    def tell(self, event: Event) -> tuple[Instruction, ...]:
        """Hand an event over and carry out what follows; the searcher answers before anything else."""
        self.is_sound = False  # until all has gone well: what comes after a failure hides it
        instructions = self.machine.handle(event)
        self.record.append((event, instructions))
        self.told.append(event)
        if isinstance(event, EpochReported) and event.job in self.books.jobs:
            self.see_the_answer(event.job, instructions)
        for instruction in instructions:
            self.carry_out(instruction)
        if self.asked is not None:
            self.answer_proposal()
        self.is_sound = True
        return instructions

    def tell_late(self, event: Event) -> None:
        """Say what is known, or comes too late, before any time has passed: nothing may follow from it."""
        self.is_sound = False
        instructions = self.machine.handle(event)
        self.record.append((event, instructions))
        assert not instructions, f"{event} must change nothing"
        self.is_sound = True

    def answer_proposal(self) -> None:
        trial, self.asked = self.asked, None
        assert trial is not None
        if self.has_more:
            self.tell(TrialProposed(self.now, trial, {"lr": int(trial)}))
        else:
            self.tell(SearchExhausted(self.now))

    def see_the_answer(self, job: JobId, instructions: tuple[Instruction, ...]) -> None:
        live = self.books.jobs[job]
        answers = [i for i in instructions if isinstance(i, ContinueJob | EndJob) and i.job == job]
        if live.interactive:
            assert len(answers) == (0 if live.leaving else 1)
        else:
            assert not any(isinstance(i, ContinueJob) for i in answers)

    def carry_out(self, instruction: Instruction) -> None:
        books = self.books
        match instruction:
            case RequestPilot(pilot, site):
                assert pilot not in {*books.requested, *books.up, *books.gone}, "ids are new"
                books.requested[pilot] = site
            case ReleasePilot(pilot):
                assert pilot in books.up
                assert not books.up[pilot].is_own_allocation
                assert pilot not in {live.start.placement.pilot for live in books.jobs.values()}, "it works"
            case ProposeTrial(trial):
                assert self.asked is None
                self.asked = trial
            case StartJob(job):
                self.see_the_start(instruction)
                pilot = books.up[instruction.placement.pilot]
                asks = pilot.interactive and self.setup.interactive
                books.jobs[job] = Live(instruction, asks, instruction.epoch, instruction.until)
            case ContinueJob(job, until):
                assert until > books.jobs[job].epoch
                books.jobs[job].until = until
            case EndJob(job):
                assert not books.jobs[job].leaving, "a job is told to leave once"
                books.jobs[job].leaving = True
            case TrialFinished(trial, state):
                innocent = trial not in books.suspects
                assert not (state == "failed" and innocent), f"the machine has cost {trial}: {instruction}"
            case FinishStudy():
                assert self.finished is None, "a controller ends once"
                self.finished = instruction
            case _:
                pass

    def see_the_start(self, start: StartJob) -> None:
        books, placement = self.books, start.placement
        assert placement.pilot in books.up, "nothing starts on a pilot that is gone"
        assert start.job.trial not in {j.trial for j in books.jobs}, "one live job a trial"
        assert start.job not in books.ended, "each attempt has a number of its own"
        held = {s for live in books.jobs.values() for s in slots_of(live.start)}
        assert not held & slots_of(start), "two jobs hold one slot"
        assert 0 <= start.epoch < start.until <= self.setup.max_t
        assert start.schedule[-1][1] % placement.world_size == 0, "the width divides the replicas"
        assert start.epoch == (books.saved[start.resume_from] if start.resume_from else 0)

    # ----------------------------------------------------------------------------- what may happen

    def start_controller(self, wanted_a: int, wanted_b: int, *, retry_failed: bool = False) -> None:
        books = self.books
        books.ended += books.jobs
        books.gone += [*books.requested, *books.up]
        for known in (books.jobs, books.requested, books.up):
            known.clear()
        self.finished, self.asked = None, None
        if retry_failed:
            books.suspects.clear()
        wanted = {SiteName(s): n for s, n in zip(SITES, (wanted_a, wanted_b), strict=True) if n}
        self.tell(StudyStarted(self.now, self.setup.trials, wanted, retry_failed=retry_failed))

    @rule(
        a=st.integers(0, 2), b=st.integers(0, 2), seconds=SECONDS, more=st.integers(0, 1), retry=st.booleans()
    )
    def another_controller(self, a, b, seconds, more, retry) -> None:
        self.now += seconds
        self.setup = replace(self.setup, trials=self.setup.trials + more)
        self.start_controller(a or not b, b, retry_failed=retry)

    @rule(seconds=SECONDS)
    def time_passes(self, seconds) -> None:
        self.now += seconds
        self.tell(TimerFired(self.now))

    @precondition(lambda self: self.books.requested)
    @rule(
        pick=PICK,
        seconds=SECONDS,
        left=st.sampled_from([None, 5.0, 100.0, 700.0]),
        own=st.booleans(),
        asks=st.booleans(),
    )
    def a_pilot_comes(self, pick, seconds, left, own, asks) -> None:
        self.now += seconds
        self.pilot_comes(chosen(self.books.requested, pick), left, own=own, asks=asks)

    def pilot_comes(self, pilot: PilotId, left: float | None = None, *, own=False, asks=True) -> None:
        site = self.books.requested.pop(pilot)
        self.books.up[pilot] = self.pilot_started(pilot, site, left, own=own, asks=asks)
        self.tell(self.books.up[pilot])

    def pilot_started(self, pilot, site, left, *, own, asks) -> PilotStarted:
        shape = self.setup.sites[site]
        gpus = tuple(range(shape.gpus_per_node))
        nodes = tuple(NodeSlots(NodeName(f"{site}{i}"), gpus) for i in range(shape.nodes))
        deadline = None if left is None else self.now + left
        return PilotStarted(self.now, pilot, site, nodes, asks, deadline, 3.0, is_own_allocation=own)

    @precondition(lambda self: self.books.requested)
    @rule(pick=PICK, seconds=SECONDS, counts=st.booleans())
    def a_pilot_is_refused(self, pick, seconds, counts) -> None:
        self.now += seconds
        pilot = chosen(self.books.requested, pick)
        site = self.books.requested.pop(pilot)
        self.books.gone.append(pilot)
        self.tell(PilotEnded(self.now, pilot, site, "refused", usable=False, refused=counts))

    @precondition(lambda self: self.books.up)
    @rule(pick=PICK)
    def a_pilot_is_as_good_as_gone(self, pick) -> None:
        self.tell(PilotLost(self.now, chosen(self.books.up, pick)))

    @precondition(lambda self: self.books.up)
    @rule(pick=PICK, seconds=SECONDS)
    def a_pilot_ends_before_its_jobs(self, pick, seconds) -> None:
        self.now += seconds
        self.pilot_ends(chosen(self.books.up, pick))

    def pilot_ends(self, pilot: PilotId) -> None:
        site = self.books.up.pop(pilot).site
        self.books.gone.append(pilot)
        self.tell(PilotEnded(self.now, pilot, site, "walltime"))

    @precondition(lambda self: self.books.jobs)
    @rule(pick=PICK, seconds=SECONDS)
    def a_job_starts(self, pick, seconds) -> None:
        self.now += seconds
        self.tell(JobStarted(self.now, chosen(self.books.jobs, pick)))

    @precondition(lambda self: self.books.jobs)
    @rule(pick=PICK, seconds=SECONDS, saves=st.booleans(), diverges=st.sampled_from([False] * 9 + [True]))
    def a_job_finishes_an_epoch(self, pick, seconds, saves, diverges) -> None:
        job = chosen(self.books.jobs, pick)
        if self.may_train(job):
            self.now += seconds
            self.finish_epoch(job, saves=saves, diverges=diverges)

    def may_train(self, job: JobId) -> bool:
        return self.books.jobs[job].epoch < self.books.jobs[job].until

    def finish_epoch(self, job: JobId, *, saves: bool = True, diverges: bool = False) -> None:
        live = self.books.jobs[job]
        live.epoch += 1
        checkpoint = self.saved(job, live.epoch) if saves or live.epoch == live.until else None
        if diverges:
            self.books.suspects.add(job.trial)
        metrics = {"loss": math.nan if diverges else metric_of(job.trial, live.epoch)}
        self.tell(EpochReported(self.now, job, live.epoch, metrics, 1.0, checkpoint))

    def saved(self, job: JobId, epoch: int) -> Checkpoint:
        self.books.saved[f"{job}/{epoch}"] = epoch
        return Checkpoint(f"{job}/{epoch}", epoch)

    @precondition(lambda self: self.books.jobs)
    @rule(
        pick=PICK,
        seconds=SECONDS,
        end=st.sampled_from(ENDS),
        phase=st.sampled_from([None, *Phase]),
        saves=st.booleans(),
        unreadable=st.booleans(),
    )
    def a_job_ends(self, pick, seconds, end, phase, saves, unreadable) -> None:
        self.now += seconds
        job = chosen(self.books.jobs, pick)
        live, (outcome, blame) = self.books.jobs[job], end
        if outcome is Outcome.REACHED and not live.leaving and live.epoch < live.until:
            blame = Blame.TRIAL  # it returned too early
        if blame in {Blame.TRIAL, Blame.UNSURE} or (outcome is not Outcome.REACHED and blame is None):
            self.books.suspects.add(job.trial)
        is_gone = unreadable and outcome is Outcome.LOST and live.epoch == live.start.epoch
        self.end(
            job,
            outcome,
            blame=blame,
            phase=phase,
            saves=saves,
            unreadable=live.start.resume_from if is_gone else None,
        )

    def end(self, job: JobId, outcome: Outcome, *, saves: bool = True, **named: Any) -> None:
        live = self.books.jobs.pop(job)
        self.books.ended.append(job)
        left_well = outcome in {Outcome.REACHED, Outcome.PREEMPTED}
        trained = live.epoch > live.start.epoch
        saved = self.saved(job, live.epoch) if saves and trained and left_well else None
        where, what = (saved.path, saved.epoch) if saved else (None, None)
        self.tell(JobEnded(self.now, job, outcome, "it ended", where, what, **named))

    @rule()
    def the_user_interrupts(self) -> None:
        self.tell(StudyInterrupted(self.now))

    @rule(site=st.sampled_from(SITES))
    def a_site_is_degraded(self, site) -> None:
        self.tell(SiteDegraded(self.now, SiteName(site), "slow"))

    @rule(more=st.booleans())
    def the_searcher_runs_dry(self, more) -> None:
        self.has_more = more

    # ----------------------------------------------------------------------------- what comes late, or twice

    @precondition(lambda self: self.told)
    @rule(pick=PICK)
    def something_is_said_again(self, pick) -> None:
        """What was told before comes once more: from a network that repeats, or from somebody slow."""
        event = structs.replace(self.told[pick % len(self.told)], at=self.now)
        match event:
            case StudyStarted() | StudyInterrupted() | TimerFired() | PilotLost():
                return  # as good as new
            case _:
                self.settle()
                self.tell_late(event)

    @precondition(lambda self: self.books.ended)
    @rule(pick=PICK, end=st.sampled_from(ENDS), epoch=st.integers(1, 4))
    def somebody_who_is_gone_speaks(self, pick, end, epoch) -> None:
        job = chosen(self.books.ended, pick)
        self.settle()
        self.tell_late(JobStarted(self.now, job))
        self.tell_late(EpochReported(self.now, job, epoch, {"loss": 0.0}, 1.0, Checkpoint("late", epoch)))
        self.tell_late(JobEnded(self.now, job, end[0], "late", "late", blame=end[1]))

    @precondition(lambda self: self.books.gone)
    @rule(pick=PICK, site=st.sampled_from(SITES))
    def a_pilot_that_is_gone_comes(self, pick, site) -> None:
        pilot = chosen(self.books.gone, pick)
        self.settle()
        self.tell_late(self.pilot_started(pilot, SiteName(site), None, own=False, asks=True))
        self.tell_late(PilotLost(self.now, pilot))
        self.tell_late(PilotEnded(self.now, pilot, SiteName(site), "late"))

    @rule()
    def the_searcher_speaks_unasked(self) -> None:
        self.settle()
        self.tell_late(SearchExhausted(self.now))
        self.tell_late(TrialProposed(self.now, TrialId("9999"), {}))

    def settle(self) -> None:
        """Let what is due by now happen, so that what is said next is the only cause of what follows."""
        self.tell(SiteDegraded(self.now, SiteName("a"), "nothing"))

    # ----------------------------------------------------------------------------- the end

    def teardown(self) -> None:
        if not self.is_sound:
            return
        self.end_fairly()
        again = self.setup.machine()
        for event, instructions in self.record:
            assert again.handle(event) == instructions, "a replay decides as the live run did"

    def end_fairly(self) -> None:
        """From now on all goes well: the study ends, and nobody is left over."""
        self.has_more = True
        for _ in range(3000):
            if self.finished is not None:
                if not self.machine_can_go_on():
                    break
                self.start_controller(1, 1, retry_failed=True)
            self.now += 1.0
            self.go_on()
        assert self.finished is not None, "it never ends"
        assert self.finished.state in {StudyState.DONE, StudyState.FAILED}
        assert all(t.state.is_final for t in self.machine.trials.values())
        assert not self.books.jobs

    def machine_can_go_on(self) -> bool:
        assert self.finished is not None
        unfinished = any(not t.state.is_final for t in self.machine.trials.values())
        return unfinished or self.finished.state in {StudyState.INTERRUPTED, StudyState.NO_SITE}

    def go_on(self) -> None:
        books, wake_at = self.books, self.machine.wake_at
        for job in [j for j, live in books.jobs.items() if live.start.placement.pilot not in books.up]:
            self.end(job, Outcome.PREEMPTED, blame=Blame.PILOT)
        late = [p for p, up in books.up.items() if up.deadline is not None and up.deadline <= self.now]
        closing = [p for p in self.machine.pilots.closing if p in books.up]
        if wake_at is not None and self.now >= wake_at:
            self.tell(TimerFired(self.now))
            assert self.machine.wake_at is None or self.machine.wake_at > self.now, "it would never sleep"
        elif books.requested:
            self.pilot_comes(next(iter(books.requested)))
        elif late:
            self.pilot_ends(late[0])
        elif books.jobs:
            self.advance(next(iter(books.jobs)))
        elif closing:
            self.pilot_ends(closing[0])
        elif self.finished is None:
            assert wake_at is not None, "nothing runs, nothing is awaited, and the study has not ended"
            self.now = max(self.now, wake_at)

    def advance(self, job: JobId) -> None:
        if self.books.jobs[job].leaving or not self.may_train(job):
            self.end(job, Outcome.REACHED)
        else:
            self.finish_epoch(job)


def chosen(among: Any, pick: int) -> Any:
    found = list(among)
    return found[pick % len(found)]


def slots_of(start: StartJob) -> set[tuple[str, str]]:
    return {(start.placement.pilot, slot) for slot in start.placement.slots}


TestEveryOrder = EveryOrder.TestCase
TestEveryOrder.settings = settings(
    max_examples=3 * settings.default.max_examples, stateful_step_count=40, deadline=None
)
