"""How large a step is, and how many replicas share it, on the GPUs that the rule gives."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parsl_rasda.runtime.engine.replicas import EpochPlan, share_of_replica
from parsl_rasda.scheduling.batching import Batching, Split
from parsl_rasda.study import SchedulerSpec

factors = st.sampled_from([2, 3, 4])


@st.composite
def ladders(draw: st.DrawFn) -> list[int]:
    """Workers of each rung."""
    ladder, factor = [draw(st.integers(1, 4))], draw(factors)
    for _ in range(draw(st.integers(0, 5))):
        ladder.append(ladder[-1] * factor)
    return ladder


@given(ladders(), st.none() | st.integers(1, 10**6))
def test_doubling_is_the_papers_rule(ladder, samples) -> None:
    assert Batching().split(ladder, {}, samples) == (ladder[-1], ladder[-1], ladder[-1])


@given(ladders(), st.none() | st.integers(1, 10**6))
def test_a_constant_batch_is_one_at_every_rung_and_only_the_gpus_grow(ladder, samples) -> None:
    rule = Batching(constant_replicas=ladder[-1])
    for rung in range(1, len(ladder) + 1):
        assert rule.split(ladder[:rung], {}, samples) == (ladder[-1], ladder[rung - 1], 1)


def test_workers_of_a_foreign_rule_that_do_not_divide_the_replicas_are_fewer() -> None:
    assert Batching(constant_replicas=8).split([1, 6], {}, None) == Split(8, 2, 1)


def test_a_replica_takes_an_equal_part_of_the_batches_of_a_step() -> None:
    assert share_of_replica(16, 1, 8) == 2
    assert EpochPlan(448, 8, 2).steps == EpochPlan(448, 1, 16).steps == 28


@pytest.mark.parametrize(
    ("block", "most"),
    [
        ({"max_t": 8}, 8),
        ({"max_t": 8, "max_workers": 4}, 4),
        ({"max_t": 8, "max_workers": 64}, 8),
        ({"max_t": 9, "reduction_factor": 3, "num_workers": 2, "scaling_factor": 3}, 18),
        ({"max_t": 8, "scaling_factor": 1}, 1),
        ({"max_t": 8, "kind": "asha"}, 8),
    ],
)
def test_the_ladder_ends_at_its_last_rung_or_at_max_workers(block, most) -> None:
    assert SchedulerSpec(**block).most_workers == most


@given(ladders(), st.integers(1, 10**5), st.integers(1, 64), st.integers(0, 200))
def test_the_floor_of_steps_is_never_undercut_by_growth(ladder, samples, size, floor) -> None:
    rule, before = Batching(min_steps=floor, batch_size=size), Split(1, 1, 1)
    for rung in range(1, len(ladder) + 1):
        found = rule.split(ladder[:rung], {}, samples)
        share = share_of_replica(size, found.batches, found.replicas)
        steps = EpochPlan(samples, found.replicas, share).steps
        assert steps >= floor or found.batches == ladder[0]
        assert found.workers == found.replicas >= found.batches
        assert {found.replicas, found.batches} <= set(ladder[:rung])
        assert found.replicas >= before.replicas, "a trial never has more GPUs than replicas"
        assert found.batches >= before.batches
        if size % ladder[-1] == 0:
            assert found.workers == ladder[rung - 1], "the GPUs grow as ever"
        before = found


@given(ladders(), st.integers(1, 10**5), st.integers(1, 64))
def test_the_batch_grows_as_far_as_the_floor_allows(ladder, samples, size) -> None:
    found = Batching(min_steps=50, batch_size=size).split(ladder, {}, samples)
    larger = [w for w in ladder if w > found.batches]
    assert all(-(-samples // (w * size)) < 50 for w in larger)


def test_the_shipped_flow_study_keeps_its_28_steps_while_gpus_double() -> None:
    rule = Batching(min_steps=50, batch_size=16)
    assert [rule.split([1, 2, 4, 8][:k], {}, 448) for k in (1, 2, 3, 4)] == [
        (1, 1, 1),
        (2, 2, 1),
        (4, 4, 1),
        (8, 8, 1),
    ]


def test_where_the_replicas_cannot_share_the_batch_they_stop_too() -> None:
    assert Batching(min_steps=50, batch_size=20).split([1, 2, 4, 8], {}, 448) == (4, 4, 1)


def test_a_batch_size_that_is_searched_is_that_of_the_trial() -> None:
    rule = Batching(min_steps=50, batch_size="batch")
    assert rule.split([1, 2, 4], {"batch": 4}, 448) == (4, 4, 2)
    assert rule.split([1, 2, 4], {"batch": 16}, 448) == (4, 4, 1)
    assert rule.split([1, 2, 4], {}, 448) == (4, 4, 4), "of a rehearsal, which draws no configurations"


# ------------------------------------------------------------------------------------- measured

MEASURED = Batching(8, min_steps=50, batch_size=16, is_measured=True)
LADDER = [1, 2, 4, 8]
scales = st.none() | st.floats(0, 10**4) | st.just(math.inf)


@pytest.mark.parametrize(
    ("noise_scale", "samples", "batches"),
    [
        (None, None, 1),
        (31.9, None, 1),
        (32.0, None, 2),
        (100.0, None, 4),
        (math.inf, None, 8),
        (math.inf, 448, 1),
        (math.inf, 3200, 4),
    ],
)
def test_a_measured_batch_grows_up_to_the_noise_scale_and_the_floor(noise_scale, samples, batches) -> None:
    assert MEASURED.split(LADDER, {}, samples, batches=1, noise_scale=noise_scale) == Split(8, 8, batches)


def test_a_measured_batch_begins_with_the_gpus_of_a_new_trial_and_no_noise_takes_any_away() -> None:
    assert MEASURED.split([2], {}, None) == Split(8, 2, 2)
    assert MEASURED.split([1, 2, 4], {}, None, batches=4, noise_scale=16.0) == Split(8, 4, 4)


@given(ladders(), st.integers(1, 10**5), st.integers(0, 200), st.lists(scales, min_size=6, max_size=6))
def test_a_measured_batch_lies_between_constant_and_doubling(ladder, samples, floor, seen) -> None:
    size = 4 * ladder[-1]
    rule = Batching(ladder[-1], floor, size, is_measured=True)
    before = rule.split(ladder[:1], {}, None)
    assert before == (ladder[-1], ladder[0], ladder[0])
    for rung, scale in zip(range(2, len(ladder) + 1), seen, strict=False):
        now = rule.split(ladder[:rung], {}, samples, batches=before.batches, noise_scale=scale)
        assert (now.replicas, now.workers) == (ladder[-1], ladder[rung - 1])
        assert before.batches <= now.batches <= ladder[rung - 1]
        if now.batches > before.batches:
            assert now.batches * size <= scale
            share = share_of_replica(size, now.batches, now.replicas)
            assert EpochPlan(samples, now.replicas, share).steps >= floor
        before = now


@given(ladders(), st.integers(1, 10**5))
def test_gradients_that_are_all_noise_let_the_batch_double(ladder, samples) -> None:
    measured = Batching(ladder[-1], 50, ladder[-1], is_measured=True)
    doubling = Batching(None, 50, ladder[-1])
    found = measured.split(ladder, {}, samples, batches=ladder[0], noise_scale=math.inf)
    assert found.batches == doubling.split(ladder, {}, samples).batches
