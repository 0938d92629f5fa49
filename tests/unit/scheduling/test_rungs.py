from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parsl_rasda.errors import InvalidFileError
from parsl_rasda.scheduling import build_scheduler
from parsl_rasda.scheduling.rungs import build_rungs
from parsl_rasda.study import SchedulerSpec


@pytest.mark.parametrize(
    ("grace_period", "max_t", "eta", "milestones"),
    [
        (1, 8, 2, (1, 2, 4, 8)),
        (1, 243, 3, (1, 3, 9, 27, 81, 243)),
        (1, 9**5, 9, (1, 9, 81, 729, 6561, 59049)),
        (1, 1000, 10, (1, 10, 100, 1000)),
        (2, 7, 2, (2, 4, 7)),
        (5, 5, 4, (5,)),
    ],
)
def test_no_rung_is_lost_to_rounding(grace_period, max_t, eta, milestones) -> None:
    rungs = build_rungs(SchedulerSpec(grace_period=grace_period, max_t=max_t, reduction_factor=eta))
    assert rungs.milestones == milestones


@given(grace=st.integers(1, 50), extra=st.integers(0, 10_000), eta=st.integers(2, 12))
def test_each_milestone_is_eta_times_the_one_before_except_the_last(grace, extra, eta) -> None:
    milestones = build_rungs(
        SchedulerSpec(grace_period=grace, max_t=grace + extra, reduction_factor=eta)
    ).milestones
    assert milestones[-1] == grace + extra
    assert milestones[:-1] == tuple(grace * eta**k for k in range(len(milestones) - 1))
    assert milestones[-1] <= grace * eta ** (len(milestones) - 1)


def test_replicas_multiply_at_every_rung_up_to_the_cap() -> None:
    rungs = build_rungs(SchedulerSpec(max_t=16, num_workers=3, scaling_factor=2, max_workers=12))
    assert [rungs.replicas(k) for k in range(5)] == [3, 6, 12, 12, 12]


def test_without_a_cap_replicas_are_not_bounded() -> None:
    rungs = build_rungs(SchedulerSpec(max_t=16, scaling_factor=4))
    assert [rungs.replicas(k) for k in range(5)] == [1, 4, 16, 64, 256]


def test_the_highest_rung_reached_is_found_for_any_epoch() -> None:
    rungs = build_rungs(SchedulerSpec(grace_period=2, max_t=7, reduction_factor=2))
    assert [rungs.reached(epoch) for epoch in range(1, 9)] == [-1, 0, 0, 1, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ({"grace_period": 0}, "grace_period"),
        ({"grace_period": 1.5}, "grace_period"),
        ({"max_t": 0}, "max_t"),
        ({"grace_period": 9, "max_t": 8}, "grace_period"),
        ({"reduction_factor": 1}, "reduction_factor"),
        ({"reduction_factor": True}, "reduction_factor"),
        ({"num_workers": "2"}, "num_workers"),
        ({"scaling_factor": 0}, "scaling_factor"),
        ({"num_workers": 4, "max_workers": 2}, "num_workers"),
    ],
)
def test_a_bad_number_is_an_error_that_names_its_key(wrong, key) -> None:
    with pytest.raises(InvalidFileError, match=f"scheduler.{key}: found"):
        build_scheduler({"max_t": 8, **wrong})
