"""How the gradients of the replicas become the gradient of a step.

Each way adds weighted gradients and weighted running buffers, such as those of batch normalisation, and
leaves the sums on every rank: in ``parameter.grad`` and in given tensors. A flag is sent along, so that all
ranks leave at the same step without another collective operation. Gradients go in buckets, each of which is
under way as soon as the last backward pass has filled it.

`exact_tree.ExactTree` adds along a binary tree over the replicas. The tree is the same at any world size that
is a power of two, so the bits of the sum are too. `overlapped_sum.OverlappedSum` does what
DistributedDataParallel does, without its wrapper: the library adds, and its rounding depends on the world
size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Part(NamedTuple):
    """What a backward pass shows of a part of a step.

    Attributes:
        samples: Of the part; 0 if no part is shown.
        square: Squared norm of their gradient, weighted by its share of the step.
    """

    samples: int
    square: Tensor | float


NOTHING = Part(0, 0.0)


class Reduction(Protocol):
    """Adds up one step: `begin`, `listen` and `add` for each micro-batch, then `finish` once.

    Attributes:
        scale: Factor on the loss of each micro-batch; adding the gradients divides by it again.
        shows_parts: Whether it ever has the gradients of a part of a step.
    """

    scale: float
    shows_parts: bool

    @property
    def come_twice(self) -> bool:
        """Whether gradients have come twice in one backward pass, as far as it matters."""
        ...

    def begin(self) -> None:
        """Begin a micro-batch, before its forward pass."""
        ...

    def listen(self, *, last: bool) -> None:
        """Begin its backward pass; ``last`` tells whether it is this rank's last of the step."""
        ...

    def add(self, values: Sequence[Tensor], weight: float, samples: int) -> Part:
        """End its backward pass, and add ``weight * values`` of the running buffers.

        Args:
            values: Vectors.
            weight: The micro-batch's share of the step.
            samples: Of the micro-batch.
        """
        ...

    def finish(self, means: Sequence[Tensor], *, halt: bool) -> bool:
        """Leave the sums on every rank, those of the weighted values in ``means``.

        Returns:
            Whether any rank has raised its flag (see `tail.Flag`).
        """
        ...


def present_grads(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradients that there are."""
    return [p.grad for p in parameters if p.grad is not None]


def added(sums: list[Tensor], values: Sequence[Tensor], weight: float) -> list[Tensor]:
    """Return the sums with the weighted values added, in place unless there are no sums yet."""
    if not values:
        return sums
    weighted = list(torch._foreach_mul(list(values), weight))
    if not sums:
        return weighted
    torch._foreach_add_(sums, weighted)
    return sums
