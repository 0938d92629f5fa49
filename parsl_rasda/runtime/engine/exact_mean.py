"""The mean over the values of all ranks, the same bits at any world size."""

from __future__ import annotations

import math
from typing import Any

from parsl_rasda.errors import TrainingError
from parsl_rasda.runtime.engine.group import Group

SUM_TERMS = 64  # non-overlapping doubles that represent any sum of doubles; at most 40 are needed


def mean_over(group: Group, values: Any) -> float:
    """Return the mean over the values of all ranks. A collective operation.

    Args:
        group: The ranks.
        values: Those of this rank: a tensor, an array, or an iterable of these or of numbers.

    Raises:
        TrainingError: If it is a single number, or if no rank has a value.
    """
    numbers = _numbers(values)
    group.meet("trial.mean")
    terms = _exact_terms(numbers)
    size, rank = group.size, group.rank
    padded = [0.0] * (SUM_TERMS * size)
    padded[rank * SUM_TERMS : rank * SUM_TERMS + len(terms)] = terms
    *all_terms, count = group.sum([*padded, float(len(numbers))])
    if not count:
        raise TrainingError("trial.mean was given no values.", "Evaluate at least one sample.")
    return rounded_sum(all_terms) / count


def _numbers(values: Any) -> list[float]:
    if hasattr(values, "tolist") and hasattr(values, "reshape"):
        if not values.shape:
            raise TrainingError(
                "trial.mean was given one number, the mean of this rank alone.",
                "Give it the loss of every sample: reduction='none'.",
            )
        flat = values.reshape(-1)
        return [float(v) for v in (flat.double() if hasattr(flat, "double") else flat).tolist()]
    if isinstance(values, float | int):
        raise TrainingError(
            "trial.mean was given one number, the mean of this rank alone.",
            "Give it the loss of every sample: reduction='none'.",
        )
    numbers: list[float] = []
    for value in values:
        numbers += (
            _numbers(value)
            if getattr(value, "shape", ())
            else [float(value.detach() if hasattr(value, "detach") else value)]
        )
    return numbers


def _exact_terms(numbers: list[float]) -> list[float]:
    """Return a few doubles with the same exact sum as the numbers.

    Source:
        Shewchuk 1997, Adaptive precision floating-point arithmetic; `math.fsum` uses it too.
    """
    terms: list[float] = []
    while True:
        remainder = rounded_sum([*numbers, *(-term for term in terms)])
        if not remainder or not math.isfinite(remainder):
            return [*terms, remainder] if remainder else terms
        terms.append(remainder)


def rounded_sum(numbers: list[float]) -> float:
    """Return the exact sum, rounded once; infinite or NaN if a number is."""
    try:
        return math.fsum(numbers)
    except (ValueError, OverflowError):  # infinities of both signs, or beyond the largest double
        return sum(numbers)
