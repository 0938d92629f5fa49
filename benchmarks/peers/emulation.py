"""What every system is given: the same trials, curves and epoch times; and the shortest time that they take.

Standard library only, because it runs in the peers' environment too.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Case:
    """An emulated study: synchronous halving with ``eta = scale = 2``, epochs that scale perfectly.

    Attributes:
        trials: How many.
        epoch_s: An epoch on one slot [s].
        slots: How many there are.
        max_t: Epochs of the trial that is never stopped; a power of two.
        seed: Of the curves.
    """

    trials: int
    epoch_s: float
    slots: int = 16
    max_t: int = 16
    seed: int = 1

    @property
    def name(self) -> str:
        return f"{self.trials} x {self.slots}, {self.epoch_s:g} s"

    @property
    def milestones(self) -> list[int]:
        return [2**k for k in range(int(math.log2(self.max_t)) + 1)]

    def survivors(self) -> list[list[int]]:
        """Return who trains to each milestone: all at first, then the better half each time."""
        alive = [list(range(self.trials))]
        for until in self.milestones[:-1]:
            ranked = sorted(alive[-1], key=lambda trial: -curve(self.seed, trial, until))
            alive.append(ranked[: max(1, len(ranked) // 2)])
        return alive

    @property
    def epochs(self) -> int:
        """How many epochs are trained by whoever decides so."""
        stretches = zip([0, *self.milestones], self.milestones, self.survivors(), strict=False)
        return sum((until - before) * len(alive) for before, until, alive in stretches)

    def bound_s(self, *, grows: bool = True) -> float:
        """Return the time without any overhead: rung after rung, each in waves of as many as fit [s].

        At perfect efficiency no schedule keeps the slots busier if trials fill whole waves.
        """
        total, before = 0.0, 0
        for rung, (alive, until) in enumerate(zip(self.survivors(), self.milestones, strict=True)):
            width = min(self.slots, 2**rung) if grows else 1
            waves = math.ceil(len(alive) / (self.slots // width))
            total += waves * (until - before) * self.epoch_s / width
            before = until
        return total

    def busy_bound(self) -> float:
        """Return the share of slot time inside epochs at that bound."""
        return self.epochs * self.epoch_s / (self.slots * self.bound_s())


CASES = {case.name: case for case in (Case(16, 4.0), Case(64, 0.4))}


def curve(seed: int, trial: int, epoch: int) -> float:
    """Return the accuracy of a trial after so many epochs."""
    draw = random.Random(f"{seed}-{trial}")
    level, pace = draw.uniform(0.3, 0.95), draw.uniform(1.0, 6.0)
    noise = random.Random(f"{seed}-{trial}-{epoch}").gauss(0, 0.01)
    return level * (1 - math.exp(-epoch / pace)) + noise
