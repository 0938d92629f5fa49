from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parsl_rasda.errors import TrainingError
from parsl_rasda.runtime.engine.replicas import (
    EpochPlan,
    carried,
    is_power_of_two,
    seed_of,
    validation_batches,
)

counts = st.integers(1, 300)
widths = st.integers(1, 16)


@st.composite
def shared_replicas(draw):
    """A number of replicas and a world size that divides it."""
    replicas = draw(widths)
    return replicas, draw(st.sampled_from([w for w in range(1, replicas + 1) if replicas % w == 0]))


@given(samples=counts, shared=shared_replicas(), batch_size=st.integers(1, 9))
def test_every_sample_is_used_exactly_once_an_epoch_at_any_width(samples, shared, batch_size) -> None:
    replicas, world_size = shared
    plan = EpochPlan(samples, replicas, batch_size)
    seen = Counter()
    for rank in range(world_size):
        mine = carried(rank, world_size, replicas)
        for step in range(plan.steps):
            for part in plan.step(step)[mine.start : mine.stop]:
                assert part.replica in mine
                seen.update(range(part.begin, part.begin + part.size))
    assert seen == Counter(range(samples))


@given(samples=counts, replicas=widths, batch_size=st.integers(1, 9))
def test_steps_and_micro_batches_are_even_and_never_too_large(samples, replicas, batch_size) -> None:
    plan = EpochPlan(samples, replicas, batch_size)
    totals = []
    for step in range(plan.steps):
        parts = plan.step(step)
        sizes = [part.size for part in parts]
        totals.append(sum(sizes))
        assert max(sizes) - min(sizes) <= 1
        assert max(sizes) <= batch_size
        assert math.fsum(part.weight for part in parts) == pytest.approx(1.0)
    assert max(totals) - min(totals) <= 1
    assert plan.steps == math.ceil(samples / (replicas * batch_size))


@given(samples=counts, shared=shared_replicas(), batch_size=st.integers(1, 9))
def test_every_sample_is_evaluated_equally_often_and_among_the_same_others(
    samples, shared, batch_size
) -> None:
    replicas, world_size = shared
    by_rank = [
        validation_batches(samples, replicas, carried(rank, world_size, replicas), batch_size)
        for rank in range(world_size)
    ]
    alone = validation_batches(samples, replicas, range(replicas), batch_size)
    seen = Counter(index for batches in by_rank for batch in batches for index in batch)
    assert set(seen) == set(range(samples))
    assert len(set(seen.values())) == 1
    assert all(batches for batches in by_rank), "a rank without a batch could not even concatenate its losses"
    assert {batch for batches in by_rank for batch in batches} == set(alone)
    assert len({len(batches) for batches in by_rank}) == 1, "ranks of a sharded model evaluate in step"
    assert max(map(len, alone)) <= max(batch_size, 2)


def test_a_world_size_that_does_not_divide_the_replicas_is_refused() -> None:
    with pytest.raises(TrainingError, match="3 ranks cannot share 4 replicas"):
        carried(0, 3, 4)


def test_an_empty_data_set_is_refused() -> None:
    with pytest.raises(TrainingError, match="empty"):
        EpochPlan(0, 1, 1)


def test_seeds_differ_in_their_low_bits_for_neighbouring_places() -> None:
    low = {
        seed_of(7, "compute", epoch, step, replica) % 2**32
        for epoch in range(9)
        for step in range(9)
        for replica in range(9)
    }
    assert len(low) == 729


@given(st.integers(1, 1024))
def test_powers_of_two_are_known(number) -> None:
    assert is_power_of_two(number) == (2 ** round(math.log2(number)) == number)
