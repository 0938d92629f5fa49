"""The factor on the learning rate: how it follows the replicas, and its warm-up.

Pure functions of the schedule of replicas and of the position in epochs. Clamped: after a warm-up
the factor stays where it is, whatever the width of the job or the number of its restarts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

from parsl_rasda.errors import InvalidSettingError

Scaling: TypeAlias = Callable[[int], float]

SGD_FAMILY = {"SGD", "ASGD"}
RULES: dict[str, Scaling] = {"linear": float, "sqrt": math.sqrt, "none": lambda _replicas: 1.0}


def scaling_rule(name: str, optimizer: type) -> Scaling:
    """Return how the rate grows with replicas.

    ``auto`` is linear for `torch.optim.SGD`, `ASGD` and what derives from them, and the square root
    for everything else: those divide by a running size of the gradient, which noise dominates.

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
    schedule: Sequence[tuple[int, int]],
    scaling: Scaling,
    *,
    initial: float = 0.0,
    rescale: float = 0.0,
) -> float:
    """Return what the configured learning rate is multiplied by.

    Args:
        position: Where training stands [epochs].
        schedule: ``(epoch, replicas)``: from that many epochs on, that many replicas.
        scaling: How the full rate follows the replicas.
        initial: Warm-up from 0 at the start [epochs].
        rescale: Warm-up after a change of replicas, from the rate before to the one after [epochs].
    """
    (begin, replicas), *changes = schedule
    ramp = _Ramp(begin, 0.0, scaling(replicas), initial)
    for epoch, after in changes:
        if epoch >= position:
            break
        if after != replicas:
            ramp, replicas = _Ramp(epoch, ramp.at(epoch), scaling(after), rescale), after
    return ramp.at(position)


class _Ramp:
    """A straight line from one value to another, constant after its end."""

    def __init__(self, begin: float, before: float, after: float, length: float) -> None:
        self.begin, self.before, self.after, self.length = begin, before, after, length

    def at(self, position: float) -> float:
        done = (position - self.begin) / self.length if self.length > 0 else 1.0
        return self.after if done >= 1.0 else self.before + (self.after - self.before) * max(done, 0.0)
