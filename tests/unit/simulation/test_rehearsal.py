"""Rehearsals: what a study costs in virtual time, and the promise of elastic growth."""

from __future__ import annotations

import gc
import json
import random
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from benchmarks import policy
from parsl_rasda.orchestration.events import EpochReported, Event, Instruction, StartJob
from parsl_rasda.orchestration.machine import Machine, MachineSettings
from parsl_rasda.placement.cluster_state import ClusterState, RunningTrial
from parsl_rasda.placement.growth import ElasticGrowth, build_growth
from parsl_rasda.placement.times import Assumed
from parsl_rasda.scheduling import build_scheduler
from parsl_rasda.simulation.costs import Costs, assumed_costs
from parsl_rasda.simulation.rehearsal import Rehearsal, VirtualSite
from parsl_rasda.testing.instances import Instance, rehearse
from parsl_rasda.types import Mode, SiteName, StudyState

A = SiteName("a")
HONEST = 1e-9


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


@pytest.mark.parametrize("growth", ["elastic", "strict", "none"])
def test_a_rehearsal_leaves_no_garbage_in_circles_because_nobody_looks_for_it(growth: str) -> None:
    gc.collect()
    told = rehearse(random_instance(1), growth)
    assert gc.collect() == 0
    assert told.machine.state is StudyState.DONE


@pytest.mark.slow
@pytest.mark.parametrize("block", range(6))
def test_elastic_is_never_slower_than_asha_and_late_at_no_rung(block: int) -> None:
    faster = 0
    for seed in range(50 * block, 50 * block + 50):
        instance = random_instance(seed)
        elastic, asha = rehearse(instance, "elastic"), rehearse(instance, "none")
        assert elastic.machine.state is asha.machine.state is StudyState.DONE
        assert elastic.makespan_s <= asha.makespan_s * (1 + HONEST), instance
        assert not elastic.late(asha), instance
        faster += elastic.makespan_s < asha.makespan_s * 0.95
    assert faster > 20


@pytest.mark.slow
@pytest.mark.parametrize("block", range(6))
def test_starts_below_the_replicas_are_late_at_no_rung_either(block: int) -> None:
    """With a constant batch a trial may widen at once to what its last rung gives."""
    faster = sooner = 0
    for seed in range(25 * block, 25 * block + 25):
        instance = random_instance(seed)
        narrow, asha = (rehearse(instance, growth, has_constant_batch=True) for growth in ("elastic", "none"))
        doubling = rehearse(instance, "elastic")
        assert narrow.machine.state is asha.machine.state is StudyState.DONE
        assert narrow.makespan_s <= asha.makespan_s * (1 + HONEST), instance
        assert not narrow.late(asha), instance
        faster += narrow.makespan_s < asha.makespan_s * 0.95
        sooner += narrow.makespan_s <= doubling.makespan_s * (1 + HONEST)
    assert faster > 10
    assert sooner > 10


@dataclass
class Rehearsed:
    starts: list[StartJob]

    def add(self, event: Event, instructions: tuple[Instruction, ...]) -> None:
        self.starts += [i for i in instructions if isinstance(i, StartJob)]


@dataclass
class Arrivals:
    milestones: tuple[int, ...]
    at: dict[tuple[str, int], float] = field(default_factory=dict)

    def add(self, event: Event, instructions: tuple[Instruction, ...]) -> None:
        if isinstance(event, EpochReported) and event.epoch in self.milestones:
            self.at[event.job.trial, event.epoch] = event.at


def rehearse_successive_halving(
    seed: int, growth: str
) -> tuple[float, Mapping[tuple[str, int], float], float]:
    """A synchronous search, whose trials pause at rungs, and whose slots are free some time after."""
    rng = random.Random(seed)
    gpus, per_node = rng.choice([(4, 4), (8, 4), (16, 4), (16, 8), (32, 4)])
    trials, eta, rungs = (
        round(rng.choice([0.5, 1, 1, 2, 4]) * gpus),
        rng.choice([2, 2, 3, 4]),
        rng.choice([2, 3]),
    )
    efficiency, leave_s, start_s = (
        rng.choice([0.55, 0.8, 0.9, 1.0]),
        rng.choice([0, 0.02, 0.1, 0.5]),
        rng.choice([0.05, 0.2, 1.0]),
    )
    spread = rng.choice([0.0, 0.3])
    paces = [rng.lognormvariate(0.0, spread) for _ in range(trials)]
    quality = [rng.random() for _ in range(trials)]
    assumed = Assumed(1.0, start_s + leave_s, efficiency)
    costs = Costs(
        lambda trial, width: paces[trial] / assumed.speedup(width),
        lambda trial, epoch: quality[trial] + 1 / epoch,
        launch_s=lambda _: start_s,
        restart_s=start_s,
        leave_s=leave_s,
    )
    options = {"kind": "asha" if growth == "none" else "rasda", "variant": "synchronous", "growth": growth}
    options |= {"max_t": eta**rungs, "reduction_factor": eta, "max_workers": min(gpus, 2**rungs)}
    scheduler = build_scheduler({**options, "metric": "loss", "num_samples": trials})
    machine = Machine(MachineSettings("loss", Mode.MIN, assumed=assumed), scheduler, build_growth(growth))
    arrivals = Arrivals(scheduler.milestones)
    usage = Rehearsal(machine, {A: VirtualSite(gpus // per_node, per_node)}, costs, [arrivals]).run(trials)
    return usage.makespan_s(), arrivals.at, 2 * leave_s + start_s


def test_those_who_pass_a_rung_get_the_slots_of_those_who_leave_there() -> None:
    """All trials report at once, and their slots are free a tenth of an epoch later."""
    scheduler = build_scheduler(
        {"variant": "synchronous", "max_t": 8, "max_workers": 8, "metric": "loss", "num_samples": 16}
    )
    machine = Machine(
        MachineSettings("loss", Mode.MIN, assumed=Assumed(4.0, 0.6)), scheduler, build_growth("elastic")
    )
    costs = Costs(
        lambda trial, width: 4.0 / width, lambda trial, epoch: trial + 1 / epoch, restart_s=0.2, leave_s=0.4
    )
    record = Rehearsed([])
    usage = Rehearsal(machine, {A: VirtualSite(4, 4)}, costs, [record]).run(16)
    widths = {
        epoch: {j.placement.world_size for j in record.starts if j.epoch == epoch} for epoch in (1, 2, 4)
    }
    assert widths == {1: {2}, 2: {4}, 4: {8}}, "nobody starts on half of what it may have"
    assert usage.makespan_s() < 1.25 * (4 + 2 + 2 + 2)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(5))
def test_successive_halving_with_latencies_is_hardly_ever_slower_than_asha(block: int) -> None:
    """At a rung a trial may be late by two releases and a start: who pauses there depends on the times."""
    late = rungs = slower = 0
    for seed in range(100 * block, 100 * block + 100):
        elastic_s, elastic, latency_s = rehearse_successive_halving(seed, "elastic")
        asha_s, asha, _ = rehearse_successive_halving(seed, "none")
        assert elastic.keys() == asha.keys(), "the same trials pass the same rungs"
        slower += elastic_s > asha_s + HONEST
        behind = [at - asha[key] for key, at in elastic.items()]
        assert max(behind) <= latency_s + HONEST, seed
        late, rungs = late + sum(s > HONEST for s in behind), rungs + len(behind)
    assert late < rungs / 200
    assert slower <= 1


@pytest.mark.parametrize(("growth", "ratio"), [("elastic", 1), ("strict", 1), ("elastic", 0.25)])
def test_growth_pays_where_gpus_fall_idle(growth: str, ratio: float) -> None:
    instance = Instance(1, gpus=32, ratio=ratio, rungs=4)
    assert rehearse(instance, growth).makespan_s < 0.7 * rehearse(instance, "none").makespan_s


CELLS = (
    {"rungs": 3, "ratio": 1, "restart_s": 0.2},
    {"rungs": 3, "ratio": 8, "restart_s": 0.0},
    {"rungs": 3, "ratio": 8, "restart_s": 0.2},
    {"rungs": 4, "ratio": 0.5, "restart_s": 1.0},
    {"rungs": 4, "ratio": 2, "restart_s": 0.0},
    {"rungs": 5, "ratio": 4, "restart_s": 0.2},
    {"rungs": 5, "ratio": 8, "restart_s": 0.2},
)


@pytest.mark.slow
def test_the_policies_are_as_fast_as_their_rules_in_a_reference_simulation() -> None:
    """All cells are compared by `benchmarks/policy.py`, which says where and why single instances differ."""
    makespans = json.loads(policy.REFERENCE.read_text())["makespans"]
    strict = []
    for cell in CELLS:
        found = [policy.compare({"gpus": 32, **cell}, seed, makespans) for seed in policy.SEEDS[:2]]
        for one in found:
            assert one["asha"] == 1, "the same instance"
            assert one["unlucky"] <= policy.TOLERANCE
            assert not one["slower_than_asha"]
            assert one["late_rungs"] == 0
        assert abs(statistics.median(one["elastic"] for one in found) - 1) <= 0.02, cell
        strict.append(statistics.median(one["strict"] for one in found))
    assert max(strict) <= policy.TOLERANCE
    assert abs(statistics.median(strict) - 1) <= 0.02, "`plan` compares the two"


def test_strict_trains_at_the_full_width_always_and_none_never_restarts() -> None:
    instance = Instance(2, gpus=16, ratio=4, rungs=3)
    strict = rehearse(instance, "strict")
    starts = [i for _, instructions in strict.records for i in instructions if isinstance(i, StartJob)]
    assert all(s.placement.world_size == s.schedule[-1][1] for s in starts)
    assert any(s.placement.world_size > 1 for s in starts)
    asha = rehearse(instance, "none").usage
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


def test_sites_without_a_channel_train_stretches_as_tasks_in_halves_while_they_may_widen() -> None:
    found = rehearse(Instance(3, ratio=2, rungs=3, restart_s=0.01), "elastic", interactive=False)
    starts = [i for _, instructions in found.records for i in instructions if isinstance(i, StartJob)]
    narrow = {(s.epoch, s.until) for s in starts if s.placement.world_size < s.schedule[-1][1]}
    wide = {(s.epoch, s.until) for s in starts if s.placement.world_size == s.schedule[-1][1]}
    assert (4, 6) in narrow
    assert narrow <= {(1, 2), (2, 3), (3, 4), (4, 6), (6, 7), (7, 8)}
    assert wide <= {(0, 1), (1, 2), (2, 4), (3, 4), (4, 8), (6, 8), (7, 8)}
    assert found.usage.repeated_epochs == 0


@pytest.mark.parametrize("growth", ["strict", "none"])
def test_sites_without_a_channel_train_whole_stretches_where_nobody_widens_on_the_way(growth: str) -> None:
    found = rehearse(Instance(3, ratio=2, rungs=3, restart_s=0.01), growth, interactive=False)
    starts = [i for _, instructions in found.records for i in instructions if isinstance(i, StartJob)]
    assert {(s.epoch, s.until) for s in starts} <= {(0, 1), (1, 2), (2, 4), (4, 8)}


def test_halves_are_faster_than_whole_stretches_and_train_the_same_epochs() -> None:
    """At what a task costs behind Globus Compute, in epochs of minutes."""

    class Whole(ElasticGrowth):
        def returns_at(self, cluster: ClusterState, running: RunningTrial) -> int:
            return running.ahead.until

    ratios = []
    for seed in range(6):
        one = Instance(seed, gpus=32, rungs=4, ratio=(1, 2)[seed % 2], restart_s=0.05)
        halves, whole = (rehearse(one, growth, interactive=False) for growth in ("elastic", Whole()))
        assert halves.arrivals.keys() == whole.arrivals.keys()
        assert halves.usage.epochs == whole.usage.epochs
        assert halves.usage.repeated_epochs == 0
        ratios.append(whole.makespan_s / halves.makespan_s)
    assert statistics.median(ratios) > 1.01


def test_the_same_rehearsal_gives_the_same_record() -> None:
    for growth in ("elastic", "strict", "none"):
        first, second = (rehearse(Instance(5, ratio=4), growth).records for _ in range(2))
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
