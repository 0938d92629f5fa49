"""A world without processes that does to a machine whatever the ports allow, and a referee.

The world keeps its own books of pilots and jobs, so that what the machine believes is checked
against what it was told and what it asked for.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import dataclass, field
from functools import cache, cached_property
from statistics import fmean

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
    StartJob,
    StudyInterrupted,
    StudyStarted,
    TimerFired,
    TrialFinished,
    TrialProposed,
)
from parsl_rasda.orchestration.machine import Machine, MachineSettings
from parsl_rasda.orchestration.stopping import StopWhen
from parsl_rasda.placement.growth import build_growth
from parsl_rasda.placement.times import Assumed
from parsl_rasda.protocol import Checkpoint
from parsl_rasda.scheduling import build_scheduler
from parsl_rasda.scheduling.batching import Batching, Split
from parsl_rasda.scheduling.objectives import Objectives
from parsl_rasda.study import SchedulerSpec
from parsl_rasda.types import (
    Blame,
    Budget,
    GradientNoise,
    JobId,
    Method,
    Mode,
    NodeName,
    NodeSlots,
    Outcome,
    PilotId,
    SiteName,
    StudyState,
    TrialId,
    TrialState,
)

FREE_PREEMPTIONS = 5  # preemptions in a row that cost no retry
FREE_CHECKPOINT_LOSSES = 5  # checkpoints that are gone and cost none


@dataclass(frozen=True)
class Shape:
    nodes: int
    gpus_per_node: int
    pilots: int = 1
    interactive: bool = True
    later: int = 0  # of these, asked for when trials wait


@dataclass(frozen=True)
class Setup:
    variant: str
    growth: str
    sites: dict[str, Shape]
    trials: int = 6
    eta: int = 2
    max_t: int = 8
    num_workers: int = 1
    scaling: int = 2
    max_workers: int | None = None
    max_retries: int = 2
    checkpoints_shared: bool = False
    restart_s: float = 0.1
    interactive: bool = True
    batch: str = "doubling"
    kind: str = "rasda"
    samples: int | None = None
    batch_size: int = 8
    stop_when: StopWhen = field(default_factory=StopWhen)
    more: dict[str, object] = field(default_factory=dict)  # keys of the scheduler
    brackets: int | str = 1
    objectives: Objectives | None = None

    def _reached_at_most(self) -> int | None:
        """Return the largest number of replicas up to ``max_workers``: a study names no other."""
        if self.max_workers is None:
            return None
        steps = (self.num_workers * self.scaling**k for k in range(16 if self.scaling > 1 else 1))
        return max(step for step in steps if step <= self.max_workers)

    @cached_property
    def method(self) -> SchedulerSpec:
        keys = {
            "kind": self.kind,
            "variant": self.variant,
            "max_t": self.max_t,
            "reduction_factor": self.eta,
            "scaling_factor": self.scaling,
            "num_workers": self.num_workers,
            "max_workers": self._reached_at_most(),
            "batch": self.batch,
            "brackets": self.brackets,
        }
        return SchedulerSpec.model_validate({**keys, **self.more})

    @cached_property
    def batching(self) -> Batching:
        constant = None if self.batch == "doubling" else self.method.most_workers
        steps, is_measured = self.method.min_steps_per_epoch, self.batch == "measured"
        return Batching(constant, steps, self.batch_size, is_measured)

    def machine(self) -> Machine:
        scheduler = build_scheduler(self.method.model_dump(exclude={"growth"}), self.objectives)
        settings = MachineSettings(
            "loss",
            Mode.MIN,
            num_workers=self.num_workers,
            world_size_step=next(
                f for f in range(2, self.scaling + 2) if self.scaling % f == 0 or f > self.scaling
            ),
            max_retries=self.max_retries,
            assumed=Assumed(1.0, self.restart_s, 0.9),
            checkpoints_shared=self.checkpoints_shared,
            interactive=self.interactive,
            batching=self.batching,
            stop_when=self.stop_when,
            objectives=self.objectives,
        )
        return Machine(settings, scheduler, build_growth(self.growth))


@cache
def metric_of(trial: str, epoch: int) -> float:
    return random.Random(f"quality {trial}").random() + 1.0 / epoch


@cache
def noise_of(trial: str, epoch: int) -> GradientNoise | None:
    """Return what a report says of the noise: not all do, and it may hide the gradient."""
    rng = random.Random(f"noise {trial} {epoch}")
    if rng.random() < 0.2:
        return None
    return GradientNoise(rng.uniform(-0.2, 1.0), rng.choice([2.0, 20.0, 60.0]))


@dataclass
class WorldJob:
    start: StartJob
    interactive: bool
    epoch: int
    until: int
    leaving: bool = False
    gone_pilot: bool = False
    checkpoint: str | None = None


@dataclass
class World:
    """Drives one machine; `unfair` picks what happens next at random, `fair` lets all go well."""

    setup: Setup
    seed: int
    fault_rate: float = 0.1
    budget: Budget | None = None
    method: Method | None = None  # by which it goes on from its next start
    record: list[tuple[Event, tuple[Instruction, ...]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.machine = self.setup.machine()
        self.now = 0.0
        self.wanted, self.growth = self.setup.trials, self.setup.growth
        self.sites = dict(self.setup.sites)
        self.requested: dict[PilotId, SiteName] = {}
        self.up: dict[PilotId, tuple[SiteName, tuple[NodeSlots, ...]]] = {}
        self.released: set[PilotId] = set()
        self.own: set[PilotId] = set()  # in the allocation that the controller is in
        self.jobs: dict[JobId, WorldJob] = {}
        self.attempts: Counter[TrialId] = Counter()
        self.stale: list[JobId] = []
        self.concluded: dict[TrialId, TrialFinished] = {}
        self.retries: Counter[TrialId] = Counter()
        self.preemptions: Counter[TrialId] = Counter()
        self.doomed: set[TrialId] = set()
        self.gone: set[str | None] = set()
        self.checkpoint_losses: Counter[TrialId] = Counter()
        self.finished: FinishStudy | None = None
        self.exhausted_at: int | None = None

    # ----------------------------------------------------------------------------- the machine's port

    def tell(self, event: Event) -> tuple[Instruction, ...]:
        """Hand an event over, judge what follows from it and carry it out; answer proposals first."""
        instructions = self.machine.handle(event)
        self.record.append((event, instructions))
        self._judge(event, instructions)
        asked = []
        for instruction in instructions:
            self._carry_out(instruction)
            if isinstance(instruction, ProposeTrial):
                asked.append(instruction.trial)
        self._check_books()
        for trial in asked:
            if self.exhausted_at is not None and len(self.machine.trials) >= self.exhausted_at:
                self.tell(SearchExhausted(self.now))
            else:
                self.tell(TrialProposed(self.now, trial, {"lr": 0.1}))
        return instructions

    def start_controller(self) -> None:
        self.stale += self.jobs
        self.jobs.clear()
        self.requested.clear()
        self.up.clear()
        self.finished = None
        for trial in self.machine.cut_off:
            del self.concluded[trial]
        method, self.method = self.method, None
        self.growth = method.growth if method is not None else self.growth
        if method is not None and method.milestones != self.machine.scheduler.milestones:
            completed = [t for t, told in self.concluded.items() if told.state is TrialState.COMPLETED]
            for trial in completed:
                del self.concluded[trial]
        pilots = {SiteName(s): max(1, shape.pilots - shape.later) for s, shape in self.sites.items()}
        later = {s: n for s, n in ((s, self.sites[s].pilots - pilots[s]) for s in pilots) if n}
        started = StudyStarted(self.now, self.wanted, pilots, budget=self.budget, method=method, later=later)
        self.tell(started)

    # ----------------------------------------------------------------------------- what may happen

    def unfair(self, steps: int) -> None:
        """Let things happen in any legal order, some of them bad."""
        self.start_controller()
        for _ in range(steps):
            self.now += self.rng.random()
            if self.finished is not None:
                if self.rng.random() < 0.3:
                    return
                self.wanted += self.rng.choice([0, 0, 1, 3])
                self.start_controller()
            elif self.rng.random() < self.fault_rate:
                self._mishap()
            else:
                self._progress()

    def fair(self, limit: int = 20_000) -> None:
        """Let everything go well until the study ends."""
        if self.finished is not None and self.finished.state is StudyState.NO_SITE:
            self.start_controller()
        for _ in range(limit):
            if self.finished is not None and self.finished.state is StudyState.INTERRUPTED:
                self.start_controller()
            if self.finished is not None:
                return
            self.now += 1.0
            awaited = self.jobs or self.requested or self.machine.pilots.closing
            # A site that has just refused is asked again after a while, and the clock tells when.
            assert awaited or self.machine.wake_at is not None, (
                "nothing runs, nothing is awaited, and the study has not ended"
            )
            self._progress()
        raise AssertionError(f"the study does not end within {limit} steps of a fair world")

    def forgive_failed(self) -> None:
        """Let trials that failed end again."""
        for trial in [t for t, told in self.concluded.items() if told.state is TrialState.FAILED]:
            del self.concluded[trial]
            self.retries[trial] = self.preemptions[trial] = self.checkpoint_losses[trial] = 0

    def fair_step(self) -> None:
        """Let one thing go well."""
        self.now += 1.0
        self._progress()

    def _progress(self) -> None:
        wake_at = self.machine.wake_at
        if wake_at is not None and self.now >= wake_at:
            self.tell(TimerFired(self.now))
            assert self.machine.wake_at is None or self.machine.wake_at > self.now, "it would never sleep"
            return
        pilots, jobs = list(self.requested), list(self.jobs)
        closing = sorted(self.machine.pilots.closing)
        if closing and (not pilots + jobs or self.rng.random() < 0.1):
            self._pilot_goes(self.rng.choice(closing))
            return
        pick = self.rng.randrange(max(1, len(pilots) + len(jobs)))
        if pick < len(pilots):
            self._pilot_comes(pilots[pick])
        elif jobs:
            self._advance(jobs[pick - len(pilots)])

    def _pilot_comes(self, pilot: PilotId) -> None:
        site = self.requested.pop(pilot)
        shape = self.sites[site]
        gpus = tuple(range(shape.gpus_per_node))
        nodes = tuple(NodeSlots(NodeName(f"{pilot}-n{i}"), gpus) for i in range(shape.nodes))
        self.up[pilot] = (site, nodes)
        is_own = self.rng.random() < 0.1
        if is_own:
            self.own.add(pilot)
        deadline = self.rng.choice([None, self.now + 20.0, self.now + 300.0, self.now + 630.0])
        self.tell(
            PilotStarted(
                self.now,
                pilot,
                site,
                nodes,
                interactive=shape.interactive,
                deadline=deadline,
                release_idle_after_s=self.rng.choice([None, 3.0]),
                is_own_allocation=is_own,
            )
        )

    def _advance(self, job: JobId) -> None:
        live = self.jobs[job]
        if live.gone_pilot:
            self._end(job, Outcome.PREEMPTED, self._pilots_blame)
        elif live.leaving or (not live.interactive and live.epoch >= live.until):
            self._end(job, Outcome.REACHED)
        elif live.epoch == live.start.epoch and self.rng.random() < 0.5:
            self.tell(JobStarted(self.now, job))
        else:
            self._report(job, metric_of(job.trial, live.epoch + 1))

    def _report(self, job: JobId, metric: float) -> None:
        live = self.jobs[job]
        live.epoch += 1
        if live.epoch >= live.until or self.rng.random() < 0.7:
            live.checkpoint = f"{job}/{live.epoch}"
        checkpoint = live.checkpoint if live.checkpoint == f"{job}/{live.epoch}" else None
        self.preemptions[job.trial] = 0
        if not math.isfinite(metric):
            self.doomed.add(job.trial)
        saved = Checkpoint(checkpoint, live.epoch) if checkpoint else None
        shown = self.setup.samples, noise_of(job.trial, live.epoch)
        metrics = {"loss": metric, "latency": metric_of(f"{job.trial}'", live.epoch)}
        self.tell(EpochReported(self.now, job, live.epoch, metrics, 1.0, saved, (), *shown))

    def _mishap(self) -> None:  # noqa: C901 - a list of what can go wrong
        jobs, pilots = list(self.jobs), list(self.up)
        what = self.rng.choice(
            [
                *("end", "end", "nan", "pilot", "refuse", "stale", "death", "ctrl-c", "end early", "pause"),
                "gone",
            ]
        )
        if what == "end" and jobs:
            self._end(
                self.rng.choice(jobs), self.rng.choice([Outcome.LOST, Outcome.PREEMPTED, Outcome.FAILED])
            )
        elif what == "end early" and jobs:  # told to leave, it is killed meanwhile
            leaving = [j for j in jobs if self.jobs[j].leaving]
            if leaving:
                self._end(self.rng.choice(leaving), Outcome.LOST)
        elif what == "gone" and jobs:
            fresh = [j for j in jobs if self.jobs[j].epoch == self.jobs[j].start.epoch]
            if resumed := [j for j in fresh if self.jobs[j].start.resume_from is not None]:
                self._finds_nothing(self.rng.choice(resumed))
        elif what == "nan" and jobs:
            job = self.rng.choice(jobs)
            live = self.jobs[job]
            training = not live.gone_pilot and (live.interactive or live.epoch < live.until)
            if training and (not live.leaving or not live.interactive):
                self._report(job, math.nan)
        elif what == "pilot" and pilots:
            self._pilot_goes(self.rng.choice(pilots))
        elif what == "refuse" and self.requested:
            pilot = self.rng.choice(list(self.requested))
            counts = self.rng.random() < 0.5  # since some version
            self.tell(
                PilotEnded(
                    self.now, pilot, self.requested.pop(pilot), "refused", usable=False, refused=counts
                )
            )
        elif what == "stale" and self.stale:
            self._stale_words(self.rng.choice(self.stale))
        elif what == "pause":
            self.now += 200.0
        elif what == "death" and self.rng.random() < 0.3:
            self.start_controller()
        elif what == "ctrl-c" and self.rng.random() < 0.3:
            self.tell(StudyInterrupted(self.now))

    def _pilot_goes(self, pilot: PilotId) -> None:
        """Jobs end first; what the machine starts there meanwhile, if nobody warned it, finds it gone."""
        site, _ = self.up[pilot]
        if self.rng.random() < 0.5:
            self.tell(PilotLost(self.now, pilot))
        outcome = self.rng.choice([Outcome.LOST, Outcome.PREEMPTED])
        for job in [j for j, live in self.jobs.items() if live.start.placement.pilot == pilot]:
            self._end(job, outcome, self._pilots_blame)
        del self.up[pilot]
        for live in self.jobs.values():
            live.gone_pilot |= live.start.placement.pilot == pilot
        self.tell(PilotEnded(self.now, pilot, site, "walltime"))

    @property
    def _pilots_blame(self) -> Blame | None:
        """What an end says that a pilot brings: without faults all is said; records of old do not tell."""
        return None if self.fault_rate else Blame.PILOT

    def _finds_nothing(self, job: JobId) -> None:
        """The checkpoint that a job was to go on from is gone."""
        live = self.jobs.pop(job)
        self.stale.append(job)
        self.gone.add(live.start.resume_from)
        self.checkpoint_losses[job.trial] += 1
        if self.checkpoint_losses[job.trial] > FREE_CHECKPOINT_LOSSES and not live.leaving:
            self.retries[job.trial] += 1
        self.tell(JobEnded(self.now, job, Outcome.LOST, "gone", unreadable=live.start.resume_from))

    def _stale_words(self, job: JobId) -> None:
        told = self.rng.choice(
            [
                JobStarted(self.now, job),
                EpochReported(
                    self.now, job, self.rng.randint(1, 8), {"loss": 0.0}, 1.0, Checkpoint("stale", 1)
                ),
                JobEnded(self.now, job, self.rng.choice(list(Outcome)), "stale", "stale"),
                PilotEnded(self.now, PilotId("nobody-7"), SiteName("nobody"), "unknown"),
            ]
        )
        if (wake_at := self.machine.wake_at) is not None and self.now >= wake_at:
            self.tell(TimerFired(self.now))  # what was due anyway
        followed = [i for i in self.tell(told) if not _is_due_anyway(i)]
        assert not followed, "words of a dead attempt change nothing"

    def _end(self, job: JobId, outcome: Outcome, blame: Blame | None = None) -> None:
        live = self.jobs.pop(job)
        self.stale.append(job)
        trial = self.machine.trials[job.trial]
        moving = trial.job is not None and trial.job.next_placement is not None
        unasked = not live.leaving
        if outcome is Outcome.FAILED:
            self.doomed.add(job.trial)
        if outcome is Outcome.PREEMPTED and not moving:
            self.preemptions[job.trial] += 1
            if blame is None and self.preemptions[job.trial] > FREE_PREEMPTIONS:
                self.retries[job.trial] += 1
            if self.rng.random() < 0.5 and live.epoch > live.start.epoch:
                live.checkpoint = f"{job}/{live.epoch}"
        if outcome is Outcome.LOST and unasked and blame is None:
            self.retries[job.trial] += 1
        self.tell(JobEnded(self.now, job, outcome, "it ended", live.checkpoint, blame=blame))

    # ----------------------------------------------------------------------------- the referee

    def _judge(self, event: Event, instructions: tuple[Instruction, ...]) -> None:
        if isinstance(event, EpochReported) and event.job in self.jobs:
            live = self.jobs[event.job]
            answers = [i for i in instructions if isinstance(i, ContinueJob | EndJob) and i.job == event.job]
            if live.interactive:
                assert len(answers) == (0 if live.leaving else 1), f"{answers} answer {event}"
            else:
                assert not any(isinstance(i, ContinueJob) for i in answers)
        for instruction in instructions:
            match instruction:
                case StartJob():
                    self._judge_start(instruction)
                case ContinueJob(job, until, replicas, batches):
                    live = self.jobs[job]
                    assert live.interactive
                    assert not live.leaving
                    assert until > live.epoch
                    assert replicas == self._split_after(job.trial, live.epoch).replicas
                    split = self._split_after(job.trial, live.epoch)
                    assert (batches or replicas) == split.batches
                    assert batches != replicas, "said where it differs"
                    assert replicas % live.start.placement.world_size == 0, "the width divides the replicas"
                case TrialFinished():
                    assert instruction.trial not in self.concluded, "a trial ends once"
                    self.concluded[instruction.trial] = instruction
                    if instruction.state == "failed":
                        lost = self.retries[instruction.trial] > self.setup.max_retries
                        assert lost or instruction.trial in self.doomed, instruction
                case FinishStudy(state):
                    assert self.finished is None, "a controller ends once"
                    self.finished = instruction
                    if state in {StudyState.DONE, StudyState.FAILED}:
                        assert all(t.state.is_final for t in self.machine.trials.values())
                        assert len(self.machine.trials) == self.machine.num_samples
                        assert self._is_any_good == (state is StudyState.DONE)
                case _:
                    pass

    @property
    def _is_any_good(self) -> bool:
        trials = self.machine.trials.values()
        has_result = not self.machine.budget.reason or any(t.last is not None for t in trials)
        return has_result and any(t.state != "failed" for t in trials)

    def _judge_start(self, start: StartJob) -> None:
        trial, placement = start.job.trial, start.placement
        assert placement.pilot in self.up, "nothing starts on a pilot that is gone"
        assert placement.pilot not in self.machine.pilots.closing, "nothing starts on one that ends soon"
        assert trial not in {j.trial for j in self.jobs}, "one live job a trial"
        assert start.job.attempt == self.attempts[trial] + 1, "attempts ascend"
        self.attempts[trial] += 1
        assert trial not in self.concluded
        held = {s for live in self.jobs.values() for s in _slots(live.start)}
        assert not held & _slots(start), "two jobs hold one slot"
        nodes = {n.node: set(n.gpus) for n in self.up[placement.pilot][1]}
        assert all(set(n.gpus) <= nodes[n.node] for n in placement.nodes)
        milestones = self.machine.scheduler.milestones
        assert 0 <= start.epoch < start.until <= milestones[-1]
        milestone = next(m for m in milestones if m >= start.until)
        if self.sites[placement.site].interactive or self.growth != "elastic":
            assert start.until == milestone
        epochs = [epoch for epoch, *_ in start.schedule]
        assert epochs == sorted(set(epochs))
        assert epochs[0] == 0
        starts = [0, *milestones]
        replicas = start.schedule[-1][1]
        for epoch, *parallel in start.schedule:
            split = self._split(start.job.trial, starts.index(epoch))
            assert (parallel[0], parallel[-1]) == (split.replicas, split.batches)
        assert replicas == self._split(start.job.trial, milestones.index(milestone)).replicas
        assert start.until == milestone or placement.world_size < replicas, "nobody comes back for nothing"
        again = self._split_after(start.job.trial, start.epoch)
        assert replicas == again.replicas, "also where epochs are trained again"
        assert start.schedule[-1][-1] == again.batches
        assert replicas % placement.world_size == 0, "the width divides the replicas"
        assert start.resume_from not in self.gone, "nobody is sent again to what is not there"
        if start.resume_from is None:
            assert start.epoch == 0
        else:
            assert start.resume_from.endswith(f"/{start.epoch}"), "the checkpoint holds those epochs"

    def _split_after(self, trial: TrialId, epoch: int) -> Split:
        milestones = self.machine.scheduler.milestones
        return self._split(trial, next(k for k, m in enumerate(milestones) if m > epoch))

    def _split(self, trial: TrialId, rung: int) -> Split:
        """Who stands at a rung above the first has reported his samples; below, they change nothing."""
        scheduler, rule = self.machine.scheduler, self.setup.batching
        ladder = [scheduler.replicas(k) for k in range(rung + 1)]
        if not rule.is_measured or rung == 0:
            return rule.split(ladder, {}, self.setup.samples)
        begin, end = (0, *scheduler.milestones)[rung - 1 : rung + 1]
        seen = [n for n in (noise_of(trial, e) for e in range(begin + 1, end + 1)) if n is not None]
        scale = None
        if seen:
            scale = GradientNoise(fmean(n.gradient for n in seen), fmean(n.variance for n in seen)).scale
        batches = self._split(trial, rung - 1).batches
        return rule.split(ladder, {}, self.setup.samples, batches=batches, noise_scale=scale)

    def _carry_out(self, instruction: Instruction) -> None:
        match instruction:
            case RequestPilot(pilot, site):
                assert pilot not in self.requested
                self.requested[pilot] = site
            case StartJob():
                shape = self.sites[instruction.placement.site]
                self.jobs[instruction.job] = WorldJob(
                    instruction, shape.interactive, instruction.epoch, instruction.until
                )
            case ContinueJob(job, until):
                self.jobs[job].until = until
            case ReleasePilot(pilot):
                assert pilot in self.up
                assert pilot not in self.own, "the allocation that the controller is in is never given back"
                assert pilot not in self.released, "a pilot is given back once"
                working = {live.start.placement.pilot for live in self.jobs.values()}
                assert pilot not in working, "it works"
                self.released.add(pilot)
            case EndJob(job):
                assert not self.jobs[job].leaving, "a job is told to leave once"
                self.jobs[job].leaving = True
            case _:
                pass

    def _check_books(self) -> None:
        """The ledger holds exactly the slots of live jobs and what is reserved for their next ones."""
        assert set(self.machine.jobs) == set(self.jobs)
        held: list[tuple[str, str]] = []
        closing = self.machine.pilots.closing
        for trial in self.machine.jobs.values():
            job = trial.job
            assert job is not None
            mine = {(job.placement.pilot, s) for s in job.placement.slots}
            if job.next_placement is not None:
                mine |= {(job.next_placement.pilot, s) for s in job.next_placement.slots}
            held += [slot for slot in mine if slot[0] in self.up and slot[0] not in closing]
        assert len(held) == len(set(held)), "two trials hold one slot"
        ups = (nodes for pilot, (_, nodes) in self.up.items() if pilot not in closing)
        slots = sum(len(n.gpus) for nodes in ups for n in nodes)
        ledger = self.machine.cluster_state.ledger
        assert ledger.free + len(held) + ledger.num_set_aside == slots
        waiting = {w.trial for w in self.machine.cluster_state.waiting}
        assert waiting == {t.id for t in self.machine.trials.values() if t.state == "waiting"}


def _slots(start: StartJob) -> set[tuple[str, str]]:
    return {(start.placement.pilot, slot) for slot in start.placement.slots}


def _is_due_anyway(instruction: Instruction) -> bool:
    """Whether time alone brings it: pilots that are idle for long, the end of the controller's allocation."""
    match instruction:
        case ReleasePilot():
            return True
        case EndJob(reason="interrupted"):
            return True
        case _:
            return False
