"""Whether early rungs tell the truth: how far the ranking of trials at an epoch agrees with a later one.

Only trials with results at both epochs can be compared. They are those that were good enough to go on, and
among these agreement is lower than it would be among all.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import groupby, pairwise
from typing import Any, NamedTuple

from sortedcontainers import SortedList

LEAST = 5  # trials: the interval has no width for fewer
_LITTLE = 0.5  # three of four pairs in the same order
_TWO_SIDED_95 = 1.96


class Agreement(NamedTuple):
    """Kendall's tau-b of the results at two epochs, with its 95 % interval.

    Attributes:
        epochs: The earlier and the later one.
        trials: Those with a finite result at both.
    """

    epochs: tuple[int, int]
    trials: int
    tau: float
    low: float
    high: float


def tau_b(pairs: Collection[tuple[float, float]]) -> float | None:
    """Return Kendall's tau-b in O(n log n); None where all are equal in one of the two.

    Source: Kendall 1945, doi 10.1093/biomet/33.3.239.
    """
    seen: SortedList = SortedList()
    balance = 0
    for _, tied in groupby(sorted(pairs), key=lambda pair: pair[0]):
        seconds = [second for _, second in tied]
        for second in seconds:
            balance += seen.bisect_left(second) - (len(seen) - seen.bisect_right(second))
        seen.update(seconds)
    untied = [
        _pairs(len(pairs)) - sum(map(_pairs, Counter(side).values())) for side in zip(*pairs, strict=True)
    ]
    return balance / math.sqrt(math.prod(untied)) if all(untied) and untied else None


def _pairs(n: int) -> int:
    return n * (n - 1) // 2


def agreement_of(histories: Iterable[Mapping[int, float]], earlier: int, later: int) -> Agreement | None:
    """Return how far two epochs agree; None if fewer than `LEAST` trials came to both, or all are equal.

    Args:
        histories: Metric by epoch of each trial.
        earlier: One epoch.
        later: The other.

    Source:
        The interval: Fisher's transform with the variance 0.437 / (n - 4) of Fieller, Hartley and Pearson
        1957, doi 10.1093/biomet/44.3-4.470. Perfect agreement is taken as one pair short of it.
    """
    pairs = [(h[earlier], h[later]) for h in histories if earlier in h and later in h]
    pairs = [pair for pair in pairs if all(map(math.isfinite, pair))]
    n = len(pairs)
    tau = tau_b(pairs) if n >= LEAST else None
    if tau is None:
        return None
    most = 1 - 1 / _pairs(n)
    z, half = math.atanh(min(most, max(-most, tau))), _TWO_SIDED_95 * math.sqrt(0.437 / (n - 4))
    return Agreement((earlier, later), n, tau, min(tau, math.tanh(z - half)), max(tau, math.tanh(z + half)))


def rank_agreement(histories: Sequence[Mapping[int, float]], milestones: Sequence[int]) -> dict[str, Any]:
    """Return the agreement of neighbouring rungs, and a sentence if the first one says little about the last.

    Args:
        histories: Metric by epoch of each trial.
        milestones: Epochs of the rungs, ascending.
    """
    neighbours = (agreement_of(histories, low, high) for low, high in pairwise(milestones))
    return {
        "rungs": [_document(found) for found in neighbours if found is not None],
        "sentence": _sentence(histories, milestones),
    }


def _document(found: Agreement) -> dict[str, Any]:
    return {
        "epochs": list(found.epochs),
        "trials": found.trials,
        "tau": round(found.tau, 3),
        "interval": [round(found.low, 3), round(found.high, 3)],
    }


def _sentence(histories: Sequence[Mapping[int, float]], milestones: Sequence[int]) -> str:
    """Return that the first rung says little about the highest that can be compared, and which says more."""
    for last in reversed(milestones[1:]):
        below = [agreement_of(histories, epoch, last) for epoch in milestones if epoch < last]
        if below[0] is None:
            continue
        if below[0].high >= _LITTLE:
            return ""
        found = f"epoch {milestones[0]} says little about epoch {last} (tau {below[0].tau:.2f})"
        better = next((b.epochs[0] for b in below if b is not None and b.tau >= _LITTLE), None)
        return f"{found}: grace_period {better}" if better else f"{found}, and no rung below says more"
    return ""
