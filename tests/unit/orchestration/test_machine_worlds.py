"""The machine in random worlds: whatever happens in whatever order, the books stay right and it ends."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parsl_rasda.types import StudyState
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
    )


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
