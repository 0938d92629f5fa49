"""Beliefs about good values: drawn near, weighed by results, the same after a restart."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parsl_rasda.errors import InvalidSettingError
from parsl_rasda.search import build_searcher
from parsl_rasda.search.designs import share_at, value_at
from parsl_rasda.search.priors import WithPriors, near_prior
from parsl_rasda.search.space import Choice, Float, Int, SearchSpace, contains
from parsl_rasda.types import TrialId

SPACE = SearchSpace.from_mapping(
    {
        "lr": {"float": [1e-5, 1e-1], "log": True, "prior": 1e-3, "confidence": "high"},
        "optimizer": {"choice": ["sgd", "adamw"], "prior": "adamw"},
        "depth": {"int": [1, 9]},
    }
)
KINDS = ("random", "sobol", "tpe", "cmaes")


def searcher(kind: str = "random", mode: str = "min") -> WithPriors:
    found = build_searcher({"kind": kind}, SPACE, mode=mode, seed=3)
    assert isinstance(found, WithPriors)
    return found


numbers = st.one_of(
    st.builds(
        lambda a, w, p: Float(a, a + w, prior=a + p * w), st.floats(-9, 9), st.floats(0.1, 9), st.floats(0, 1)
    ),
    st.builds(
        lambda a, w, p: Int(a, a + w, log=True, prior=a + round(p * w)),
        st.integers(1, 9),
        st.integers(0, 99),
        st.floats(0, 1),
    ),
    st.builds(
        lambda a, w, p: Int(a, a + 3 * w, step=3, prior=a + 3 * round(p * w)),
        st.integers(-9, 9),
        st.integers(0, 99),
        st.floats(0, 1),
    ),
)


@given(numbers, st.integers(0, 99))
def test_a_draw_near_a_prior_is_a_value_of_the_parameter(parameter, seed: int) -> None:
    assert contains(parameter, near_prior(parameter, random.Random(seed)))


@given(numbers)
def test_the_share_of_a_value_gives_the_value(parameter) -> None:
    share = min(share_at(parameter, parameter.prior), 1 - 1e-12)
    assert value_at(parameter, share) == pytest.approx(parameter.prior)


@pytest.mark.parametrize("parameter", [Float(1e-5, 1e-1, True, prior=1e-3), Int(1, 999, prior=300)])
def test_more_confidence_looks_nearer(parameter) -> None:
    spread = []
    for confidence in ("low", "medium", "high"):
        sure = type(parameter)(
            parameter.low, parameter.high, parameter.log, prior=parameter.prior, confidence=confidence
        )
        rng = random.Random(1)
        shares = [share_at(sure, near_prior(sure, rng)) for _ in range(300)]
        spread.append(sum(abs(s - share_at(sure, sure.prior)) for s in shares))
    assert all(wide > 1.5 * near for wide, near in pairwise(spread))


def test_a_believed_choice_is_drawn_more_often() -> None:
    rng = random.Random(1)
    drawn = [near_prior(Choice(("a", "b"), prior="a", confidence="high"), rng) for _ in range(200)]
    assert drawn.count("a") > 160


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_wrong_prior_is_drawn_from_ever_less_and_a_good_one_for_longer(mode: str) -> None:
    shares = {}
    for believed_is_good in (False, True):
        found = searcher(mode=mode)
        assert found.share == 0.5
        for i in range(40):
            trial = TrialId(f"{i:04d}")
            found.propose(trial)
            is_good = (trial in found._from_prior) == believed_is_good
            found.conclude(trial, float(i if is_good else 1000 + i) * (1 if mode == "min" else -1))
        shares[believed_is_good] = found.share
    assert shares[False] < 0.1
    assert 0.3 < shares[True] < 0.5, "it fades, too: by now trials say more"


def test_a_failed_trial_counts_as_bad() -> None:
    found = searcher()
    for i in range(30):
        trial = TrialId(f"{i:04d}")
        found.propose(trial)
        found.conclude(trial, None if trial in found._from_prior else 1.0)
    assert found.share < 0.3


def test_a_trial_that_failed_and_was_tried_again_is_as_good_as_it_is_then() -> None:
    shares = []
    for failed_before in (False, True):
        found = searcher()
        for number in range(6):
            trial = TrialId(str(number))
            found.propose(trial)
            if failed_before:
                found.conclude(trial, None)
            found.conclude(trial, float(6 - number))
            found.conclude(trial, float(number))  # judged again where there are more rungs
        shares.append(found.share)
    assert shares[0] == shares[1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("died_after", [1, 6])
def test_a_restart_goes_on_as_if_there_had_been_none(kind: str, died_after: int) -> None:
    whole, again = searcher(kind), searcher(kind)
    trials = [TrialId(f"{i:04d}") for i in range(14)]
    for i, trial in enumerate(trials):
        config = whole.propose(trial)
        assert config is not None
        assert SPACE.accepts(config)
        if i < died_after:
            again.restore(trial, config)
        else:
            assert again.propose(trial) == config
        whole.conclude(trial, config["lr"])
        again.conclude(trial, config["lr"])


@pytest.mark.parametrize(
    ("form", "key"),
    [
        ({"float": [0.0, 1.0], "prior": 2.0}, "x.prior"),
        ({"choice": ["a"], "prior": "b"}, "x.prior"),
        ({"int": [1, 3], "prior": 2, "confidence": "sure"}, "x.confidence"),
        ({"int": [1, 3], "confidence": "low"}, "x.confidence"),
    ],
)
def test_a_prior_that_cannot_be_is_refused(form, key: str) -> None:
    with pytest.raises(InvalidSettingError, match=key):
        SearchSpace.from_mapping({"x": form})


def test_a_failure_that_was_retried_leaves_no_mark() -> None:
    retried, fresh = searcher(), searcher()
    trials = [TrialId(str(i)) for i in range(6)]
    for each in (retried, fresh):
        for trial in trials:
            each.propose(trial)
    for trial in trials:
        retried.conclude(trial, None)
    for each in (retried, fresh):
        for number, trial in enumerate(trials):
            each.conclude(trial, -float(number))
    assert retried.share == fresh.share
    assert [retried.propose(TrialId(t)) for t in "abc"] == [fresh.propose(TrialId(t)) for t in "abc"]
