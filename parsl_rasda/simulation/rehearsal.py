"""The machine under a virtual clock: the same decisions as live, without a process.

Events are taken from a heap in order of virtual time; instructions are answered by a virtual site.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from parsl_rasda.orchestration.driver import Observer, without_collections
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
from parsl_rasda.orchestration.run_names import number_of
from parsl_rasda.orchestration.states import JobState
from parsl_rasda.orchestration.trial_record import LiveJob, TrialRecord
from parsl_rasda.orchestration.usage import Usage
from parsl_rasda.protocol import Checkpoint
from parsl_rasda.simulation.costs import Costs
from parsl_rasda.types import Budget, Confirm, JobId, Mode, NodeName, NodeSlots, Outcome, SiteName, TrialId

_OTHERS = 1_000_003  # further metrics of a trial are drawn as the first one of a trial so far away


@dataclass(frozen=True, slots=True)
class VirtualSite:
    """The shape of every pilot of a site.

    Attributes:
        interactive: Jobs ask the controller at each epoch boundary; otherwise each stretch is one task.
        names: Of the nodes, pilot after pilot; those beyond them get made-up ones.
        queue_s: How long its first, second, ... pilot waits [s]; by default as costs say.
        later: Of its pilots, those that are asked for when trials wait.
    """

    nodes: int
    gpus_per_node: int
    pilots: int = 1
    interactive: bool = True
    names: Sequence[NodeName] = ()
    queue_s: Sequence[float] = ()
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
        self._grants_pilots = True

    def run(self, num_samples: int, budget: Budget | None = None, confirm: Confirm | None = None) -> Usage:
        """Return the usage of the whole study; its virtual clock starts at 0 s.

        Args:
            num_samples: Trials wanted in all.
            budget: What it may spend; its ``until`` is by the virtual clock.
            confirm: How its best trials are trained again at its end.
        """
        pilots = {site: shape.pilots - shape.later for site, shape in self.sites.items()}
        later = {site: shape.later for site, shape in self.sites.items() if shape.later}
        self._post(StudyStarted(0.0, num_samples, pilots, budget=budget, later=later, confirm=confirm))
        self._run_on()
        return self.usage

    def go_on(self, now: float, epoch_ends_at: Callable[[TrialRecord, LiveJob], float]) -> float:
        """Take a machine on from the middle of a search; return when nothing happens any more [s].

        It goes on with the pilots that are up: nobody knows when another would come.

        Args:
            now: Present time [s].
            epoch_ends_at: When the present epoch of a running job is over [s], if not yet.
        """
        self._grants_pilots = False
        running = list(self.machine.jobs.items())
        for job_id, trial in running:
            job = trial.job
            if job is None or job.is_leaving:
                self._post(JobEnded(now + self.costs.leave_s, job_id, Outcome.REACHED))
                continue
            self._jobs[job_id] = _VirtualJob(
                number_of(trial.id), job.placement.world_size, trial.epoch, job.until, job.interactive
            )
            seconds = self.costs.epoch_s(number_of(trial.id), job.placement.world_size)
            began = max(now, epoch_ends_at(trial, job)) - seconds
            if job.state is JobState.STARTING:
                self._post(JobStarted(max(now, began), job_id))
            self._next_epoch(began, job_id)
        self._handle(TrialProposed(now, TrialId(f"{len(self.machine.trials):04d}"), {}))  # if it is asked for
        self._run_on()
        return self._now

    def _run_on(self) -> None:
        with without_collections():
            while self._events:
                due_at = self.machine.wake_at
                if due_at is not None and due_at < self._events[0][0]:
                    self._handle(TimerFired(max(due_at, self._now)))
                else:
                    _, _, event = heapq.heappop(self._events)
                    self._happen(event)

    def _happen(self, event: Event) -> None:
        if type(event) is EpochReported:
            job = self._jobs.get(event.job)
            if job is None:
                return  # it left before
            job.epoch = event.epoch
            self._handle(event)
            if not job.interactive:
                self._go_on_alone(event)
        elif type(event) is not JobStarted or event.job in self._jobs:
            self._handle(event)

    def _handle(self, event: Event) -> None:
        self._now = max(self._now, event.at)
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

    def _post(self, event: Event, handled_at: float = 0.0) -> None:
        heapq.heappush(self._events, (max(event.at, handled_at), next(self._order), event))

    def _carry_out(self, now: float, instruction: Instruction) -> None:
        match instruction:
            case RequestPilot(pilot, site) if self._grants_pilots:
                shape = self.sites[site]
                number = self._pilots[site]
                nodes = shape.nodes_of(number)
                self._pilots[site] += 1
                wait_s = shape.queue_s[: number + 1]
                at = now + (wait_s[-1] if wait_s else self.costs.queue_s)
                self._post(PilotStarted(at, pilot, site, nodes, interactive=shape.interactive))
            case StartJob():
                self._start(now, instruction)
            case ContinueJob(job, until):
                self._jobs[job].until = until
                self._next_epoch(now + self.costs.boundary_s, job)
            case EndJob(job):
                self._jobs.pop(job)
                leave_s, handled_s = self.costs.end_s(number_of(job.trial), job.attempt)
                self._post(JobEnded(now + leave_s, job, Outcome.REACHED), now + handled_s)
            case _:
                pass

    def _start(self, now: float, start: StartJob) -> None:
        trial = number_of(start.job.trial)
        has_channel = self.sites[start.placement.site].interactive
        interactive = has_channel and self.machine.settings.interactive  # a script never asks
        self._jobs[start.job] = _VirtualJob(
            trial, start.placement.world_size, start.epoch, start.until, interactive
        )
        at = now + self.costs.start_s(trial, start.job.attempt)
        self._post(JobStarted(at, start.job))
        self._next_epoch(at, start.job)

    def _next_epoch(self, now: float, job: JobId) -> None:
        state = self._jobs[job]
        epoch = state.epoch + 1
        seconds = self.costs.seconds(state.trial, epoch, state.world_size)
        metrics = {self.machine.settings.metric: self.costs.metric(state.trial, epoch)}
        if (objectives := self.machine.settings.objectives) is not None:
            # The first is as ever; each further one ranks trials in its own way, and all limits are kept.
            metrics = {limit.metric: limit.bound for limit in objectives.limits} | metrics
            for number, (name, mode) in enumerate(objectives.metrics[1:], 1):
                cost = self.costs.metric(state.trial + number * _OTHERS, epoch)
                metrics.setdefault(name, cost if mode is Mode.MIN else -cost)
        checkpoint = Checkpoint(f"{job}/{epoch}", epoch)
        shown = self.costs.samples, self.costs.noise(state.trial, epoch)
        self._post(EpochReported(now + seconds, job, epoch, metrics, seconds, checkpoint, (), *shown))

    def _go_on_alone(self, event: EpochReported) -> None:
        """Let a job without a control channel train on, or end, without being asked."""
        state = self._jobs.get(event.job)
        if state is None:
            return
        if state.epoch < state.until:
            self._next_epoch(event.at + self.costs.boundary_s, event.job)
        else:
            del self._jobs[event.job]
            self._post(JobEnded(event.at, event.job, Outcome.REACHED))
