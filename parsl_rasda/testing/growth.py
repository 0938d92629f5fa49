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
    StudyState,
    TrialId,
)

BOARDS = 300
_MAX_EPOCHS = 16


def random_board(seed: int) -> tuple[ClusterState, RunningTrial | None]:
    """Return a board in any state that a study can be in, and a trial at an epoch boundary or None."""
    rng = random.Random(seed)  # noqa: S311 - a test
    restart_s, efficiency = rng.choice([0.0, 0.5, 5.0, 200.0]), rng.choice([0.6, 0.9, 1.0])
    assumed = Assumed(rng.choice([1.0, 60.0]), restart_s, efficiency)
    workers = rng.choice([1, 1, 2])
    board = ClusterState(Ledger(), Times(assumed), num_workers=workers, max_epochs=_MAX_EPOCHS, step=2)
    for index in range(rng.randint(1, 3)):
        gpus = tuple(range(rng.choice([1, 2, 4, 8])))
        nodes = tuple(NodeSlots(NodeName(f"p{index}n{i}"), gpus) for i in range(rng.randint(1, 4)))
        board.ledger.add_pilot(PilotId(f"p{index}"), SiteName(rng.choice("ab")), nodes)
    running = [r for age in range(rng.randint(0, 12)) if (r := _run(board, age, rng))]
    for age in range(100, 100 + rng.choice([0, 0, 1, 3])):
        _let_wait(board, age, rng)
    board.new_trials = rng.choice([0, 0, 0, 2])
    here = rng.choice([*running, None]) if running else None
    if here is not None:
        board.unplace(here.trial)
    return board, here


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
        for board, here, found in self._decided():
            free = free_slots(board.ledger)
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
        for board, _, found in self._decided():
            waiting = {w.trial: w for w in board.waiting}
            for trial, placement in found.starts.items():
                wanted = waiting[trial]
                assert wanted.site in {None, placement.site}
                assert wanted.replicas % placement.width == 0
                assert placement.width >= policy.needs(wanted.replicas, board.num_workers)

    def test_only_a_trial_at_a_boundary_changes_to_a_width_that_divides_its_replicas(self) -> None:
        for _, here, found in self._decided():
            if here is None:
                assert found.here is None
                assert not found.requeue
            elif found.here is not None:
                assert not found.requeue
                assert found.here.site == here.placement.site
                assert found.here.width != here.placement.width, "to move without a gain is never worth it"
                assert here.replicas % found.here.width == 0

    def test_the_same_board_gives_the_same_answer_and_stays_as_it_is(self) -> None:
        policy = self.build()
        for seed in range(BOARDS):
            board, here = random_board(seed)
            free, waiting = free_slots(board.ledger), board.waiting
            first = policy.decide(board, 0.0, here)
            assert free_slots(board.ledger) == free
            assert board.waiting == waiting
            assert policy.decide(board, 0.0, here) == first
            assert self.build().decide(*_again(seed)) == first

    def test_a_job_that_cannot_be_asked_comes_back_before_its_milestone_or_there(self) -> None:
        policy = self.build()
        for seed in range(BOARDS):
            board, _ = random_board(seed)
            for running in board.running.values():
                if running.boundary_epoch < running.until:
                    assert running.boundary_epoch < policy.returns_at(board, running) <= running.until

    def test_on_an_idle_machine_everyone_starts(self) -> None:
        policy = self.build()
        board = ClusterState(Ledger(), Times(Assumed()), num_workers=1, max_epochs=_MAX_EPOCHS, step=2)
        gpus = tuple(range(8))
        nodes = tuple(NodeSlots(NodeName(f"n{i}"), gpus) for i in range(8))
        board.ledger.add_pilot(PilotId("p"), SiteName("a"), nodes)
        for age in range(8):
            board.enqueue(PendingTrial(TrialId(f"t{age}"), age, 0, 1, 4))
        assert set(policy.decide(board, 0.0).starts) == {f"t{age}" for age in range(8)}

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
        boards = [random_board(seed) for seed in range(BOARDS)]
        return [(board, here, policy.decide(board, 0.0, here)) for board, here in boards]


def _again(seed: int) -> tuple[ClusterState, float, RunningTrial | None]:
    board, here = random_board(seed)
    return board, 0.0, here


def _run(board: ClusterState, age: int, rng: random.Random) -> RunningTrial | None:
    trial = TrialId(f"t{age}")
    epoch, until, replicas = _stretch(board, rng)
    widths = [w for w in board.widths(replicas) if w >= board.num_workers]
    placement = board.ledger.find(rng.choice(widths[:2]))
    if placement is None:
        return None
    board.ledger.take(placement)
    if rng.random() < 0.7:
        board.times.saw_epoch(trial, placement.width, placement.site, rng.uniform(0.5, 100.0))
    running = RunningTrial(trial, age, placement, rng.uniform(0, 50), epoch, until, replicas)
    board.place(running)
    return running


def _let_wait(board: ClusterState, age: int, rng: random.Random) -> None:
    epoch, until, replicas = _stretch(board, rng)
    site = rng.choice([None, None, SiteName("a"), SiteName("b")])
    board.enqueue(PendingTrial(TrialId(f"t{age}"), age, epoch, until, replicas, site))


def _stretch(board: ClusterState, rng: random.Random) -> tuple[int, int, int]:
    """Return epochs done, the next milestone and the replicas on the way there."""
    rung = rng.randint(0, 4)
    return rng.randrange(2**rung // 2, 2**rung), 2**rung, min(8, board.num_workers * 2**rung)
