"""Searches whose survivors are fixed beforehand, rehearsed without latencies: to compare policies.

A growth policy must not be judged by which trials happen to survive under it. Here a table says
how many rungs each trial passes, so that every policy trains the same epochs, and only the schedule
differs.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field

from parsl_rasda.orchestration.events import EpochReported, Event, Instruction
from parsl_rasda.orchestration.machine import Machine, MachineSettings
from parsl_rasda.orchestration.usage import Usage
from parsl_rasda.placement.cluster_state import GrowthPolicy
from parsl_rasda.placement.growth import build_growth
from parsl_rasda.placement.times import Assumed
from parsl_rasda.scheduling.base import Action, Decision
from parsl_rasda.scheduling.batching import Batching
from parsl_rasda.simulation.costs import Costs
from parsl_rasda.simulation.rehearsal import Rehearsal, VirtualSite
from parsl_rasda.types import Mode, SiteName, TrialId

_SPREAD = 0.3  # standard deviation of the logarithm of epoch times


@dataclass(frozen=True)
class Instance:
    """One search on one machine; times in epochs of a median trial at its first width.

    Attributes:
        seed: Seeds epoch times and survivors.
        sites: Into how many sites the nodes are divided; a trial stays on its own.
        eta: Reduction factor: one trial in ``eta`` passes a rung, which lasts ``eta`` times as long.
        rungs: Decisions that a trial which passes them all has behind it.
        ratio: Trials for each place of the first width.
        workers: The first width.
        efficiency: What a doubling of the width keeps of its speed-up.
        restart_s: A restart at another width.
    """

    seed: int
    gpus: int = 16
    gpus_per_node: int = 4
    sites: int = 1
    eta: int = 2
    scaling: int = 2
    rungs: int = 4
    ratio: float = 1.0
    workers: int = 1
    efficiency: float = 0.9
    restart_s: float = 0.2
    paces: tuple[float, ...] = field(init=False, repr=False)
    depths: tuple[int, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Draw an epoch time for each trial, and how many rungs it passes."""
        rng = random.Random(self.seed)  # noqa: S311 - an example, no secret
        count = max(1, round(self.ratio * self.gpus / self.workers))
        paces = [math.exp(rng.gauss(0.0, _SPREAD)) for _ in range(count)]
        depths, alive = [0] * count, list(range(count))
        for rung in range(self.rungs):
            luck = {trial: rng.random() for trial in alive}
            alive = sorted(alive, key=luck.__getitem__)[: max(1, len(alive) // self.eta)]
            for trial in alive:
                depths[trial] = rung + 1
        object.__setattr__(self, "paces", tuple(paces))
        object.__setattr__(self, "depths", tuple(depths))

    @property
    def milestones(self) -> tuple[int, ...]:
        """Epochs at which trials are judged; the last one completes them."""
        return tuple(self.eta**rung for rung in range(self.rungs + 1))

    def replicas(self, rung: int) -> int:
        """Return the replicas on the way to a rung: no more than a site has GPUs."""
        wanted = self.workers
        for _ in range(rung):
            if wanted * self.scaling <= self.gpus // self.sites:
                wanted *= self.scaling
        return wanted

    def costs(self) -> Costs:
        """Return what its training costs."""
        speedup = Assumed(efficiency=self.efficiency).speedup
        return Costs(
            lambda trial, width: self.paces[trial] * speedup(self.workers) / speedup(width),
            lambda trial, epoch: trial + 1.0 / epoch,
            restart_s=self.restart_s,
        )


@dataclass
class TableScheduler:
    """Lets each trial pass as many rungs as the table says.

    Attributes:
        fixed: Trials keep their first number of replicas, as under ASHA.
    """

    instance: Instance
    fixed: bool = False
    rung: dict[TrialId, int] = field(default_factory=dict)

    @property
    def milestones(self) -> tuple[int, ...]:
        """Epochs at which trials are judged."""
        return self.instance.milestones

    def replicas(self, rung: int) -> int:
        """Return the replicas on the way to a rung."""
        return self.instance.workers if self.fixed else self.instance.replicas(rung)

    def add(self, trial: TrialId) -> Decision:
        """Let a new trial train to the first rung."""
        return self._go(trial, 0)

    def report(self, trial: TrialId, epoch: int, metric: float) -> Decision:
        """Look the trial up in the table; the metric does not count."""
        rung = self.rung[trial]
        if epoch < self.milestones[rung]:
            return self._go(trial, rung)
        if self.instance.depths[int(trial)] > rung:
            return self._go(trial, rung + 1)
        done = rung == len(self.milestones) - 1
        return Decision(trial, Action.STOP, epoch, self.replicas(rung), rung, completed=done)

    def _go(self, trial: TrialId, rung: int) -> Decision:
        self.rung[trial] = rung
        return Decision(trial, Action.CONTINUE, self.milestones[rung], self.replicas(rung), rung)

    def remove(self, trial: TrialId) -> None:
        """Forget a trial: the table knows nothing of failures."""

    def readmit(self, trial: TrialId) -> Decision:
        """Let a trial that failed train to the first rung."""
        return self._go(trial, 0)

    def close(self) -> None:
        """Learn that no further trial will come."""

    def resume_next(self) -> Decision | None:
        """Return no trial: nobody pauses."""
        return None

    def dismiss(self) -> tuple[Decision, ...]:
        """Return nobody: nobody pauses."""
        return ()


@dataclass
class Rehearsed:
    """A search that was rehearsed to its end.

    Attributes:
        records: Each event and what followed from it.
        arrivals: When each trial reached each rung, by trial and epoch.
    """

    instance: Instance
    machine: Machine
    usage: Usage = field(default_factory=Usage)
    records: list[tuple[Event, tuple[Instruction, ...]]] = field(default_factory=list)
    arrivals: dict[tuple[TrialId, int], float] = field(default_factory=dict)

    @property
    def makespan_s(self) -> float:
        """Time of the whole search."""
        return self.usage.makespan_s()

    def add(self, event: Event, instructions: tuple[Instruction, ...]) -> None:
        """Take note of an event and of what followed from it."""
        self.records.append((event, instructions))
        if isinstance(event, EpochReported) and event.epoch in self.instance.milestones:
            self.arrivals[event.job.trial, event.epoch] = event.at

    def late(self, other: Rehearsed) -> Mapping[tuple[TrialId, int], float]:
        """Return the rungs that were reached later than in another rehearsal, and how much later."""
        assert self.arrivals.keys() == other.arrivals.keys(), "the same trials reach the same rungs"
        behind = {key: at - other.arrivals[key] for key, at in self.arrivals.items()}
        return {key: s for key, s in behind.items() if s > 1e-9 * other.arrivals[key]}


def rehearse(
    instance: Instance,
    growth: str | GrowthPolicy,
    *,
    interactive: bool = True,
    has_constant_batch: bool = False,
) -> Rehearsed:
    """Return a search under a growth policy; `none` keeps the first width, as ASHA does.

    Args:
        instance: The search and the machine.
        growth: A policy, or the name of one.
        interactive: Trials ask at each epoch; otherwise they train one task after another.
        has_constant_batch: As many replicas as the last rung has workers share a batch from the start.
    """
    replicas = instance.replicas(instance.rungs) if has_constant_batch else None
    assumed = Assumed(1.0, instance.restart_s, instance.efficiency)
    settings = MachineSettings(
        "loss", Mode.MIN, num_workers=instance.workers, assumed=assumed, batching=Batching(replicas)
    )
    policy = build_growth(growth) if isinstance(growth, str) else growth
    found = Rehearsed(instance, Machine(settings, TableScheduler(instance, growth == "none"), policy))
    nodes = instance.gpus // instance.gpus_per_node // instance.sites
    shape = VirtualSite(nodes, instance.gpus_per_node, interactive=interactive)
    sites = {SiteName(f"s{i}"): shape for i in range(instance.sites)}
    found.usage = Rehearsal(found.machine, sites, instance.costs(), [found]).run(len(instance.paces))
    return found
