"""From values to places on a chart: ranges, logarithms and ticks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from parsl_rasda.reporting.format import number

Tick: TypeAlias = tuple[float, str]  # value and label

_DECADES = 1.0  # of positive values, from which a logarithm shows more
_FAR = 3.0  # the worst values may take this many times the room of the rest before they are cut off
_REST = 0.95
_HUGE = 1e300  # values beyond it overflow
_TIME_STEPS = (
    *((s, 1, "s") for s in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30)),
    *((60 * m, 60, "min") for m in (1, 2, 5, 10, 20, 30)),
    *((3600 * h, 3600, "h") for h in (1, 2, 4, 8, 12)),
    *((86400 * d, 86400, "d") for d in (1, 2, 5, 10, 20, 50, 100)),
)


@dataclass(frozen=True, slots=True)
class Scale:
    """A range of values on a range of a chart.

    Attributes:
        start: Where `low` is [px].
        stop: Where `high` is [px].
    """

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the place of a value [px]; one beyond the range is put on its border."""
        low, high = self._shown(self.low), self._shown(self.high)
        inside = min(max(value, self.low), self.high)
        part = (self._shown(inside) - low) / (high - low) if high > low else 0.5
        return self.start + part * (self.stop - self.start)

    def _shown(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def ticks(self, most: int = 6) -> list[Tick]:
        """Return round values inside the range, with labels."""
        return _log_ticks(self.low, self.high, most) if self.log else _linear_ticks(self.low, self.high, most)


def metric_scale(values: Sequence[float], start: float, stop: float, *, smaller_is_better: bool) -> Scale:
    """Return a scale for metrics: logarithmic if they span decades, without the few that are far off.

    Args:
        values: Finite ones.
        start: Where the lowest is [px].
        stop: Where the highest is [px].
        smaller_is_better: The far ones are the high ones, then; else the low ones.
    """
    if not values:
        return Scale(0.0, 1.0, start, stop)
    inside = (min(max(v, -_HUGE), _HUGE) for v in values)
    ranked = sorted(inside, reverse=not smaller_is_better)  # the best first
    best, worst = ranked[0], ranked[-1]
    rest = ranked[min(len(ranked) - 1, math.ceil(_REST * len(ranked)))]
    log = min(best, worst) > 0 and _distance(best, rest, log=True) >= _DECADES
    if _distance(best, worst, log=log) > _FAR * _distance(best, rest, log=log) > 0:
        worst = rest
    low, high = min(best, worst), max(best, worst)
    if log:
        return Scale(low, high, start, stop, log=True)
    room = 0.04 * (high - low) or abs(low) * 0.1 or 1.0
    return Scale(low - room, high + room, start, stop)


def _distance(one: float, other: float, *, log: bool) -> float:
    return abs(math.log10(one) - math.log10(other)) if log else abs(one - other)


def value_scale(values: Sequence[float], start: float, stop: float, *, log: bool) -> Scale:
    """Return a scale for the values of a hyperparameter."""
    low, high = min(values), max(values)
    return Scale(low, high, start, stop, log=log and low > 0)


def time_ticks(span_s: float, most: int = 9) -> list[Tick]:
    """Return round times from 0 to a span [s], with labels."""
    step, unit_s, unit = next((s for s in _TIME_STEPS if span_s / s[0] <= most), _TIME_STEPS[-1])
    count = int(span_s / step + 1e-9)
    return [(i * step, f"{i * step / unit_s:g} {unit}" if i else "0") for i in range(count + 1)]


def _linear_ticks(low: float, high: float, most: int) -> list[Tick]:
    span = high - low
    if not span > 0 or not math.isfinite(span):
        return [(low, number(low))]
    rough = span / most
    decade = 10.0 ** math.floor(math.log10(rough))
    step = decade * next(m for m in (1, 2, 5, 10, 20) if m * decade >= rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [(i * step, number(i * step)) for i in range(first, last + 1)]


def _log_ticks(low: float, high: float, most: int) -> list[Tick]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    inside: list[float] = []
    for factors in ((1, 2, 5), (1, 3), (1,)):
        found = (f * 10.0**d for d in decades for f in factors)
        inside = [v for v in found if low * (1 - 1e-9) <= v <= high * (1 + 1e-9)]
        if len(inside) <= most:
            break
    every = math.ceil(len(inside) / most) or 1
    return [(v, number(v)) for v in inside[::every]] or [(low, number(low))]
