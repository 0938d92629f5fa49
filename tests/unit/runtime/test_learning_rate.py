from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parsl_rasda.errors import InvalidSettingError
from parsl_rasda.runtime.engine.learning_rate import rate_factor, scaling_rule

lengths = st.floats(0.01, 5.0)
RULES = [scaling_rule(name, object) for name in ("linear", "sqrt", "none")]


@st.composite
def growing_schedules(draw):
    """Replicas that never shrink, at increasing epochs."""
    epochs = sorted(draw(st.sets(st.integers(1, 30), max_size=4)))
    replicas = [draw(st.integers(1, 4))]
    for _ in epochs:
        replicas.append(replicas[-1] * draw(st.sampled_from([1, 2, 3])))
    return tuple(zip([0, *epochs], replicas, strict=True))


@given(growing_schedules(), st.sampled_from(RULES), lengths, lengths)
def test_the_rate_grows_without_a_jump_and_never_beyond_its_rule(schedule, scaling, initial, rescale) -> None:
    positions = [i / 50 for i in range(1, 40 * 50)]
    factors = [rate_factor(p, schedule, scaling, initial=initial, rescale=rescale) for p in positions]
    full = scaling(schedule[-1][1])
    steepest = max(full, 1.0) * 0.02 / min(initial, rescale)
    assert factors[0] >= 0
    assert max(factors) <= full * (1 + 1e-12)
    for before, after in pairwise(factors):
        assert before - 1e-9 <= after <= before + steepest + 1e-9


@given(growing_schedules(), st.sampled_from(RULES), lengths, lengths)
def test_after_its_warm_up_the_rate_is_what_the_rule_says(schedule, scaling, initial, rescale) -> None:
    long_after = schedule[-1][0] + initial + rescale + 1.0
    # 30 epochs of changes and two warm-ups are over by then
    assert rate_factor(long_after + 60, schedule, scaling, initial=initial, rescale=rescale) == scaling(
        schedule[-1][1]
    )


@given(growing_schedules(), st.floats(0.0, 40.0))
def test_the_future_of_the_schedule_does_not_matter(schedule, position) -> None:
    known = tuple(pair for pair in schedule if pair[0] < position) or schedule[:1]
    options = {"initial": 1.0, "rescale": 0.5}
    assert rate_factor(position, schedule, float, **options) == rate_factor(position, known, float, **options)


def test_a_doubling_warms_up_from_the_rate_before_to_twice_as_much() -> None:
    schedule = ((0, 1), (4, 2))
    rates = [
        rate_factor(p, schedule, float, initial=2.0, rescale=1.0) for p in (0.5, 1.0, 2.0, 4.0, 4.5, 5.0, 9.0)
    ]
    assert rates == [0.25, 0.5, 1.0, 1.0, 1.5, 2.0, 2.0]


def test_an_unfinished_warm_up_goes_on_from_where_it_is() -> None:
    rates = [rate_factor(p, ((0, 1), (1, 2)), float, initial=2.0, rescale=1.0) for p in (1.0, 1.5, 2.0)]
    assert rates == [0.5, 1.25, 2.0]


def test_without_warm_up_the_rate_changes_at_once() -> None:
    assert rate_factor(1.5, ((0, 1), (1, 4)), math.sqrt) == 2.0


class SGD: ...


class MySGD(SGD): ...


class AdamW: ...


class Lion: ...


@pytest.mark.parametrize(("optimizer", "factor"), [(SGD, 4.0), (MySGD, 4.0), (AdamW, 2.0), (Lion, 2.0)])
def test_auto_is_linear_for_sgd_and_the_square_root_for_the_rest(optimizer, factor) -> None:
    assert scaling_rule("auto", optimizer)(4) == factor


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(InvalidSettingError, match="lr_scaling: found 'cubic'"):
        scaling_rule("cubic", SGD)
