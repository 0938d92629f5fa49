"""Several metrics, and limits that a trial must keep: who is ahead of whom; pure.

Trials that keep all limits come first, by non-dominated fronts and, within a front, by crowding distance:
the more room a trial has to itself, the further ahead. Then those that break a limit, the less the sooner.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from parsl_rasda.types import Mode

Place: TypeAlias = tuple[int, float, float]


class Values(NamedTuple):
    """What a trial has reached: costs, of which lower is better, and by how much it breaks the limits."""

    costs: tuple[float, ...]
    violations: tuple[float, ...] = ()

    @property
    def violation(self) -> float:
        """By how much it breaks all limits together; 0 if it keeps them."""
        return sum(max(0.0, each) for each in self.violations)


@dataclass(frozen=True, slots=True)
class Limit:
    """What a metric must not exceed, or must reach."""

    metric: str
    bound: float
    mode: Mode

    def violation(self, value: float) -> float:
        """Return by how much a value is beyond the bound; 0 or less if it is not."""
        return value - self.bound if self.mode is Mode.MIN else self.bound - value


@dataclass(frozen=True, slots=True)
class Objectives:
    """By what the trials of a search are judged, if not by one metric alone.

    Attributes:
        metrics: Names, and whether smaller or larger is better; the first one is shown where one must be.
        limits: What trials must keep.
    """

    metrics: tuple[tuple[str, Mode], ...]
    limits: tuple[Limit, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All metrics that a trial must report."""
        return tuple(dict.fromkeys([*(n for n, _ in self.metrics), *(limit.metric for limit in self.limits)]))

    def missing(self, reported: Mapping[str, float]) -> str | None:
        """Return the first metric that was not reported or is not finite, or None."""
        return next((n for n in self.names if not math.isfinite(reported.get(n, math.nan))), None)

    def values(self, reported: Mapping[str, float]) -> Values | None:
        """Return what a trial has reached, or None if a metric is missing or not finite."""
        if self.missing(reported) is not None:
            return None
        return Values(
            tuple(reported[n] if mode is Mode.MIN else -reported[n] for n, mode in self.metrics),
            tuple(limit.violation(reported[limit.metric]) for limit in self.limits),
        )

    def plain(self, reached: Values) -> tuple[float, ...]:
        """Return the metrics as they were reported."""
        modes = (mode for _, mode in self.metrics)
        return tuple(c if m is Mode.MIN else -c for c, m in zip(reached.costs, modes, strict=True))


def places(found: Sequence[Values]) -> list[Place]:
    """Return where each stands: smaller places are ahead, equal ones are level.

    Source:
        Deb et al. 2002, doi 10.1109/4235.996017 (NSGA-II: fronts, crowding distance, constrained domination);
        at the rungs of ASHA: Schmucker et al. 2021, arXiv:2106.12639.
    """
    result: list[Place] = [(1, one.violation, 0.0) for one in found]
    feasible = [i for i, one in enumerate(found) if one.violation == 0]
    costs = [found[i].costs for i in feasible]
    for number, front in enumerate(fronts(costs)):
        for i, distance in zip(front, crowding([costs[i] for i in front]), strict=True):
            result[feasible[i]] = (0, float(number), -distance)
    return result


def fronts(costs: Sequence[Sequence[float]]) -> list[list[int]]:
    """Return the non-dominated fronts, as ascending indices.

    Whoever precedes in lexicographic order is never dominated by who follows, so that each joins the first
    front that has nobody who dominates it; a binary search finds it. For two metrics it is enough to look at
    the last one of a front: n log n steps.

    Source:
        Zhang et al. 2015, doi 10.1109/TEVC.2014.2308305 (ENS-BS).
    """
    found: list[list[int]] = []
    few = bool(costs) and len(costs[0]) <= 2  # noqa: PLR2004
    for i in sorted(range(len(costs)), key=lambda i: (tuple(costs[i]), i)):
        is_free = _is_free(costs, i, last_only=few)
        at = bisect_left(found, True, key=is_free)
        if at == len(found):
            found.append([])
        found[at].append(i)
    return [sorted(front) for front in found]


def _is_free(costs: Sequence[Sequence[float]], i: int, *, last_only: bool) -> Callable[[Sequence[int]], bool]:
    def is_free(front: Sequence[int]) -> bool:
        rivals = front[-1:] if last_only else front
        return not any(dominates(costs[j], costs[i]) for j in rivals)

    return is_free


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether one is nowhere worse than the other, and somewhere better."""
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def crowding(costs: Sequence[Sequence[float]]) -> list[float]:
    """Return the room that each member of a front has; infinite at the ends of any metric."""
    room = [0.0] * len(costs)
    for values in zip(*costs, strict=True):
        order = sorted(range(len(values)), key=lambda i: (values[i], i))
        low, high = values[order[0]], values[order[-1]]
        if low == high:
            continue  # nobody is at an end
        for before, i, after in zip(order, order[1:], order[2:], strict=False):
            # Halves: the difference of huge numbers would overflow.
            room[i] += (values[after] / 2 - values[before] / 2) / (high / 2 - low / 2)
        room[order[0]] = room[order[-1]] = math.inf
    return room
