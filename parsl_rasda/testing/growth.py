"""What every growth policy must do: a suite for the built-in ones and for plug-ins.

A plug-in author's whole test file::

    class TestMine(GrowthPolicyContract):
        def build(self):
            return build_growth("mine")
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod

from parsl_rasda.orchestration.machine import Machine, MachineSettings
from parsl_rasda.placement.cluster_state import (
    Allocation,
    ClusterState,
    GrowthPolicy,
    PendingTrial,
    RunningTrial,
)
from parsl_rasda.placement.ledger import Ledger
from parsl_rasda.placement.times import Assumed, Times
from parsl_rasda.scheduling import build_scheduler
from parsl_rasda.simulation.costs import assumed_costs
from parsl_rasda.simulation.rehearsal import Rehearsal, VirtualSite
from parsl_rasda.types import (
    Mode,
    NodeName,
    NodeSlots,
    PilotId,
    Placement,
    SiteName,
    Stretch,
    StudyState,
    TrialId,
)

CLUSTERS = 300
_MAX_EPOCHS = 16


def random_cluster(seed: int) -> tuple[ClusterState, RunningTrial | None]:
    """Return a cluster in any state that a study can be in, and a trial at an epoch boundary or None."""
    rng = random.Random(seed)  # noqa: S311 - a test
    restart_s, efficiency = rng.choice([0.0, 0.5, 5.0, 200.0]), rng.choice([0.6, 0.9, 1.0])
    assumed = Assumed(rng.choice([1.0, 60.0]), restart_s, efficiency)
    workers = rng.choice([1, 1, 2])
    cluster = ClusterState(Ledger(), Times(assumed), num_workers=workers, max_epochs=_MAX_EPOCHS, step=2)
    for index in range(rng.randint(1, 3)):
        gpus = tuple(range(rng.choice([1, 2, 4, 8])))
        nodes = tuple(NodeSlots(NodeName(f"p{index}n{i}"), gpus) for i in range(rng.randint(1, 4)))
        cluster.ledger.add_pilot(PilotId(f"p{index}"), SiteName(rng.choice("ab")), nodes)
    running = [r for age in range(rng.randint(0, 12)) if (r := _run(cluster, age, rng))]
    for age in range(100, 100 + rng.choice([0, 0, 1, 3])):
        _let_wait(cluster, age, rng)
    cluster.new_trials = rng.choice([0, 0, 0, 2])
    here = rng.choice([*running, None]) if running else None
    if here is not None:
        cluster.unplace(here.trial)
    return cluster, here


def free_slots(ledger: Ledger) -> set[tuple[str, str]]:
    """Return every free ``(pilot, node:gpu)``, found by taking all and giving them back."""
    taken = []
    while (one := ledger.find(1)) is not None:
        ledger.take(one)
        taken.append(one)
    for one in taken:
        ledger.release(one)
    return {slot for one in taken for slot in slots_of(one)}


def slots_of(placement: Placement) -> set[tuple[str, str]]:
    """Return the ``(pilot, node:gpu)`` of a placement."""
    return {(placement.pilot, slot) for slot in placement.slots}


class GrowthPolicyContract(ABC):
    """What holds for every growth policy."""

    @abstractmethod
    def build(self) -> GrowthPolicy:
        """Return a policy; overridden by the plug-in's test."""

    def test_only_free_slots_and_own_ones_are_handed_out_and_none_twice(self) -> None:
        for cluster, here, found in self._decided():
            free = free_slots(cluster.ledger)
            given = [slots_of(p) for p in found.starts.values()]
            if found.here is not None:
                assert here is not None
                own = slots_of(here.placement)
                assert slots_of(found.here) <= free | own
                given.append(slots_of(found.here) - own)
            together = set().union(*given)
            assert together <= free
            assert len(together) == sum(map(len, given))

    def test_only_those_who_wait_start_on_their_site_at_a_width_that_divides_their_replicas(self) -> None:
        policy = self.build()
        for cluster, _, found in self._decided():
            waiting = {w.trial: w for w in cluster.waiting}
            for trial, placement in found.starts.items():
                wanted = waiting[trial]
                assert wanted.site in {None, placement.site}
                assert wanted.stretch.replicas % placement.world_size == 0
                assert placement.world_size >= policy.needs(wanted.stretch.workers, cluster.num_workers)

    def test_only_a_trial_at_a_boundary_changes_to_a_width_that_divides_its_replicas(self) -> None:
        for _, here, found in self._decided():
            if here is None:
                assert found.here is None
                assert not found.requeue
            elif found.here is not None:
                assert not found.requeue
                assert found.here.site == here.placement.site
                assert found.here.world_size != here.placement.world_size, (
                    "to move for nothing is never worth it"
                )
                assert here.ahead.replicas % found.here.world_size == 0

    def test_the_same_cluster_gives_the_same_answer_and_stays_as_it_is(self) -> None:
        policy = self.build()
        for seed in range(CLUSTERS):
            cluster, here = random_cluster(seed)
            free, waiting = free_slots(cluster.ledger), cluster.waiting
            first = policy.decide(cluster, 0.0, here)
            assert free_slots(cluster.ledger) == free
            assert cluster.waiting == waiting
            assert policy.decide(cluster, 0.0, here) == first
            assert self.build().decide(*_again(seed)) == first

    def test_a_job_that_cannot_be_asked_comes_back_before_its_milestone_or_there(self) -> None:
        policy = self.build()
        for seed in range(CLUSTERS):
            cluster, _ = random_cluster(seed)
            for running in cluster.running.values():
                if running.ahead.epoch < running.ahead.until:
                    returns_at = policy.returns_at(cluster, running)
                    assert running.ahead.epoch < returns_at <= running.ahead.until

    def test_on_an_idle_machine_everyone_starts(self) -> None:
        policy = self.build()
        cluster = ClusterState(Ledger(), Times(Assumed()), num_workers=1, max_epochs=_MAX_EPOCHS, step=2)
        gpus = tuple(range(8))
        nodes = tuple(NodeSlots(NodeName(f"n{i}"), gpus) for i in range(8))
        cluster.ledger.add_pilot(PilotId("p"), SiteName("a"), nodes)
        for age in range(8):
            cluster.enqueue(PendingTrial(TrialId(f"t{age}"), age, Stretch(0, 1, 4)))
        assert set(policy.decide(cluster, 0.0).starts) == {f"t{age}" for age in range(8)}

    def test_a_study_ends_with_every_trial_ended(self) -> None:
        for variant in ("stopping", "promotion", "synchronous"):
            for trials, nodes in ((1, 1), (5, 1), (12, 2), (12, 8)):
                scheduler = build_scheduler({"variant": variant, "max_t": 8, "max_workers": 4})
                machine = Machine(MachineSettings("loss", Mode.MIN), scheduler, self.build())
                costs = assumed_costs(Assumed(60.0, 5.0), seed=trials, spread=0.3)
                Rehearsal(machine, {SiteName("a"): VirtualSite(nodes, 4)}, costs).run(trials)
                assert machine.state is StudyState.DONE
                assert all(t.state.is_final for t in machine.trials.values())

    def _decided(self) -> list[tuple[ClusterState, RunningTrial | None, Allocation]]:
        policy = self.build()
        clusters = [random_cluster(seed) for seed in range(CLUSTERS)]
        return [(cluster, here, policy.decide(cluster, 0.0, here)) for cluster, here in clusters]


def _again(seed: int) -> tuple[ClusterState, float, RunningTrial | None]:
    cluster, here = random_cluster(seed)
    return cluster, 0.0, here


def _run(cluster: ClusterState, age: int, rng: random.Random) -> RunningTrial | None:
    trial = TrialId(f"t{age}")
    stretch = _stretch(cluster, rng)
    world_sizes = [w for w in cluster.world_sizes(stretch.replicas) if w >= cluster.num_workers]
    placement = cluster.ledger.find(rng.choice(world_sizes[:2]))
    if placement is None:
        return None
    cluster.ledger.take(placement)
    if rng.random() < 0.7:
        cluster.times.saw_epoch(trial, placement.world_size, placement.site, rng.uniform(0.5, 100.0))
    running = RunningTrial(trial, age, placement, rng.uniform(0, 50), stretch)
    cluster.place(running)
    return running


def _let_wait(cluster: ClusterState, age: int, rng: random.Random) -> None:
    stretch = _stretch(cluster, rng)
    site = rng.choice([None, None, SiteName("a"), SiteName("b")])
    cluster.enqueue(PendingTrial(TrialId(f"t{age}"), age, stretch, site))


def _stretch(cluster: ClusterState, rng: random.Random) -> Stretch:
    """Return a way to a milestone, of which some epochs may be done."""
    rung = rng.randint(0, 4)
    return Stretch(rng.randrange(2**rung // 2, 2**rung), 2**rung, min(8, cluster.num_workers * 2**rung))
