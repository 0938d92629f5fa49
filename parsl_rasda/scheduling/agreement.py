"""How well the results at a rung rank trials: Kendall's tau with the highest rung that two trials share."""

from __future__ import annotations

import math
from itertools import combinations

from parsl_rasda.types import TrialId

_RECENT = 32  # trials that are compared: as many pairs whatever the size of a search
_PRIOR = 3  # pairs that agree, before any are known


class RankAgreement:
    """Remembers the results of trials at their rungs."""

    def __init__(self) -> None:
        self._results: dict[TrialId, list[float]] = {}  # at rungs 0, 1, ... without a gap
        self._recent: dict[TrialId, list[float]] = {}  # of those who have come to two, the latest last

    def note(self, trial: TrialId, rung: int, metric: float) -> None:
        """Note a result; one that is not finite, or of a rung that it was at before, says nothing."""
        results = self._results.setdefault(trial, [])
        if rung != len(results) or not math.isfinite(metric):
            return
        results.append(metric)
        if rung == 1:
            self._recent[trial] = results
            if len(self._recent) > _RECENT:
                del self._recent[next(iter(self._recent))]

    @property
    def trials(self) -> int:
        """How many trials can be compared."""
        return len(self._recent)

    def forget(self, trial: TrialId) -> None:
        """Forget the results of a trial, which starts again."""
        self._results.pop(trial, None)
        self._recent.pop(trial, None)

    def taus(self, rungs: int) -> list[float]:
        """Return Kendall's tau of each of the first ``rungs`` rungs; three pairs that agree are presumed.

        A pair counts at each rung below the highest one that both trials have come to: 1 if they stand there
        as they do at that one, -1 if they stand the other way round, 0 if they are equal.
        """
        sums, pairs = [_PRIOR] * rungs, [_PRIOR] * rungs
        for one, other in combinations(self._recent.values(), 2):
            last = min(len(one), len(other)) - 1
            above = _order(one[last], other[last])
            for rung in range(min(last, rungs)):
                sums[rung] += above * _order(one[rung], other[rung])
                pairs[rung] += 1
        return [agreed / known for agreed, known in zip(sums, pairs, strict=True)]


def _order(one: float, other: float) -> int:
    return (one > other) - (one < other)
