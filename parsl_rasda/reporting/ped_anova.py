"""PED-ANOVA: how unlike the values of good trials are to those of all trials, for one hyperparameter.

The same numbers as Optuna's, whose evaluator takes seconds to import where scikit-learn is installed: more
than all else that a command does after its search.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate

from parsl_rasda.search.space import Choice, Float, Int
from parsl_rasda.study.parameters import hashable
from parsl_rasda.types import JSON

_LEVELS = 50  # at most: the range of a number is cut into as many
_PRIOR = 1.0  # trials that the prior, under which all values are as likely, counts for
_LEAST_SIGMA = 0.5 / 1.64  # levels: nine tenths of a kernel lie within its own
_NO_ZERO = 1e-12


def explained(
    values: Sequence[JSON], losses: Sequence[float], parameter: Float | Int | Choice, good: float
) -> float:
    """Return the variance of being good that a hyperparameter explains by itself.

    Args:
        values: Of the hyperparameter, at least two different ones, a trial each.
        losses: Of the trials, the smaller the better.
        parameter: Where values are from.
        good: Which share of the trials is good.

    Source:
        Watanabe et al. 2023 (arXiv:2304.10255), with the kernels, the grid and the prior of Optuna 5.
    """
    worst = sorted(losses)[math.ceil(good * len(losses)) - 1]
    levels, count = _levels(values, parameter)
    top = [level for level, loss in zip(levels, losses, strict=True) if loss <= worst]
    density = _density_of_choices if isinstance(parameter, Choice) else _density_of_numbers
    of_top, of_all = density(Counter(top), count), density(Counter(levels), count)
    divergence = sum(a * (t / a - 1) ** 2 for t, a in zip(of_top, of_all, strict=True))
    return (len(top) / len(levels)) ** 2 * divergence


def _levels(values: Sequence[JSON], parameter: Float | Int | Choice) -> tuple[list[int], int]:
    """Return on which level of a parameter each value is, and how many levels it has."""
    if isinstance(parameter, Choice):
        index = {hashable(value): i for i, value in enumerate(parameter.values)}
        return [index[hashable(value)] for value in values], len(parameter.values)
    scale = math.log if parameter.log else float
    last = parameter.high if parameter.count is None else parameter.level(parameter.count - 1)
    count = _LEVELS
    if isinstance(parameter, Int) and parameter.log:
        count = min(count, math.ceil(math.log2(last - parameter.low + 1)) + 1)
    elif parameter.count is not None:
        count = min(count, parameter.count)
    low, high = scale(parameter.low), scale(last)
    if low == high:  # values of one level, written as 0 and 0.0
        return [0] * len(values), 1
    width = (high - low) / (count - 1)
    numbers = (math.ceil((scale(float(str(value))) - low) / width - 0.5) for value in values)
    return [min(max(number, 0), count - 1) for number in numbers], count


def _density_of_choices(seen: Mapping[int, int], count: int) -> list[float]:
    """Return how likely each choice is, one kernel for each that was seen, and one for the prior."""
    share = _PRIOR / (len(seen) + 1)
    spread = sum(seen.values()) * share / (1 + count * share) + _PRIOR / count
    total = sum(seen.values()) + _PRIOR
    return [
        (spread + seen.get(i, 0) / (1 + count * share)) / total + _NO_ZERO for i in range(count)
    ]  # a kernel is 1 where it was seen, and a share everywhere


def _density_of_numbers(seen: Mapping[int, int], count: int) -> list[float]:
    """Return how likely each level is, by normal kernels as wide as Scott's rule says, and the prior's."""
    levels = sorted(seen)
    weights = [seen[level] for level in levels]
    sigma = max(_scotts_sigma(levels, weights), _LEAST_SIGMA)
    kernels = [(float(w), float(level), sigma) for w, level in zip(weights, levels, strict=True)]
    kernels.append((_PRIOR, (count - 1) / 2, float(count)))
    found = [_NO_ZERO] * count
    for weight, mean, width in kernels:
        below = [math.erf((edge - 0.5 - mean) / width / math.sqrt(2)) for edge in range(count + 1)]
        part = weight / (sum(weights) + _PRIOR) / (below[-1] - below[0])
        for level in range(count):
            found[level] += part * (below[level + 1] - below[level])
    return found


def _scotts_sigma(levels: Sequence[int], weights: Sequence[int]) -> float:
    total, until = sum(weights), list(accumulate(weights))
    mean = sum(w * level for w, level in zip(weights, levels, strict=True)) / total
    squares = sum(w * (level - mean) ** 2 for w, level in zip(weights, levels, strict=True))
    first = levels[bisect_left(until, total // 4)]
    third = levels[min(len(levels) - 1, bisect_right(until, total * 3 // 4))]
    spread = min((third - first) / 1.34, math.sqrt(squares / max(1, total - 1)))
    return 1.059 * spread / math.pow(total, 0.2)
