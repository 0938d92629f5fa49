"""How much of the ladder is in use: a rung more only while the ranking at its top is not settled (PASHA)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import NamedTuple

from sortedcontainers import SortedList

from parsl_rasda.scheduling.rungs import Rungs


class _Standing(NamedTuple):
    """A trial at the top rung: its cost there, its age, its cost at the rung below, and all its costs."""

    cost: float
    age: int
    before: float
    curve: Mapping[int, float]


class Ladder:
    """Says up to which rung trials may train by now.

    Without ``max_t: {auto: ...}`` it is the last one from the start. With it, the second; another is added
    when the ranking of the trials at the top rung is not that of the rung below. Rankings are compared
    softly: at each place there may be another trial, if at the rung below the two were no further apart
    than ``epsilon``. That is the noise of the metric: of trials that have changed their order twice on the
    way to the top rung, the 90th percentile (nearest rank) of how far they are apart there.

    A trial that comes to the top rung costs O(n log n) for ``n`` trials there, and ``n`` comparisons of
    curves; other reports cost nothing.

    Attributes:
        top: The highest rung in use.
        epsilon: Kept until there is a new estimate.

    Source:
        PASHA, Bohdal et al. 2023 (arXiv:2207.06940), Algorithm 1 and section 4.2.
    """

    def __init__(self, rungs: Rungs) -> None:
        self.top = min(1, rungs.last) if rungs.is_auto else rungs.last
        self.epsilon = 0.0
        self._standings: list[_Standing] = []
        self._distances: SortedList = SortedList()
        self._rungs = rungs

    def extend(self, rungs: Rungs) -> None:
        """Learn that there are more rungs above the last one."""
        self._rungs = rungs
        if not rungs.is_auto:
            self.top = rungs.last

    def holds(self, rung: int) -> bool:
        """Whether nobody may go on from a rung: it is the top one, and another could be added."""
        return rung == self.top < self._rungs.last

    @property
    def reason(self) -> str:
        """Why trials that are at the top rung are done if nobody comes there any more."""
        below, top = self._rungs.milestones[self.top - 1 : self.top + 1]
        return f"the ranking at epoch {top} is that at epoch {below}: max_t {top} is enough"

    def arrive(self, age: int, curve: Mapping[int, float]) -> None:
        """Learn that a trial has come to the top rung, which is held; this may add a rung.

        Args:
            age: Its order of admission.
            curve: Its cost at each epoch.
        """
        below, top = self._rungs.milestones[self.top - 1 : self.top + 1]
        if below not in curve or top not in curve:
            return  # it has skipped a report: there is nothing to compare
        for other in self._standings:
            if _has_crossed_twice(curve, other.curve, top):
                self._distances.add(abs(curve[top] - other.cost))
        if self._distances:
            self.epsilon = self._distances[(9 * len(self._distances) - 1) // 10]
        self._standings.append(_Standing(curve[top], age, curve[below], curve))
        if not self._is_settled():
            self.top += 1
            self._standings.clear()
            self._distances.clear()

    def _is_settled(self) -> bool:
        """Whether at each place of the top rung's ranking is who was there before, or one as good as that."""
        ranked = sorted(self._standings)
        before = sorted(standing.before for standing in ranked)
        return all(abs(one.before - cost) <= self.epsilon for one, cost in zip(ranked, before, strict=True))


def _has_crossed_twice(one: Mapping[int, float], other: Mapping[int, float], until: int) -> bool:
    """Whether two curves are in an order that they have left and come back to."""
    common = sorted(epoch for epoch in one.keys() & other.keys() if epoch <= until)
    orders = [one[epoch] > other[epoch] for epoch in common if one[epoch] != other[epoch]]
    return one[until] != other[until] and len([*groupby(orders)]) > 2  # noqa: PLR2004 - there and back
