"""A world whose trials are all good and whose machine is not: bad slots, bad nodes, launchers that refuse."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from parsl_rasda.orchestration.events import (
    ContinueJob,
    EndJob,
    EpochReported,
    FinishStudy,
    Instruction,
    JobEnded,
    PilotEnded,
    PilotStarted,
    ProposeTrial,
    ReleasePilot,
    RequestPilot,
    StartJob,
    StudyStarted,
    TimerFired,
    TrialFinished,
    TrialProposed,
)
from parsl_rasda.orchestration.machine import Machine
from parsl_rasda.protocol import Checkpoint
from parsl_rasda.types import Blame, JobId, NodeName, NodeSlots, Outcome, Phase, PilotId, SiteName
from tests.unit.orchestration.random_world import Setup, metric_of

SITE = SiteName("a")


@dataclass(frozen=True)
class Faults:
    """What is broken.

    Attributes:
        unsure: Slots, as ``node:gpu``, that kill jobs by a signal.
        sure: Slots that say so (ECC).
        nodes: Nodes on which no rank comes up.
        refused: World sizes that the launcher refuses.
        walltime_s: Of each pilot, or None.
        crashing: Trials that kill themselves wherever they run.
    """

    unsure: frozenset[str] = frozenset()
    sure: frozenset[str] = frozenset()
    nodes: frozenset[str] = frozenset()
    refused: frozenset[int] = frozenset()
    walltime_s: float | None = None
    crashing: frozenset[str] = frozenset()


@dataclass
class Live:
    start: StartJob
    epoch: int
    leaving: bool = False


@dataclass
class FaultyWorld:
    """One site with one pilot at a time; jobs move on in random order."""

    setup: Setup
    seed: int
    faults: Faults = field(default_factory=Faults)

    def __post_init__(self) -> None:
        self.rng, self.now = random.Random(self.seed), 0.0
        self.machine: Machine = self.setup.machine()
        self.jobs: dict[JobId, Live] = {}
        self.requested: list[PilotId] = []
        self.up: dict[PilotId, float | None] = {}
        self.finished: FinishStudy | None = None
        self.ends: dict[str, TrialFinished] = {}
        self.record: list = []

    def run(self, limit: int = 20_000) -> None:
        self.tell(StudyStarted(self.now, self.setup.trials, {SITE: 1}))
        for _ in range(limit):
            if self.finished is not None:
                return
            self.now += self.rng.uniform(0.1, 1.0)
            self.step()
        raise AssertionError("it never ends")

    def step(self) -> None:
        for pilot, deadline in tuple(self.up.items()):
            if deadline is not None and self.now > deadline:
                self.end_pilot(pilot)
                return
        wake_at = self.machine.wake_at
        if self.requested:
            self.start_pilot(self.requested.pop(0))
        elif self.jobs:
            if wake_at is not None and self.now >= wake_at:
                self.tell(TimerFired(self.now))
            else:
                self.advance(self.rng.choice(list(self.jobs)))
        else:
            assert wake_at is not None, "nothing runs, nothing is awaited, and it has not ended"
            self.now = max(self.now, wake_at)
            self.tell(TimerFired(self.now))

    def start_pilot(self, pilot: PilotId) -> None:
        shape = self.setup.sites["a"]
        nodes = tuple(
            NodeSlots(NodeName(f"n{i}"), tuple(range(shape.gpus_per_node))) for i in range(shape.nodes)
        )
        walltime_s = self.faults.walltime_s
        self.up[pilot] = None if walltime_s is None else self.now + walltime_s
        self.tell(PilotStarted(self.now, pilot, SITE, nodes, deadline=self.up[pilot]))

    def end_pilot(self, pilot: PilotId) -> None:
        """The batch system kills what runs there."""
        for job in [j for j, live in self.jobs.items() if live.start.placement.pilot == pilot]:
            self.end(job, Outcome.LOST, "a rank died by SIGKILL", Blame.UNSURE)
        del self.up[pilot]
        for job in [j for j, live in self.jobs.items() if live.start.placement.pilot == pilot]:
            self.end(job, Outcome.PREEMPTED, "the pilot had gone", Blame.PILOT)
        self.tell(PilotEnded(self.now, pilot, SITE, "walltime"))

    def advance(self, job: JobId) -> None:
        live = self.jobs[job]
        place, faults = live.start.placement, self.faults
        if live.leaving:
            self.end(job, Outcome.REACHED, "", None)
        elif place.world_size in faults.refused or any(n.node in faults.nodes for n in place.nodes):
            self.end(job, Outcome.LOST, "no rank ran", Blame.SITE, Phase.NO_RANK)
        elif faults.sure.intersection(place.slots):
            self.end(job, Outcome.LOST, "CUDA error: uncorrectable ECC error", Blame.SLOT)
        elif faults.unsure.intersection(place.slots) or job.trial in faults.crashing:
            self.end(job, Outcome.LOST, "a rank died by SIGSEGV", Blame.UNSURE)
        else:
            live.epoch += 1
            saved = Checkpoint(f"{job}/{live.epoch}", live.epoch)
            metrics = {"loss": metric_of(job.trial, live.epoch)}
            self.tell(EpochReported(self.now, job, live.epoch, metrics, 1.0, saved))

    def end(
        self, job: JobId, outcome: Outcome, cause: str, blame: Blame | None, phase: Phase | None = None
    ) -> None:
        del self.jobs[job]
        self.tell(JobEnded(self.now, job, outcome, cause, blame=blame, phase=phase))

    def tell(self, event) -> None:
        instructions = self.machine.handle(event)
        self.record.append((event, instructions))
        for instruction in instructions:
            self.carry_out(instruction)
        for ask in [i for i in instructions if isinstance(i, ProposeTrial)]:
            self.tell(TrialProposed(self.now, ask.trial, {"lr": int(ask.trial)}))

    def carry_out(self, instruction: Instruction) -> None:
        match instruction:
            case RequestPilot(pilot):
                self.requested.append(pilot)
            case ReleasePilot(pilot):
                del self.up[pilot]
                self.tell(PilotEnded(self.now, pilot, SITE, "released"))
            case StartJob():
                self.jobs[instruction.job] = Live(instruction, instruction.epoch)
            case EndJob(job):
                self.jobs[job].leaving = True
            case ContinueJob():
                pass
            case TrialFinished():
                self.ends[instruction.trial] = instruction
            case FinishStudy():
                self.finished = instruction
            case _:
                pass
