"""Rules that stop a trial between rungs, when its learning curve leaves no chance at the next one.

The scheduler knows what a trial must reach at the next rung; a rule says what it could reach there. A rule is
pure and keeps nothing. The executable definition is `parsl_rasda.testing.EarlyRuleContract`.

>>> rule = build_early({"kind": "curve", "quantile": 0.9})
>>> round(rule.best_case({1: 1.0, 2: 0.75, 3: 0.67, 4: 0.62, 5: 0.6}, 10), 1)
0.5
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist, fmean
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field

from parsl_rasda.plugins import EARLY_RULES, Choice, Plugin, kind_of

_EXPONENTS = tuple(0.05 * 1.15**k for k in range(30))  # to 2.9
_ROUNDING = 1e-9  # in units of the largest cost: equal curves are not told apart
_PARAMETERS = 3  # of a curve: where it ends, how far above that it begins, how fast it comes down


class EarlyRule(Protocol):
    """Says how good a trial may become."""

    def best_case(self, curve: Mapping[int, float], until: int) -> float:
        """Return the cost that a trial has at an epoch if all goes well; minus infinity if nobody can tell.

        Args:
            curve: Its cost at each epoch so far: finite, and lower is better.
            until: A later epoch.
        """
        ...


def build_early(choice: Choice) -> EarlyRule | None:
    """Return the rule that a study chooses, or None: `none`.

    Raises:
        InvalidFileError: If there is none of that name, or its options are wrong.
    """
    if kind_of(choice) == "none":
        return None
    rule: EarlyRule = EARLY_RULES.build(choice)
    return rule


class CurveOptions(BaseModel):
    """What may be said of the `curve` rule."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    quantile: float = Field(
        0.9, gt=0.5, lt=1, strict=True, description="How sure it must be that a trial has no chance."
    )
    min_epochs: int = Field(
        5, ge=4, strict=True, description="Epochs that a trial trains before its curve is extrapolated."
    )


class CurveRule:
    """Extrapolates a power law ``a + b * epoch ** -c``, fitted by least squares for each exponent of a grid.

    The best case is the lower end of a prediction interval at the given quantile: the lowest of those for all
    exponents that the curve does not rule out, whose residual sum of squares is larger than the least one by
    no more than the noise allows at that quantile.

    Source:
        Domhan, Springenberg and Hutter 2015 (IJCAI), section 3: end what will probably not be better; the
        power law is one of their curves. Interval and region: Bates and Watts 1988, sections 1.3 and 6.1.
    """

    def __init__(self, options: CurveOptions) -> None:
        self._quantile, self._least = options.quantile, options.min_epochs

    def best_case(self, curve: Mapping[int, float], until: int) -> float:
        """Return the lower end of the prediction interval."""
        if len(curve) < self._least:
            return -math.inf
        epochs = sorted(curve)
        scale = max(map(abs, curve.values())) or 1.0  # squares of large numbers are none
        costs = [curve[epoch] / scale for epoch in epochs]
        fits = [_fit([epoch**-c for epoch in epochs], costs, until**-c) for c in _EXPONENTS]
        freedom = len(costs) - _PARAMETERS
        deviations = _student(self._quantile, freedom)
        least = min(range(len(fits)), key=lambda k: fits[k][0])
        most = fits[least][0] * (1 + deviations**2 / freedom)
        lowest = min(
            predicted - deviations * math.sqrt(squares / freedom * widening)
            for k, (squares, predicted, widening) in enumerate(fits)
            if squares <= most or abs(k - least) == 1  # the true one lies between two of the grid
        )
        return scale * (lowest - _ROUNDING)


def _student(quantile: float, freedom: int) -> float:
    """Return a quantile of Student's distribution.

    Source: Abramowitz and Stegun 1964, 26.7.5, its first three terms.
    """
    z = NormalDist().inv_cdf(quantile)
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def _fit(xs: Sequence[float], ys: Sequence[float], x: float) -> tuple[float, float, float]:
    """Fit a line; return its residual sum of squares, its value at ``x``, and how much wider it is there."""
    mean_x, mean_y = fmean(xs), fmean(ys)
    spread = sum((each - mean_x) ** 2 for each in xs)
    slope = sum((one - mean_x) * (other - mean_y) for one, other in zip(xs, ys, strict=True)) / spread
    squares = sum((other - mean_y - slope * (one - mean_x)) ** 2 for one, other in zip(xs, ys, strict=True))
    return squares, mean_y + slope * (x - mean_x), 1 + 1 / len(xs) + (x - mean_x) ** 2 / spread


class NoRule:
    """Lets every trial train to its rung."""

    def best_case(self, _curve: Mapping[int, float], _until: int) -> float:
        """Return minus infinity: nobody can tell."""
        return -math.inf


CURVE, NONE = Plugin(CurveRule, CurveOptions), Plugin(lambda _: NoRule())
