"""The three rules for several metrics: each as for one, but what counts is a trial's place among the others.

Places change when others come, so that a decision ranks the results of its rung anew.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from sortedcontainers import SortedList

from parsl_rasda.scheduling.base import Decision
from parsl_rasda.scheduling.objectives import Objectives, Values, places
from parsl_rasda.scheduling.promotion import PromotionScheduler, _Rung
from parsl_rasda.scheduling.rung_scheduler import Contender, RungScheduler, part
from parsl_rasda.scheduling.rungs import Rungs
from parsl_rasda.scheduling.stopping import StoppingScheduler
from parsl_rasda.scheduling.synchronous import SynchronousScheduler
from parsl_rasda.types import TrialId


class _SeveralMetrics(RungScheduler):
    """Takes all metrics of a report; rules below find them in ``_values``."""

    def __init__(self, rungs: Rungs, objectives: Objectives, *rest: Any) -> None:  # of the variant
        super().__init__(rungs, objectives.metrics[0][1], objectives.metrics[0][0], *rest)
        self._objectives = objectives
        self._values: dict[TrialId, Values] = {}

    def report_all(self, trial: TrialId, epoch: int, metrics: Mapping[str, float]) -> Decision:
        """Return what becomes of the trial, as `report` does."""
        values = self._objectives.values(metrics)
        if values is None:
            return self.report(trial, epoch, math.nan)
        self._values[trial] = values
        return self.report(trial, epoch, metrics[self._objectives.metrics[0][0]])

    def _not_finite(self, metric: float) -> str:
        return f"{' or '.join(self._objectives.names)} is missing or not finite"


class FrontStopping(_SeveralMetrics, StoppingScheduler):
    """Continue iff first at the rung, or if at most ``(n - 1) / eta`` of ``n`` earlier results are ahead."""

    def __init__(self, rungs: Rungs, objectives: Objectives) -> None:
        super().__init__(rungs, objectives)
        self._earlier: dict[int, list[Values | None]] = {}  # by rung; None diverged

    def _judge(self, contender: Contender, reached: int, metric: float) -> Decision:
        contender.rung = reached
        earlier = self._earlier.setdefault(reached, [])
        if not math.isfinite(metric):
            earlier.append(None)
            return self._stop(contender, self._not_finite(metric))
        if reached == self._last:
            return self._complete(contender)
        own, others, eta = self._values[contender.trial], len(earlier), self.rungs.reduction_factor
        *rest, place = places([*(one for one in earlier if one is not None), own])
        earlier.append(own)
        ahead = sum(other < place for other in rest)
        where = f"rank {ahead + 1} of {others + 1} at epoch {contender.epoch}"
        if ahead * eta <= max(0, others - 1):
            return self._advance(contender, where)
        return self._stop(contender, f"{where}, behind the best {part(eta)} of {others} before it")


class FrontPromotion(_SeveralMetrics, PromotionScheduler):
    """Let a trial go on once it is among the best ``n // eta`` of the ``n`` results of its rung."""

    def __init__(self, rungs: Rungs, objectives: Objectives) -> None:
        super().__init__(rungs, objectives)
        self._here: dict[int, dict[int, Values | None]] = {}  # by rung and age; None diverged

    def _record(self, contender: Contender, rung: _Rung) -> None:
        here = self._here.setdefault(contender.rung, {})
        here[contender.age] = self._values[contender.trial] if math.isfinite(contender.cost) else None
        costs = _costs({age: values for age, values in here.items() if values is not None})
        if contender.age in costs:
            contender.cost = costs[contender.age]
        for paused in rung.trials.values():
            paused.cost = costs[paused.age]
        rung.results = SortedList((costs.get(age, math.inf), age) for age in here)
        rung.paused = SortedList(paused.key for paused in rung.trials.values())


class FrontSynchronous(_SeveralMetrics, SynchronousScheduler):
    """Let the best ``max(1, entrants // eta)`` of a whole rung go on, stop the others."""

    def __init__(self, rungs: Rungs, objectives: Objectives, num_samples: int | None = None) -> None:
        super().__init__(rungs, objectives, num_samples)

    def _rank(self, present: Iterable[Contender]) -> list[Contender]:
        here = {one.age: one for one in present}
        finite = {age: self._values[c.trial] for age, c in here.items() if math.isfinite(c.cost)}
        for age, cost in _costs(finite).items():
            here[age].cost = cost
        return super()._rank(here.values())


def _costs(found: Mapping[int, Values]) -> dict[int, float]:
    """Return the rank of each by age: level ones in the order of their age."""
    ages = sorted(found)
    ranked = sorted(zip(places([found[age] for age in ages]), ages, strict=True))
    return {age: float(rank) for rank, (_, age) in enumerate(ranked)}
