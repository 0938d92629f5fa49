"""Rehearsals: what a study costs in virtual time, and the promise of elastic growth."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

import pytest

from parsl_rasda.orchestration.accounts import Accounts
from parsl_rasda.orchestration.events import EpochReported, StartJob
from parsl_rasda.orchestration.machine import Machine, MachineSettings
from parsl_rasda.placement.growth import build_growth
from parsl_rasda.placement.times import Assumed
from parsl_rasda.scheduling import build_scheduler
from parsl_rasda.scheduling.base import Action, Decision
from parsl_rasda.simulation.costs import Costs, assumed_costs
from parsl_rasda.simulation.rehearsal import Rehearsal, VirtualSite
from parsl_rasda.vocabulary import Mode, SiteName, StudyState, TrialId

A = SiteName("a")
HONEST = 1e-9


@dataclass
class Instance:
    """Which trial survives how many rungs is fixed beforehand: the same work for every policy."""

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

    def __post_init__(self) -> None:
        rng = random.Random(self.seed)
        self.trials = max(1, round(self.ratio * self.gpus / self.workers))
        self.pace = [math.exp(rng.gauss(0.0, 0.3)) for _ in range(self.trials)]
        self.milestones = tuple(self.eta**k for k in range(self.rungs + 1))
        self.depth = [0] * self.trials
        alive = list(range(self.trials))
        for rung in range(self.rungs):
            alive = rng.sample(alive, max(1, len(alive) // self.eta))
            for trial in alive:
                self.depth[trial] = rung + 1
        self.largest = self.gpus // self.sites

    def replicas(self, rung: int) -> int:
        wanted = self.workers
        for _ in range(rung):
            if wanted * self.scaling <= self.largest:
                wanted *= self.scaling
        return wanted

    def costs(self) -> Costs:
        whole = Assumed(efficiency=self.efficiency).speedup(self.workers)
        return Costs(
            lambda trial, width: (
                self.pace[trial] * whole / Assumed(efficiency=self.efficiency).speedup(width)
            ),
            lambda trial, epoch: trial + 1.0 / epoch,
            restart_s=self.restart_s,
        )


@dataclass
class TableScheduler:
    """Lets each trial pass as many rungs as the table says."""

    instance: Instance
    fixed: bool
    rung: dict[TrialId, int] = field(default_factory=dict)

    @property
    def milestones(self) -> tuple[int, ...]:
        return self.instance.milestones

    def replicas(self, rung: int) -> int:
        return self.instance.workers if self.fixed else self.instance.replicas(rung)

    def add(self, trial: TrialId) -> Decision:
        return self._go(trial, 0)

    def report(self, trial: TrialId, epoch: int, metric: float) -> Decision:
        rung = self.rung[trial]
        if epoch < self.milestones[rung]:
            return self._go(trial, rung)
        if self.instance.depth[int(trial)] > rung:
            return self._go(trial, rung + 1)
        done = rung == len(self.milestones) - 1
        return Decision(trial, Action.STOP, epoch, self.replicas(rung), rung, completed=done)

    def _go(self, trial: TrialId, rung: int) -> Decision:
        self.rung[trial] = rung
        return Decision(trial, Action.CONTINUE, self.milestones[rung], self.replicas(rung), rung)

    def remove(self, trial: TrialId) -> None: ...

    def close(self) -> None: ...

    def resume_next(self) -> None: ...

    def dismiss(self) -> tuple[Decision, ...]:
        return ()


class Watched:
    """A machine whose events are remembered."""

    def __init__(self, machine: Machine) -> None:
        self.machine, self.settings = machine, machine.settings
        self.records: list = []

    def handle(self, event):
        instructions = self.machine.handle(event)
        self.records.append((event, instructions))
        return instructions


def rehearse(instance: Instance, growth: str, *, interactive: bool = True) -> tuple[Accounts, Watched]:
    assumed = Assumed(1.0, instance.restart_s, instance.efficiency)
    settings = MachineSettings("loss", Mode.MIN, num_workers=instance.workers, assumed=assumed)
    machine = Watched(Machine(settings, TableScheduler(instance, growth == "none"), build_growth(growth)))
    nodes = instance.gpus // instance.gpus_per_node // instance.sites
    shape = VirtualSite(nodes, instance.gpus_per_node, interactive=interactive)
    sites = {SiteName(f"s{i}"): shape for i in range(instance.sites)}
    accounts = Rehearsal(machine, sites, instance.costs()).run(instance.trials)
    assert machine.machine.state is StudyState.DONE
    return accounts, machine


def arrivals(watched: Watched, milestones: tuple[int, ...]) -> dict[tuple[str, int], float]:
    """When each trial reached each rung."""
    return {
        (event.job.trial, event.epoch): event.at
        for event, _ in watched.records
        if isinstance(event, EpochReported) and event.epoch in milestones
    }


def random_instance(seed: int) -> Instance:
    rng = random.Random(seed)
    gpus, per_node = rng.choice([(1, 1), (4, 4), (8, 4), (16, 4), (16, 8), (32, 4)])
    sites = rng.choice([1, 1, 2]) if gpus // per_node >= 2 else 1
    workers = rng.choice([1, 1, 1, 2]) if gpus // sites >= 2 else 1
    return Instance(
        seed,
        gpus,
        per_node,
        sites,
        eta=rng.choice([2, 3, 4]),
        scaling=rng.choice([2, 4]),
        rungs=rng.choice([2, 3, 4]),
        ratio=rng.choice([0.25, 0.5, 1, 2, 4, 8]),
        workers=workers,
        efficiency=rng.choice([0.55, 0.8, 0.9, 1.0]),
        restart_s=rng.choice([0.0, 0.05, 0.2, 1.0, 5.0]),
    )


@pytest.mark.parametrize("block", range(6))
def test_elastic_is_never_slower_than_asha_and_late_at_no_rung(block: int) -> None:
    faster = 0
    for seed in range(50 * block, 50 * block + 50):
        instance = random_instance(seed)
        elastic, watched = rehearse(instance, "elastic")
        asha, fixed = rehearse(instance, "none")
        assert elastic.makespan_s() <= asha.makespan_s() * (1 + HONEST), instance
        at, at_asha = arrivals(watched, instance.milestones), arrivals(fixed, instance.milestones)
        assert at.keys() == at_asha.keys(), "the same trials reach the same rungs"
        late = [key for key in at if at[key] > at_asha[key] * (1 + HONEST)]
        assert not late, (instance, late)
        faster += elastic.makespan_s() < asha.makespan_s() * 0.95
    assert faster > 20


@pytest.mark.parametrize(("growth", "ratio"), [("elastic", 1), ("strict", 1), ("elastic", 0.25)])
def test_growth_pays_where_gpus_fall_idle(growth: str, ratio: float) -> None:
    instance = Instance(1, gpus=32, ratio=ratio, rungs=4)
    assert rehearse(instance, growth)[0].makespan_s() < 0.7 * rehearse(instance, "none")[0].makespan_s()


def test_strict_trains_at_the_full_width_always_and_none_never_restarts() -> None:
    instance = Instance(2, gpus=16, ratio=4, rungs=3)
    _, strict = rehearse(instance, "strict")
    starts = [i for _, told in strict.records for i in told if isinstance(i, StartJob)]
    assert all(s.placement.width == s.schedule[-1][1] for s in starts)
    assert any(s.placement.width > 1 for s in starts)
    asha, _ = rehearse(instance, "none")
    assert asha.restarts_s == []
    assert asha.repeated_epochs == 0


def test_the_clock_of_one_trial_alone() -> None:
    """4 epochs of 10 s after a queue of 30 s and a launch of 5 s, with 1 s between epochs."""
    machine = Machine(
        MachineSettings("loss", Mode.MIN), build_scheduler({"kind": "asha", "max_t": 4}), build_growth("none")
    )
    costs = Costs(lambda _i, _w: 10.0, lambda _i, e: 1.0 / e, lambda _: 5.0, boundary_s=1.0, queue_s=30.0)
    books = Rehearsal(machine, {A: VirtualSite(1, 1)}, costs).run(1)
    assert books.makespan_s() == 30 + 5 + 4 * 10 + 3 * 1
    assert books.busy_gpu_s == 40
    assert books.held_gpu_s() == 48


def test_a_restart_costs_what_it_costs() -> None:
    """After epoch 1 the trial is alone on two GPUs: it restarts for 7 s and goes on at half the time."""
    machine = Machine(
        MachineSettings("loss", Mode.MIN, assumed=Assumed(100.0, 7.0, 1.0)),
        build_scheduler({"max_t": 2}),
        build_growth("elastic"),
    )
    costs = Costs(lambda _i, w: 100.0 / w, lambda _i, e: 1.0 / e, restart_s=7.0, leave_s=2.0)
    books = Rehearsal(machine, {A: VirtualSite(1, 2)}, costs).run(1)
    assert books.restarts_s == [9.0]
    assert books.makespan_s() == 100 + 2 + 7 + 50 + 2


def test_sites_without_a_channel_train_each_stretch_as_one_task() -> None:
    instance = Instance(3, ratio=2, rungs=3)
    books, watched = rehearse(instance, "elastic", interactive=False)
    starts = [i for _, told in watched.records for i in told if isinstance(i, StartJob)]
    assert {(s.epoch, s.until) for s in starts} <= {(0, 1), (1, 2), (2, 4), (4, 8)}
    assert books.repeated_epochs == 0


def test_the_same_rehearsal_gives_the_same_record() -> None:
    for growth in ("elastic", "strict", "none"):
        first, second = (rehearse(Instance(5, ratio=4), growth)[1].records for _ in range(2))
        assert first == second


@pytest.mark.parametrize("variant", ["stopping", "promotion", "synchronous"])
@pytest.mark.parametrize("growth", ["elastic", "strict", "none"])
def test_every_variant_comes_to_an_end_on_two_pilots_of_one_site(variant: str, growth: str) -> None:
    assumed = Assumed(60.0, 10.0, 0.9)
    scheduler = build_scheduler({"variant": variant, "max_t": 8, "max_workers": 4})
    machine = Machine(MachineSettings("loss", Mode.MIN, assumed=assumed), scheduler, build_growth(growth))
    costs = assumed_costs(assumed, seed=3, spread=0.2)
    Rehearsal(machine, {A: VirtualSite(1, 4, pilots=2)}, costs).run(24)
    assert machine.state is StudyState.DONE
    assert len(machine.trials) == 24
