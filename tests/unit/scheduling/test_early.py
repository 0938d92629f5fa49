"""The curve rule against an independent statement in matrices, and what schedulers do with it."""

from __future__ import annotations

import math
import random
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t as student

from parsl_rasda.scheduling import build_scheduler
from parsl_rasda.scheduling.base import Action
from parsl_rasda.scheduling.early import build_early
from parsl_rasda.testing.schedulers import play

STREAMS = 10_000
EXPONENTS = 0.05 * 1.15 ** np.arange(30)


def naive_best_case(curve: dict[int, float], until: int, deviations: float) -> float:
    """Linear regressions in matrices; their prediction intervals; the lowest end of plausible ones."""
    epochs, costs = np.array(sorted(curve), float), np.array([curve[e] for e in sorted(curve)])
    freedom, powers = len(costs) - 3, -EXPONENTS[:, None]
    design = np.stack(np.broadcast_arrays(1.0, epochs**powers), axis=2)
    ahead = np.stack(np.broadcast_arrays(1.0, float(until) ** powers), axis=2)
    inverse = np.linalg.pinv(design)
    squares = ((costs - (design @ (inverse @ costs)[:, :, None])[:, :, 0]) ** 2).sum(1)
    leverage = ((ahead @ inverse) ** 2).sum((1, 2))
    predicted = (ahead @ (inverse @ costs)[:, :, None])[:, 0, 0]
    ends = predicted - deviations * np.sqrt(squares / freedom * (1 + leverage))
    least = int(squares.argmin())
    plausible = squares <= squares[least] * (1 + deviations**2 / freedom)
    plausible[max(0, least - 1) : least + 2] = True
    return float(ends[plausible].min())


def _power_law(rng: random.Random, epochs: int, noise: float) -> tuple[dict[int, float], list[float]]:
    a, b, c = rng.uniform(-1, 1), rng.uniform(-0.2, 1), rng.uniform(0.1, 2)
    truth = [a + b * e**-c for e in range(1, 100)]
    return {e: truth[e - 1] + rng.gauss(0, noise) for e in range(1, epochs + 1)}, truth


@cache
def _deviations(quantile: float, freedom: int) -> float:
    """Student's quantile is near the series; the series itself is what both use."""
    z = student.ppf(quantile, 1e9)
    near = z + (z**3 + z) / 4 / freedom + (5 * z**5 + 16 * z**3 + 3 * z) / 96 / freedom**2
    assert freedom == 1 or near == pytest.approx(student.ppf(quantile, freedom), rel=0.1)
    return near


def test_the_curve_is_extrapolated_as_the_statement_says() -> None:
    rules = {q: build_early({"kind": "curve", "quantile": q, "min_epochs": 4}) for q in (0.8, 0.9, 0.95)}
    for seed in range(STREAMS):
        rng = random.Random(seed)
        quantile, epochs = rng.choice([*rules]), rng.randint(4, 12)
        curve, _ = _power_law(rng, epochs, rng.choice((0.01, 0.1)))
        until = epochs + rng.randint(1, 60)
        expected = naive_best_case(curve, until, _deviations(quantile, epochs - 3))
        assert rules[quantile].best_case(curve, until) == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("noise", [0.001, 0.02])
@pytest.mark.parametrize(("epochs", "until"), [(5, 8), (6, 27), (20, 81)])
def test_at_most_one_power_law_in_ten_does_better_than_its_best_case(
    epochs: int, until: int, noise: float
) -> None:
    rule, rng, wrong = build_early("curve"), random.Random(1), 0
    for _ in range(500):
        curve, truth = _power_law(rng, epochs, noise)
        wrong += truth[until - 1] + rng.gauss(0, noise) < rule.best_case(curve, until)
    assert wrong <= 50


def test_fewer_epochs_than_it_wants_tell_nothing() -> None:
    curve = dict.fromkeys(range(1, 5), 1.0)
    assert build_early("curve").best_case(curve, 8) == -math.inf
    assert build_early({"kind": "curve", "min_epochs": 4}).best_case(curve, 8) == pytest.approx(1)


# ---------------------------------------------------------------------------- in a scheduler

BLOCK = {"max_t": 32, "grace_period": 16, "metric": "loss", "early": "curve"}


def _train(scheduler, trial: str, level: float, sign: float = 1.0) -> list:
    decisions = [scheduler.add(trial)]
    for epoch in range(1, 33):
        decisions.append(scheduler.report(trial, epoch, sign * (level + 1 / epoch)))
        if decisions[-1].action is not Action.CONTINUE:
            break
    return decisions


def test_a_hopeless_trial_is_stopped_between_rungs_and_says_why() -> None:
    for sign, mode in ((1.0, "min"), (-1.0, "max")):
        scheduler = build_scheduler({**BLOCK, "mode": mode})
        assert _train(scheduler, "good", 0.1, sign)[-1].completed
        assert _train(scheduler, "better", 0.05, sign)[-1].completed
        stop = _train(scheduler, "bad", 0.9, sign)[-1]
        assert (stop.action, stop.completed) == (Action.STOP, False)
        assert stop.until < 16
        limit = f"is up to {sign * (0.05 + 1 / 16):.6g}"
        assert stop.reason.startswith("loss may come to ")
        assert stop.reason.endswith(f" at epoch 16, where the best half of 2 results {limit}")
        assert scheduler.report("bad", 20, sign * 0.9) == stop


def test_on_the_way_to_max_t_it_must_be_able_to_become_the_best() -> None:
    scheduler = build_scheduler({**BLOCK, "grace_period": 1, "max_t": 32, "reduction_factor": 32})
    _train(scheduler, "good", 0.1)
    for epoch in range(1, 33):
        end = scheduler.report("later", epoch, 1.1 if epoch == 1 else 0.5 + 0.6 / epoch)
        if end.action is Action.STOP:
            break
    assert end.reason.endswith(" at epoch 32, where the best of 1 results is 0.13125")
    assert end.until < 32


def test_whoever_is_as_good_as_the_rest_is_not_stopped() -> None:
    scheduler = build_scheduler(BLOCK)
    for trial in "abcd":
        assert _train(scheduler, trial, 0.1)[-1].completed


def test_before_as_many_are_at_a_rung_as_are_compared_there_nobody_is_stopped() -> None:
    scheduler = build_scheduler({**BLOCK, "min_compared": 3})
    for trial, level in (("a", 0.1), ("b", 0.1), ("c", 0.9)):
        assert _train(scheduler, trial, level)[-1].until == 16
    scheduler.close()
    assert _train(scheduler, "d", 0.9)[-1].until < 16


def test_none_decides_as_ever() -> None:
    for variant in ("stopping", "promotion", "synchronous"):
        blocks = ({"max_t": 9, "variant": variant, **more} for more in ({}, {"early": {"kind": "none"}}))
        one, other = (
            play(
                build_scheduler(block),
                [*"abcdefgh"],
                lambda trial, epoch: random.Random(f"{trial} {epoch}").random(),
                random.Random(2),
            )
            for block in blocks
        )
        assert one == other


@settings(deadline=None)
@given(st.sampled_from(("stopping", "promotion")), st.integers(2, 14), st.randoms(use_true_random=False))
def test_it_stops_only_who_would_have_stopped_at_the_rung_where_curves_are_exact(
    variant, trials, rng
) -> None:
    """Without noise, and in turn, who is stopped early is worse at the rung than what was to be reached."""
    scheduler = build_scheduler({**BLOCK, "variant": variant})
    seen: list[float] = []
    for number in range(trials):
        level = rng.random()
        end = _train(scheduler, f"t{number}", level)[-1]
        if end.until < 16:
            assert level + 1 / 16 > sorted(seen)[len(seen) // 2 - 1]
        else:
            seen.append(level + 1 / 16)
