"""How noisy the gradients of an epoch are, from a few norms that training brings along.

A gradient of ``n`` samples has the expected squared norm ``|G|^2 + tr(S) / n``. A step shows it twice: in its
parts, which are the gradients of single replicas under `reduce: exact`, and as a whole. So two means give
``|G|^2`` and ``tr(S)``, both without bias; their ratio is the noise scale. A single part that is the whole
step shows nothing.

Norms stay on the device until the epoch ends. Those of a replica are added by themselves, in the order of
steps, so that the result is the same bits at any world size if the parts are.

Source:
    McCandlish et al. 2018 (arXiv 1812.06162), appendix A.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from parsl_rasda.runtime.engine.exact_mean import rounded_sum
from parsl_rasda.runtime.engine.flat import squared_norm
from parsl_rasda.runtime.engine.group import Group
from parsl_rasda.types import GradientNoise

_COUNTS = 5  # parts, their samples, steps, their samples, steps that count


class NoiseMeter:
    """Adds up squared norms over the steps of an epoch."""

    def __init__(self, group: Group, replicas: int, mine: range, so_far: Sequence[float]) -> None:
        """Begin an epoch, or go on in its middle.

        Args:
            group: The ranks.
            replicas: That share a step.
            mine: Those of this rank.
            so_far: The `sums` of the steps that are done, if any are.
        """
        self._group, self._replicas = group, replicas
        sums = list(so_far) or [0.0] * (replicas + 1 + _COUNTS)
        whole, *counts, finite = sums[replicas:]
        # Each square has one owner, and each count: then their sum over the ranks is exact.
        squares = [value if replica in mine else 0.0 for replica, value in enumerate(sums[:replicas])]
        self._squares = torch.tensor([*squares, whole, finite], dtype=torch.float64, device=group.device)
        self._step = torch.zeros_like(self._squares)
        self._counts = counts if group.rank == 0 else [0.0] * len(counts)
        self._parts = self._samples = 0

    @torch.no_grad()
    def add_part(self, square: Tensor | float, replica: int, samples: int, of: int) -> None:
        """Take the gradient of a part of a step.

        Args:
            square: Squared norm of its sum over the part, weighted by the part's share.
            replica: Of this rank; the first one if there are several in the part.
            samples: Of the part.
            of: Samples of the step.
        """
        self._parts, self._samples = self._parts + 1, self._samples + samples
        self._step[replica] += square * (of * of / samples)

    @torch.no_grad()
    def add_step(self, parameters: Sequence[Tensor], samples: int, scale: Tensor | float) -> None:
        """Take the gradients as those of the step; it does not count if they are not finite.

        Args:
            parameters: Those that have gradients, on every rank the same.
            samples: Of the step.
            scale: What the losses of the step were multiplied by.
        """
        if self._parts or self._group.size > 1:  # else no part of it was seen
            is_main = float(self._group.rank == 0)
            added = (self._parts, self._samples, is_main, is_main * samples)
            self._counts = [a + b for a, b in zip(self._counts, added, strict=True)]
            self._step[-2] = squared_norm([p.grad for p in parameters if p.grad is not None]) * samples
            self._step /= scale * scale
            self._step[-1] = 1.0
            self._squares += torch.where(self._step[-2].isfinite(), self._step, 0.0)
        self._step.zero_()
        self._parts = self._samples = 0

    def sums(self) -> list[float]:
        """Return what there is so far, of all ranks. A collective operation."""
        *squares, whole, finite = self._squares.tolist()
        *squares, parts, samples, steps, of = self._group.sum([*squares, *self._counts])
        return [*squares, whole, parts, samples, steps, of, finite]


def noise_in(sums: Sequence[float]) -> GradientNoise | None:
    """Return the noise of the steps that a `NoiseMeter` has seen, or None if they show nothing."""
    *squares, whole, parts, samples, steps, of, finite = sums
    if not finite or parts * of == steps * samples:
        return None  # each step is its only part
    share = finite / steps  # of the steps counts
    small, large = rounded_sum(squares) / (samples * share), whole / (of * share)
    per_part, per_step = parts / samples, steps / of  # means of 1 / samples
    variance = (small - large) / (per_part - per_step)
    found = GradientNoise(small - variance * per_part, variance)
    return found if math.isfinite(found.gradient) and math.isfinite(found.variance) else None
