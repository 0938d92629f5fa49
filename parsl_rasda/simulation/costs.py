"""What training costs in a rehearsal: seconds per epoch and restart, and the metrics of trials."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from parsl_rasda.placement.times import Assumed
from parsl_rasda.types import GradientNoise


@dataclass(frozen=True, slots=True)
class Costs:
    """A virtual training.

    Attributes:
        epoch_s: Time of one epoch of trial number ``i`` at a world size [s].
        metric: Metric of trial number ``i`` after an epoch; smaller is better.
        launch_s: First start of trial number ``i``, until its first epoch begins [s].
        restart_s: Start of a trial at another world size, or after a pause [s]; a mean, if measured.
        boundary_s: From one epoch to the next in the same processes [s].
        leave_s: From the instruction to leave until the slots are free [s].
        queue_s: Wait for a pilot [s].
        samples: Training samples of an epoch, if they are known.
        noise: Of the gradients of trial number ``i`` in an epoch, if it is known.
        epoch_of: Time of that epoch of trial number ``i`` at a world size, if it was measured [s]: the first
            takes longer than others, and who comes first to a rung may depend on it.
        restart_of: That start of trial number ``i`` as its attempt ``n``, if it was measured [s].
        leave_of: How long attempt ``n`` of trial number ``i`` takes to leave, and after how long that is
            handled, later events first; None if it was not measured [s].
        known_until: Epochs of trial number ``i`` whose metric was measured; what comes later is a guess.
    """

    epoch_s: Callable[[int, int], float]
    metric: Callable[[int, int], float]
    launch_s: Callable[[int], float] = lambda _: 0.0
    restart_s: float = 0.0
    boundary_s: float = 0.0
    leave_s: float = 0.0
    queue_s: float = 0.0
    samples: int | None = None
    noise: Callable[[int, int], GradientNoise | None] = lambda _trial, _epoch: None
    epoch_of: Callable[[int, int, int], float | None] = lambda _trial, _epoch, _world_size: None
    restart_of: Callable[[int, int], float | None] = lambda _trial, _attempt: None
    leave_of: Callable[[int, int], tuple[float, float] | None] = lambda _trial, _attempt: None
    known_until: Callable[[int], float] = lambda _: math.inf

    def seconds(self, trial: int, epoch: int, world_size: int) -> float:
        """Return how long an epoch of a trial takes at a world size [s]."""
        own = self.epoch_of(trial, epoch, world_size)
        return self.epoch_s(trial, world_size) if own is None else own

    def start_s(self, trial: int, attempt: int) -> float:
        """Return how long the start of an attempt takes [s]."""
        if attempt == 1:
            return self.launch_s(trial)
        own = self.restart_of(trial, attempt)
        return self.restart_s if own is None else own

    def end_s(self, trial: int, attempt: int) -> tuple[float, float]:
        """Return how long an attempt takes to leave its slots, and until that is handled [s]."""
        return self.leave_of(trial, attempt) or (self.leave_s, self.leave_s)


def assumed_costs(assumed: Assumed, *, seed: int, spread: float = 0.0) -> Costs:
    """Return costs drawn from assumed times: the same draw for every policy that is compared.

    Args:
        assumed: Epoch time on one slot [s], restart [s], efficiency of a doubling.
        seed: Seeds the spread of epoch times and the ranking of trials.
        spread: Relative standard deviation of epoch times between trials (log-normal).
    """

    @cache  # a generator of its own for each trial takes longer to seed than to decide what it does
    def pace(trial: int) -> float:
        return math.exp(random.Random(f"{seed}/pace/{trial}").gauss(0.0, spread)) if spread else 1.0  # noqa: S311

    @cache
    def quality(trial: int) -> float:
        return random.Random(f"{seed}/quality/{trial}").random()  # noqa: S311  not for secrets

    def metric(trial: int, epoch: int) -> float:
        """Return a metric that ranks trials the same way at every epoch: the work does not depend on luck."""
        return quality(trial) + 1.0 / epoch

    return Costs(
        epoch_s=lambda trial, world_size: assumed.epoch_s * pace(trial) / assumed.speedup(world_size),
        metric=metric,
        launch_s=lambda _: assumed.restart_s,
        restart_s=assumed.restart_s,
    )
