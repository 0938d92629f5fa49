"""The factor on the learning rate: how it follows the batches of a step, and its warm-up.

Pure functions of the schedule of batches and the position in epochs. The warm-up is clamped: after it,
the factor is constant, whatever the world size and however often the job restarts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

from parsl_rasda.errors import InvalidSettingError
from parsl_rasda.types import ScheduleEntry

Scaling: TypeAlias = Callable[[int], float]

SGD_FAMILY = {"SGD", "ASGD"}
RULES: dict[str, Scaling] = {"linear": float, "sqrt": math.sqrt, "none": lambda _batches: 1.0}


def scaling_rule(name: str, optimizer: type) -> Scaling:
    """Return how the rate grows with the batches of a step.

    ``auto`` is linear for `torch.optim.SGD`, `ASGD` and classes derived from them. It is the square root for
    all others, which divide by a running norm of the gradient that is dominated by noise.

    Raises:
        InvalidSettingError: If there is no such rule.

    Source:
        Goyal et al. 2017 (arXiv:1706.02677) for SGD; Malladi et al. 2022 (arXiv:2205.10287) for Adam.
    """
    if name == "auto":
        name = "linear" if SGD_FAMILY & {base.__name__ for base in optimizer.__mro__} else "sqrt"
    if name not in RULES:
        raise InvalidSettingError("training.lr_scaling", name, f"auto, {', '.join(RULES)}")
    return RULES[name]


def rate_factor(
    position: float,
    schedule: Sequence[ScheduleEntry],
    scaling: Scaling,
    *,
    initial: float = 0.0,
    rescale: float = 0.0,
) -> float:
    """Return the factor on the configured learning rate.

    Args:
        position: The current position [epochs].
        schedule: From which epoch on how many batches make a step.
        scaling: How the full rate follows the batches.
        initial: Warm-up from 0 at the start [epochs].
        rescale: Warm-up after a change of batches, from the old rate to the new one [epochs].
    """
    (begin, *_, batches), *changes = schedule
    ramp = _Ramp(begin, 0.0, scaling(batches), initial)
    for epoch, *_, after in changes:
        if epoch >= position:
            break
        if after != batches:
            ramp, batches = _Ramp(epoch, ramp.at(epoch), scaling(after), rescale), after
    return ramp.at(position)


class _Ramp:
    """A straight line from one value to another, then constant."""

    def __init__(self, begin: float, before: float, after: float, length: float) -> None:
        self.begin, self.before, self.after, self.length = begin, before, after, length

    def at(self, position: float) -> float:
        done = (position - self.begin) / self.length if self.length > 0 else 1.0
        return self.after if done >= 1.0 else self.before + (self.after - self.before) * max(done, 0.0)
