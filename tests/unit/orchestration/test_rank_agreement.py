from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau

from parsl_rasda.orchestration.rank_agreement import LEAST, agreement_of, rank_agreement, tau_b

values = st.one_of(st.integers(-3, 3).map(float), st.floats(-1e6, 1e6))


@given(st.lists(st.tuples(values, values), max_size=60))
def test_tau_is_that_of_scipy(pairs) -> None:
    known = kendalltau(*zip(*pairs, strict=True)).statistic if len(pairs) > 1 else math.nan
    found = tau_b(pairs)
    assert (math.isnan(known) and found is None) or found == pytest.approx(known, abs=1e-12)


@given(st.lists(st.tuples(values, values), min_size=LEAST, max_size=60))
def test_the_interval_holds_tau_whichever_metric_is_better(pairs) -> None:
    found = agreement_of([{1: a, 4: b} for a, b in pairs], 1, 4)
    turned = agreement_of([{1: -a, 4: -b} for a, b in pairs], 1, 4)
    assert found == turned
    if found is not None:
        assert -1 <= found.low <= found.tau <= found.high <= 1
        assert found.low < found.high


def test_nineteen_of_twenty_intervals_hold_the_true_value() -> None:
    """Of two normal variables with correlation r, tau is 2 / pi * asin(r)."""
    rng, inside = random.Random(1), 0
    r, n, repeats = 0.6, 20, 1000
    for _ in range(repeats):
        first = [rng.gauss(0, 1) for _ in range(n)]
        second = [r * x + math.sqrt(1 - r * r) * rng.gauss(0, 1) for x in first]
        found = agreement_of([{1: a, 2: b} for a, b in zip(first, second, strict=True)], 1, 2)
        inside += found.low <= 2 / math.pi * math.asin(r) <= found.high
    assert 0.93 <= inside / repeats <= 0.97


def test_only_trials_with_finite_results_at_both_are_compared() -> None:
    both = [{1: float(i), 2: float(i)} for i in range(5)]
    more = [{1: 7.0}, {2: 7.0}, {1: math.nan, 2: 1.0}, {1: 1.0, 2: math.inf}]
    assert agreement_of([*both, *more], 1, 2) == agreement_of(both, 1, 2)
    assert agreement_of([*both[:4], *more], 1, 2) is None
    assert agreement_of([{1: 1.0, 2: float(i)} for i in range(9)], 1, 2) is None, "all are equal at one"


def _crossing(n: int) -> list[dict[int, float]]:
    """Trials whose order at epoch 1 is drawn anew, and at 4 almost that of epoch 8."""
    rng = random.Random(3)
    ends = [rng.random() for _ in range(n)]
    return [{1: rng.random(), 2: rng.random(), 4: end + rng.gauss(0, 0.05), 8: end} for end in ends]


def test_a_first_rung_that_says_little_about_the_last_is_named_with_one_that_says_more() -> None:
    found = rank_agreement(_crossing(30), (1, 2, 4, 8))
    assert [pair["epochs"] for pair in found["rungs"]] == [[1, 2], [2, 4], [4, 8]]
    assert found["sentence"].startswith("epoch 1 says little about epoch 8 (tau ")
    assert found["sentence"].endswith("): grace_period 4")
    blind = rank_agreement([{1: t[1], 2: t[2], 8: t[8]} for t in _crossing(30)], (1, 2, 8))
    assert blind["sentence"].endswith(", and no rung below says more")


def test_of_a_first_rung_that_tells_the_truth_nothing_is_said() -> None:
    ordered = [{1: float(i), 2: float(i), 4: float(i)} for i in range(20)]
    assert rank_agreement(ordered, (1, 2, 4))["sentence"] == ""
    assert rank_agreement(ordered[:LEAST], (1, 2, 4))["rungs"][0]["tau"] == 1.0


def test_the_last_rung_that_enough_trials_reached_is_the_one_that_counts() -> None:
    trials = _crossing(30)
    few = [{e: m for e, m in t.items() if e < 8 or i < LEAST - 1} for i, t in enumerate(trials)]
    assert "about epoch 4 (" in rank_agreement(few, (1, 2, 4, 8))["sentence"]
    assert rank_agreement([], (1, 2)) == {"rungs": [], "sentence": ""}
