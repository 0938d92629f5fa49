"""What every early rule must do: a suite for the built-in ones and for plug-ins.

A plug-in author's whole test file::

    class TestMine(EarlyRuleContract):
        def build(self):
            return build_early("mine")
"""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator

from parsl_rasda.scheduling.early import EarlyRule

CURVES = 300


class EarlyRuleContract(ABC):
    """Inherit and write `build`; pytest finds the rest.

    A rule is a pure function of a curve and an epoch, and answers with a number or minus infinity for any
    curve that a training may report.
    """

    @abstractmethod
    def build(self) -> EarlyRule:
        """Return the rule."""

    def test_the_answer_to_any_curve_is_a_number_or_minus_infinity(self) -> None:
        rule = self.build()
        for curve in _curves():
            for ahead in (1, 10, 10_000):
                found = rule.best_case(curve, max(curve) + ahead)
                assert isinstance(found, float)
                assert found < math.inf
                assert not math.isnan(found)

    def test_the_same_curve_has_the_same_answer_and_stays_as_it_is(self) -> None:
        rule, other = self.build(), self.build()
        for curve in _curves():
            before, until = dict(curve), max(curve) + 5
            turned = dict(reversed(curve.items()))
            answers = [rule.best_case(curve, until), other.best_case(turned, until)]
            assert answers == [rule.best_case(curve, until)] * 2
            assert curve == before

    def test_a_trial_that_is_not_worse_than_a_flat_one_is_never_stopped(self) -> None:
        rule = self.build()
        for level in (0.3, -2.0, 1e6):
            flat = dict.fromkeys(range(1, 20), level)
            assert rule.best_case(flat, 40) <= level


def _curves() -> Iterator[dict[int, float]]:
    """Yield curves that fall, rise, stand still, jump, are short, have gaps, and are very large or small."""
    for seed in range(CURVES):
        rng = random.Random(seed)  # noqa: S311 - a test
        epochs = sorted(rng.sample(range(1, 40), rng.randint(1, 20)))
        size, fall, noise = (
            10.0 ** rng.choice((-300, -8, 0, 8, 300)),
            rng.uniform(-1, 2),
            rng.choice((0, 0.1)),
        )
        yield {e: size * (e**-fall + noise * rng.uniform(-1, 1)) for e in epochs}
