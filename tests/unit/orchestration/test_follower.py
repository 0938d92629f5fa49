"""What another version decided stands: trials are where the journal says, and go on from there."""

from __future__ import annotations

import random
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from parsl_rasda.orchestration.events import StudyInterrupted
from parsl_rasda.orchestration.machine import Machine
from parsl_rasda.types import Budget, Method, StudyState, TrialState
from tests.unit.orchestration.random_world import Setup, Shape, World
from tests.unit.orchestration.test_machine_worlds import GROWTH, VARIANTS, setups

any_setup = st.tuples(st.sampled_from(VARIANTS), st.sampled_from(GROWTH)).flatmap(lambda k: setups(*k))
seeds = st.integers(0, 2**32)


def lived(setup: Setup, seed: int) -> World:
    """Return a world that has been left in the middle."""
    world = World(setup, seed, 0.1)
    world.unfair(random.Random(seed).randrange(5, 120))
    return world


def follow(setup: Setup, world: World) -> Machine:
    machine = setup.machine()
    for event, instructions in world.record:
        machine.follow(event, instructions)
    return machine


def standing(machine: Machine) -> dict:
    """Return what a next controller builds on."""
    return {
        t.id: (t.state if t.state.is_final else "", t.attempt, t.history, t.checkpoint, t.config)
        for t in machine.trials.values()
    }


def move_on(world: World, machine: Machine) -> World:
    """Let a world go on with another machine, after the death of its controller."""
    world.machine = machine
    world.start_controller()
    world.fair()
    return world


@settings(max_examples=2 * settings.default.max_examples, deadline=None)
@given(any_setup, seeds)
def test_who_follows_is_where_the_journal_ends(setup: Setup, seed: int) -> None:
    world = lived(setup, seed)
    machine = follow(setup, world)
    assert standing(machine) == standing(world.machine)
    assert set(machine.jobs) == set(world.machine.jobs)
    assert machine.num_samples == world.machine.num_samples


@given(any_setup, seeds)
def test_what_has_ended_stays_so_whatever_is_told_later(setup: Setup, seed: int) -> None:
    world = lived(setup, seed)
    world.fair()
    assert world.finished is not None
    machine = follow(setup, world)
    machine.follow(StudyInterrupted(world.record[-1][0].at + 1), ())
    assert machine.state is world.finished.state
    assert machine.handle(StudyInterrupted(world.record[-1][0].at + 2)) == ()


@settings(max_examples=2 * settings.default.max_examples, deadline=None)
@given(any_setup, seeds, st.sampled_from(VARIANTS), st.sampled_from(GROWTH))
def test_a_version_that_decides_otherwise_goes_on_to_an_end(
    setup: Setup, seed: int, variant: str, growth: str
) -> None:
    world = lived(setup, seed)
    other = replace(setup, variant=variant, growth=growth)
    machine = follow(other, world)
    before = {k: v for k, v in standing(machine).items() if v[0]}
    world.setup = other
    move_on(world, machine)
    assert world.finished is not None
    if world.finished.state is not StudyState.NO_SITE:
        assert all(t.state.is_final for t in machine.trials.values())
    assert {k: v for k, v in standing(machine).items() if k in before} == before, "ends stand"


@settings(max_examples=settings.default.max_examples, deadline=None)
@given(any_setup, seeds, st.sampled_from(VARIANTS), st.sampled_from(GROWTH))
def test_a_replay_comes_to_the_same_after_it_was_followed(
    setup: Setup, seed: int, variant: str, growth: str
) -> None:
    world = lived(setup, seed)
    other, count = replace(setup, variant=variant, growth=growth), len(world.record)
    machine = follow(other, world)
    world.setup = other
    move_on(world, machine)
    again = other.machine()
    for number, (event, instructions) in enumerate(world.record):
        if number < count:
            again.follow(event, instructions)
        else:
            assert again.handle(event) == instructions


@settings(max_examples=settings.default.max_examples, deadline=None)
@given(any_setup, seeds)
def test_no_trial_is_left_behind(setup: Setup, seed: int) -> None:
    """Whoever waits, ran or paused in the journal waits or is paused for the next controller."""
    world = lived(setup, seed)
    machine = move_on(world, follow(setup, world)).machine
    left = [t.id for t in machine.trials.values() if t.state in {TrialState.WAITING, TrialState.RUNNING}]
    assert not left or world.finished.state is StudyState.NO_SITE


@settings(max_examples=2 * settings.default.max_examples, deadline=None)
@given(any_setup, seeds, st.floats(1.0, 200.0), st.booleans())
def test_trials_that_the_budget_has_ended_go_on_with_a_larger_one(
    setup: Setup, seed: int, gpu_s: float, is_taken_up: bool
) -> None:
    world = World(setup, seed, 0.1, Budget(gpu_hours=gpu_s / 3600))
    world.unfair(random.Random(seed).randrange(5, 120))
    if is_taken_up:  # so that those that it has ended go on within the journal
        world.budget = Budget(gpu_hours=2 * gpu_s / 3600)
        world.start_controller()
    world.fault_rate = 0.0
    world.fair()
    machine = follow(setup, world)
    assert standing(machine) == standing(world.machine)
    assert machine.cut_off == world.machine.cut_off
    assert bool(machine.stop_reason) == bool(world.machine.stop_reason)
    assert machine.num_samples == world.machine.num_samples
    world.budget = None
    moved = move_on(world, machine)
    assert moved.finished is not None
    if moved.finished.state is not StudyState.NO_SITE:
        assert all(t.state.is_final for t in machine.trials.values())
        assert (machine.cut_off, len(machine.trials)) == (set(), world.wanted)


def gone_on_by_another_method(setup: Setup, seed: int, steps: int) -> World:
    world = lived(setup, seed)
    known = setup.machine().scheduler.milestones
    world.method = Method((*known, 2 * known[-1]), setup.method.most_workers, setup.growth)
    world.start_controller()
    for _ in range(steps):
        if world.finished is None:
            world.fair_step()
    return world


@settings(max_examples=2 * settings.default.max_examples, deadline=None)
@given(any_setup, seeds, st.integers(0, 120))
def test_a_search_that_has_gone_on_by_another_method_is_followed(setup: Setup, seed: int, steps: int) -> None:
    world = gone_on_by_another_method(setup, seed, steps)
    machine = follow(setup, world)
    assert standing(machine) == standing(world.machine)
    assert machine.scheduler.milestones == world.machine.scheduler.milestones
    assert move_on(world, machine).finished is not None


def test_trials_that_this_version_would_stop_at_the_old_last_rung_go_on_if_they_did() -> None:
    setup = Setup("synchronous", "elastic", {"a": Shape(2, 4)}, trials=8, max_t=4, max_workers=4)
    for seed in range(12):
        world = gone_on_by_another_method(setup, seed, 60)
        other = replace(setup, variant="stopping")
        machine = follow(other, world)
        assert {j: t.id for j, t in machine.jobs.items()} == {j: t.id for j, t in world.machine.jobs.items()}
        world.setup = other
        move_on(world, machine)
        assert all(t.state.is_final for t in machine.trials.values())
