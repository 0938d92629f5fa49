"""The stopping rule, the default: a trial that falls behind ends at once, nobody ever pauses."""

from __future__ import annotations

import math
from heapq import heappop, heappush

from parsl_rasda.scheduling.base import Decision
from parsl_rasda.scheduling.rung_scheduler import Contender, ExtensibleScheduler, part
from parsl_rasda.scheduling.rungs import Rungs
from parsl_rasda.types import Mode


class StoppingScheduler(ExtensibleScheduler):
    """Continue iff first at the rung, or as good as the percentile of the earlier results there.

    A contender's own result joins the rung after its judgement. Results that are not finite rank
    last and never continue. A report that has skipped milestones counts at the highest it reached.

    Source:
        The stopping variant of ASHA (Li et al. 2020, arXiv:1810.05934), which RASDA uses
        (Aach et al. 2026, doi 10.1016/j.future.2025.108042).
    """

    def __init__(self, rungs: Rungs, mode: Mode = Mode.MIN, metric: str = "metric") -> None:
        super().__init__(rungs, mode, metric)
        self._costs = tuple(_Costs(rungs.reduction_factor) for _ in rungs.milestones)

    def _add_rungs(self) -> None:
        more = len(self.milestones) - len(self._costs)
        self._costs += tuple(_Costs(self.rungs.reduction_factor) for _ in range(more))

    def _judge(self, contender: Contender, reached: int, metric: float) -> Decision:
        contender.rung = reached
        if not math.isfinite(metric):
            self._costs[reached].add(math.inf)
            return self._stop(contender, self._not_finite(metric))
        if reached == self._last:
            return self._complete(contender)
        costs, eta, cost = self._costs[reached], self.rungs.reduction_factor, contender.cost
        others = costs.count
        cut = costs.cut if others else math.inf
        costs.add(cost)
        if not others:
            return self._advance(contender, f"{self._text(cost)} is the first at epoch {contender.epoch}")
        best = "the only result" if others == 1 else f"the best {part(eta)} of {others} results"
        if cost <= cut:
            within = "as good as" if others == 1 else "within"
            return self._advance(contender, f"{self._text(cost)} is {within} {best} before it")
        reason = f"{self._text(cost)} is worse than {self._sign * cut:.6g}"
        return self._stop(contender, f"{reason}, {'' if others == 1 else 'the limit of '}{best} before it")


class _Costs:
    """The results of a rung, halved where the best 1/eta end: what is added finds its half in no time."""

    def __init__(self, eta: int) -> None:
        self._eta = eta
        self._low: list[float] = []  # negated, so that the largest comes first
        self._high: list[float] = []
        self.count = 0

    def add(self, cost: float) -> None:
        if self._low and cost < -self._low[0]:
            heappush(self._low, -cost)
        else:
            heappush(self._high, cost)
        below, self.count = self.count // self._eta, self.count + 1
        while len(self._low) > below + 1:
            heappush(self._high, -heappop(self._low))
        while len(self._low) < below + 1:
            heappush(self._low, -heappop(self._high))

    @property
    def cut(self) -> float:
        """The cost that the best 1/eta reach, interpolated linearly.

        The position is found with integers, so that equal results are never told apart by rounding.
        """
        remainder, low = (self.count - 1) % self._eta, -self._low[0]
        if remainder == 0:
            return low
        high = self._high[0]
        if math.isinf(high):
            return high
        # Rounding, or the overflow of a difference of huge numbers, must not lift it above `high`.
        return min(high, low + (high - low) * remainder / self._eta)
