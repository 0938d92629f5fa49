"""The machine in random worlds: whatever happens in whatever order, the books stay right and it ends."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parsl_rasda.orchestration.events import ObserveTrial, StartJob, TrialFinished
from parsl_rasda.types import StudyState, TrialState, schedule_entry
from tests.unit.orchestration.random_world import Setup, Shape, World

VARIANTS = ("stopping", "promotion", "synchronous")
GROWTH = ("elastic", "strict", "none")
every_kind = pytest.mark.parametrize(("variant", "growth"), [(v, g) for v in VARIANTS for g in GROWTH])

shapes = st.builds(
    Shape,
    st.integers(1, 4),
    st.sampled_from([1, 2, 3, 4]),
    st.integers(1, 2),
    st.sampled_from([True, True, False]),
    st.integers(0, 1),
)
sites = st.dictionaries(st.sampled_from(["a", "b", "c"]), shapes, min_size=1, max_size=3)


@st.composite
def setups(draw: st.DrawFn, variant: str, growth: str) -> Setup:
    num_workers = draw(st.sampled_from([1, 1, 2]))
    return Setup(
        variant,
        growth,
        draw(sites),
        trials=draw(st.integers(1, 12)),
        eta=draw(st.sampled_from([2, 3])),
        max_t=draw(st.sampled_from([1, 4, 9])),
        num_workers=num_workers,
        scaling=draw(st.sampled_from([1, 2, 4])),
        max_workers=draw(st.sampled_from([None, num_workers * 4])),
        max_retries=draw(st.integers(0, 2)),
        checkpoints_shared=draw(st.booleans()),
        restart_s=draw(st.sampled_from([0.0, 0.1, 2.0])),
        batch=draw(st.sampled_from(["doubling", "constant", "measured"])),
        samples=draw(st.sampled_from([None, 100, 700, 1600])),
        batch_size=draw(st.sampled_from([6, 8])),
    )


holding = pytest.mark.parametrize(
    ("variant", "growth", "more"),
    [
        ("stopping", "elastic", {"min_compared": 4}),
        ("promotion", "strict", {"min_compared": 4}),
        ("stopping", "strict", {"max_t": {"auto": 9}}),
        ("promotion", "elastic", {"max_t": {"auto": 9}, "min_compared": 3}),
        ("stopping", "none", {"max_t": 9, "grace_period": 8, "early": {"kind": "curve", "min_epochs": 4}}),
    ],
)


@holding
def test_who_waits_at_a_rung_is_judged_in_the_end(variant: str, growth: str, more: dict) -> None:
    @settings(max_examples=3 * settings.default.max_examples // 2, deadline=None)
    @given(setups(variant, growth), st.integers(0, 2**32), st.sampled_from([0.0, 0.1, 0.3]))
    def check(setup: Setup, seed: int, fault_rate: float) -> None:
        world = World(replace(setup, more=more, eta=2), seed, fault_rate)
        if seed % 5 == 0:
            world.exhausted_at = seed % 7
        world.unfair(120)
        world.fair()
        assert world.finished is not None
        if world.finished.state is not StudyState.NO_SITE:
            assert set(world.concluded) == set(world.machine.trials)
            reasons = [t.reason for t in world.machine.trials.values() if t.state is TrialState.STOPPED]
            assert not any("waits" in reason or "never" in reason for reason in reasons), reasons
        again = world.setup.machine()
        for event, instructions in world.record:
            assert again.handle(event) == instructions, "a replay decides as the live run did"

    check()


@every_kind
def test_the_books_stay_right_and_a_fair_world_ends_every_study(variant: str, growth: str) -> None:
    @settings(max_examples=3 * settings.default.max_examples // 2, deadline=None)
    @given(setups(variant, growth), st.integers(0, 2**32), st.sampled_from([0.02, 0.1, 0.3]))
    def check(setup: Setup, seed: int, fault_rate: float) -> None:
        world = World(setup, seed, fault_rate)
        if seed % 5 == 0:
            world.exhausted_at = seed % 7
        world.unfair(120)
        world.fair()
        assert world.finished is not None
        if world.finished.state is not StudyState.NO_SITE:
            assert set(world.concluded) == set(world.machine.trials)
        again = setup.machine()
        for event, instructions in world.record:
            assert again.handle(event) == instructions, "a replay decides as the live run did"

    check()


def results_of(world: World) -> tuple[object, ...]:
    """What each trial reported by epoch, and how it ended: all that a user can tell two runs by."""
    told = [i for _, instructions in world.record for i in instructions]
    return (
        {t.id: (t.state, t.history) for t in world.machine.trials.values()},
        {i.trial: (i.state, i.metric, i.reason) for i in told if isinstance(i, TrialFinished)},
        {(i.trial, i.epoch): i.metric for i in told if isinstance(i, ObserveTrial)},
        {i.schedule for i in told if isinstance(i, StartJob)},
    )


@settings(deadline=None)
@given(setups("synchronous", "elastic"), st.sampled_from(["elastic", "strict"]), st.integers(0, 2**32))
def test_with_a_constant_batch_rasda_trains_and_decides_what_asha_does(
    setup: Setup, growth: str, seed: int
) -> None:
    """Weights depend on what a job is told of replicas and batches, so equal schedules are equal bits."""
    nodes = max(16, setup.method.most_workers)  # so that the widest fits
    room = {name: replace(shape, nodes=nodes, gpus_per_node=4) for name, shape in setup.sites.items()}
    tried = replace(setup, batch="constant", growth=growth, sites=room, max_retries=1000)
    rasda = World(tried, seed)
    asha = World(replace(tried, kind="asha", growth="none"), seed + 1)
    for world in (rasda, asha):
        world.start_controller()
        world.fair()
    assert results_of(rasda) == results_of(asha)
    assert {entry for schedule in results_of(rasda)[3] for entry in schedule} <= {
        schedule_entry(0, setup.method.most_workers, 1)
    }


@pytest.mark.parametrize("growth", ["elastic", "strict"])
def test_with_a_constant_batch_only_the_gpus_grow(growth: str) -> None:
    setup = Setup("synchronous", growth, {"a": Shape(4, 4)}, trials=4, max_workers=4, batch="constant")
    world = World(setup, seed=3)
    world.start_controller()
    world.fair()
    starts = [i for _, instructions in world.record for i in instructions if isinstance(i, StartJob)]
    assert {s.schedule for s in starts} == {((0, 4, 1),)}
    widths = {epoch: {s.placement.world_size for s in starts if s.epoch == epoch} for epoch in (0, 1, 2)}
    if growth == "strict":
        assert widths == {0: {1}, 1: {2}, 2: {4}}
    else:
        assert max(widths[0]) == 4, "elastic may use a GPU for each replica at any time"
