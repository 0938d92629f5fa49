from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parsl_rasda.data.layout import Layout
from parsl_rasda.data.order import BlockOrder
from parsl_rasda.runtime.engine.replicas import EpochPlan, carried

rows = st.lists(st.integers(1, 70), min_size=1, max_size=6)
blocks = st.integers(1, 20)
windows = st.integers(1, 10)
seeds = st.integers(-(2**40), 2**70)


@given(lengths=rows, block=blocks)
def test_every_sample_lies_in_one_block_and_no_block_crosses_a_row(lengths, block) -> None:
    layout = Layout(lengths, block)
    samples = np.arange(layout.samples)
    numbers, inside = layout.locate(samples)
    first, sizes = layout.extents(np.arange(layout.blocks))
    assert (first[numbers] + inside == samples).all()
    assert (inside < sizes[numbers]).all()
    assert sizes.sum() == sum(lengths) == layout.samples
    begins = np.concatenate(([0], np.cumsum(lengths)))
    for number in range(layout.blocks):
        row, begin, end = layout.slice_of(number)
        assert 0 <= begin < end <= lengths[row]
        assert end - begin == sizes[number] <= block
        assert begins[row] + begin == first[number]


@given(lengths=rows, block=blocks, window=windows, seed=seeds, epoch=st.integers(0, 99), data=st.data())
def test_an_order_holds_every_sample_once_and_any_part_of_it_can_be_computed_alone(
    lengths, block, window, seed, epoch, data
) -> None:
    layout = Layout(lengths, block)
    whole = BlockOrder(layout, seed=seed, epoch=epoch, window=window)[:]
    assert sorted(whole) == list(range(layout.samples))
    begin = data.draw(st.integers(0, layout.samples))
    end = data.draw(st.integers(0, layout.samples + 3))
    again = BlockOrder(layout, seed=seed, epoch=epoch, window=window)
    assert again[begin:end] == whole[begin:end]
    assert len(again) == len(whole)


@given(
    lengths=rows,
    block=blocks,
    window=windows,
    replicas=st.integers(1, 16),
    batch_size=st.integers(1, 9),
    data=st.data(),
)
def test_ranks_read_every_sample_once_and_a_replica_reads_the_same_at_any_width(
    lengths, block, window, replicas, batch_size, data
) -> None:
    layout = Layout(lengths, block)
    plan = EpochPlan(layout.samples, replicas, batch_size)
    widths = [width for width in range(1, replicas + 1) if replicas % width == 0]
    read = {}
    for width in {1, data.draw(st.sampled_from(widths))}:
        read[width] = {}
        for rank in range(width):
            order = BlockOrder(layout, seed=7, epoch=3, window=window)  # each rank computes its own
            for step in range(plan.steps):
                for replica in carried(rank, width, replicas):
                    part = plan.step(step)[replica]
                    read[width].setdefault(replica, []).append(order[part.begin : part.begin + part.size])
    assert len({str(sorted(by_replica.items())) for by_replica in read.values()}) == 1
    for by_replica in read.values():
        assert Counter(i for parts in by_replica.values() for part in parts for i in part) == Counter(
            range(layout.samples)
        )


@pytest.mark.parametrize("world_size", range(1, 17))
def test_at_any_number_of_ranks_every_sample_is_read_once(world_size) -> None:
    layout = Layout([333, 7, 100, 81], 16)
    for replicas in (world_size, 3 * world_size):
        plan, seen = EpochPlan(layout.samples, replicas, 5), Counter()
        for rank in range(world_size):
            mine = carried(rank, world_size, replicas)
            order = BlockOrder(layout, seed=1, epoch=0, window=8)
            for step in range(plan.steps):
                for part in plan.step(step)[mine.start : mine.stop]:
                    seen.update(order[part.begin : part.begin + part.size])
        assert seen == Counter(range(521))


def test_the_order_changes_with_the_seed_and_with_the_epoch_and_with_nothing_else() -> None:
    def order(seed, epoch):
        return tuple(BlockOrder(Layout([500], 16), seed=seed, epoch=epoch, window=8)[:])

    assert order(1, 2) == order(1, 2)
    assert len({order(seed, epoch) for seed in range(4) for epoch in range(4)}) == 16


@given(window=windows, more=st.integers(0, 20), count=st.integers(1, 60), seed=seeds)
def test_memory_for_two_blocks_more_than_the_window_is_enough_to_read_each_once(
    window, more, count, seed
) -> None:
    layout = Layout([(window + more) * count], window + more)
    order = BlockOrder(layout, seed=seed, epoch=0, window=window)
    kept, loads = [], 0
    for number in layout.locate(np.array(order[:]))[0].tolist():
        loads += number not in kept
        kept = [*(other for other in kept if other != number), number][-(window + 2) :]
    assert loads == layout.blocks


def test_a_batch_mixes_samples_of_as_many_blocks_as_the_window_has() -> None:
    layout = Layout([16 * 200], 16)
    order = BlockOrder(layout, seed=0, epoch=0, window=8)
    mixed = [
        len(set(layout.locate(np.array(order[at : at + 16]))[0].tolist())) for at in range(160, 3000, 16)
    ]
    assert min(mixed) >= 5
    assert sorted(mixed)[len(mixed) // 2] >= 8
    places = {sample: at for at, sample in enumerate(order[:])}
    apart = [abs(places[i] - places[i + 1]) for i in range(len(places) - 1)]
    assert sorted(apart)[len(apart) // 2] > 20, "neighbours on disk are rarely neighbours in training"


@given(samples=st.integers(1, 300), replicas=st.integers(1, 16), batch_size=st.integers(1, 9))
def test_what_a_replica_reads_in_an_epoch_is_contiguous(samples, replicas, batch_size) -> None:
    plan = EpochPlan(samples, replicas, batch_size)
    end = 0
    for replica in range(replicas):
        for step in range(plan.steps):
            part = plan.step(step)[replica]
            assert part.begin == end
            end += part.size
    assert end == samples
