"""The machine under a virtual clock: the same decisions as live, without a process.

Events are taken from a heap in order of virtual time; instructions are answered by a virtual site.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from parsl_rasda.orchestration.driver import Observer
from parsl_rasda.orchestration.events import (
    ContinueJob,
    EndJob,
    EpochReported,
    Event,
    Instruction,
    JobEnded,
    JobStarted,
    PilotStarted,
    ProposeTrial,
    RequestPilot,
    StartJob,
    StudyStarted,
    TimerFired,
    TrialProposed,
)
from parsl_rasda.orchestration.machine import Machine
from parsl_rasda.orchestration.usage import Usage
from parsl_rasda.protocol import Checkpoint
from parsl_rasda.simulation.costs import Costs
from parsl_rasda.types import JobId, NodeName, NodeSlots, Outcome, SiteName


@dataclass(frozen=True, slots=True)
class VirtualSite:
    """The shape of every pilot of a site.

    Attributes:
        interactive: Jobs ask the controller at each epoch boundary; otherwise each stretch is one task.
        names: Of the nodes, pilot after pilot; those beyond them get made-up ones.
        later: Of its pilots, those that are asked for when trials wait.
    """

    nodes: int
    gpus_per_node: int
    pilots: int = 1
    interactive: bool = True
    names: Sequence[NodeName] = ()
    later: int = 0

    def nodes_of(self, pilot: int) -> tuple[NodeSlots, ...]:
        """Return the nodes of its first, second, ... pilot, counted from 0."""
        gpus = tuple(range(self.gpus_per_node))
        places = range(pilot * self.nodes, (pilot + 1) * self.nodes)
        names = (self.names[i] if i < len(self.names) else NodeName(f"n{i:04d}") for i in places)
        return tuple(NodeSlots(name, gpus) for name in names)


@dataclass(slots=True)
class _VirtualJob:
    trial: int
    world_size: int
    epoch: int
    until: int
    interactive: bool


class Rehearsal:
    """Runs a machine to its end in virtual time."""

    def __init__(
        self,
        machine: Machine,
        sites: Mapping[SiteName, VirtualSite],
        costs: Costs,
        observers: Sequence[Observer] = (),
    ) -> None:
        """Prepare a rehearsal of a machine that has not begun."""
        self.machine, self.sites, self.costs = machine, sites, costs
        self.usage = Usage()
        self._observers = (self.usage, *observers)
        self._events: list[tuple[float, int, Event]] = []
        self._order = itertools.count()
        self._jobs: dict[JobId, _VirtualJob] = {}
        self._pilots: Counter[SiteName] = Counter()
        self._now = 0.0

    def run(self, num_samples: int) -> Usage:
        """Return the usage of the whole study; its virtual clock starts at 0 s."""
        pilots = {site: shape.pilots - shape.later for site, shape in self.sites.items()}
        later = {site: shape.later for site, shape in self.sites.items() if shape.later}
        self._post(StudyStarted(0.0, num_samples, pilots, later=later))
        while self._events:
            due_at = self.machine.wake_at
            if due_at is not None and due_at < self._events[0][0]:
                self._handle(TimerFired(max(due_at, self._now)))
                continue
            _, _, event = heapq.heappop(self._events)
            if isinstance(event, JobStarted | EpochReported) and event.job not in self._jobs:
                continue  # it left before
            if isinstance(event, EpochReported):
                self._jobs[event.job].epoch = event.epoch
            self._handle(event)
            if isinstance(event, EpochReported):
                self._go_on_alone(event)
        return self.usage

    def _handle(self, event: Event) -> None:
        self._now = event.at
        pending = deque([event])  # proposals are answered before anything else
        while pending:
            event = pending.popleft()
            instructions = self.machine.handle(event)
            for observer in self._observers:
                observer.add(event, instructions)
            for instruction in instructions:
                if isinstance(instruction, ProposeTrial):
                    pending.append(TrialProposed(event.at, instruction.trial, {}))
                else:
                    self._carry_out(event.at, instruction)

    def _post(self, event: Event) -> None:
        heapq.heappush(self._events, (event.at, next(self._order), event))

    def _carry_out(self, now: float, instruction: Instruction) -> None:
        match instruction:
            case RequestPilot(pilot, site):
                shape = self.sites[site]
                nodes = shape.nodes_of(self._pilots[site])
                self._pilots[site] += 1
                at = now + self.costs.queue_s
                self._post(PilotStarted(at, pilot, site, nodes, interactive=shape.interactive))
            case StartJob():
                self._start(now, instruction)
            case ContinueJob(job, until):
                self._jobs[job].until = until
                self._next_epoch(now + self.costs.boundary_s, job)
            case EndJob(job):
                self._jobs.pop(job)
                self._post(JobEnded(now + self.costs.leave_s, job, Outcome.REACHED))
            case _:
                pass

    def _start(self, now: float, start: StartJob) -> None:
        trial = int(start.job.trial)
        has_channel = self.sites[start.placement.site].interactive
        interactive = has_channel and self.machine.settings.interactive  # a script never asks
        self._jobs[start.job] = _VirtualJob(
            trial, start.placement.world_size, start.epoch, start.until, interactive
        )
        first = start.job.attempt == 1
        at = now + (self.costs.launch_s(trial) if first else self.costs.restart_s)
        self._post(JobStarted(at, start.job))
        self._next_epoch(at, start.job)

    def _next_epoch(self, now: float, job: JobId) -> None:
        state = self._jobs[job]
        seconds = self.costs.epoch_s(state.trial, state.world_size)
        epoch = state.epoch + 1
        metrics = {self.machine.settings.metric: self.costs.metric(state.trial, epoch)}
        checkpoint = Checkpoint(f"{job}/{epoch}", epoch)
        shown = self.costs.samples, self.costs.noise(state.trial, epoch)
        self._post(EpochReported(now + seconds, job, epoch, metrics, seconds, checkpoint, (), *shown))

    def _go_on_alone(self, event: EpochReported) -> None:
        """Let a job without a control channel train on, or end, without being asked."""
        state = self._jobs.get(event.job)
        if state is None or state.interactive:
            return
        if state.epoch < state.until:
            self._next_epoch(event.at + self.costs.boundary_s, event.job)
        else:
            del self._jobs[event.job]
            self._post(JobEnded(event.at, event.job, Outcome.REACHED))
