"""Which replicas of a rank go through the model together, where that changes the result by rounding alone.

Replicas that share a batch may have few samples each, too few to keep a GPU busy. With `reduce: ddp`, whose
result depends on the ranks by rounding anyway, a rank trains several of its replicas in one pass, of no more
than `batch_size` samples. What a replica must compute by itself keeps them apart: batch statistics, running
buffers and random numbers.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from parsl_rasda.errors import TrainingError
from parsl_rasda.runtime.engine.datasets import Batch
from parsl_rasda.runtime.engine.replicas import MicroBatch


def passes(
    micro_batches: Sequence[MicroBatch], batches: Iterator[Batch], together: int
) -> Iterator[tuple[MicroBatch, Batch, bool]]:
    """Yield the passes of a rank in one step: what it computes, the samples, and whether it is the last.

    Args:
        micro_batches: Those of its replicas.
        batches: The samples of each, which are taken when they are needed.
        together: How many replicas may go through the model together.
    """
    last = len(micro_batches) - 1
    for first in range(0, len(micro_batches), together):
        parts = micro_batches[first : first + together]
        whole = joined([next(batches) for _ in parts])
        if len(whole) == 1:
            yield _merged(parts), whole[0], first + len(parts) > last
            continue
        for number, (part, batch) in enumerate(zip(parts, whole, strict=True), first):
            yield part, batch, number == last


def joined(batches: list[Batch]) -> list[Batch]:
    """Return the batches as one, or as they are if they are not tensors of equal shapes."""
    shapes = {_shape(batch) for batch in batches}
    return batches if len(batches) == 1 or len(shapes) > 1 or None in shapes else [_concatenated(batches)]


def _concatenated(batches: list[Batch]) -> Batch:
    match first := batches[0]:
        case Tensor():
            return torch.cat(batches)
        case dict():
            return {key: _concatenated([batch[key] for batch in batches]) for key in first}
        case _:
            parts = [_concatenated(list(part)) for part in zip(*batches, strict=True)]
            return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)


def _shape(batch: Batch) -> object:
    """Return all of a batch's shape but its samples, or None if it has anything but tensors."""
    match batch:
        case Tensor():
            return (batch.shape[1:], batch.dtype) if batch.dim() else None
        case dict():
            shapes = tuple((key, _shape(value)) for key, value in batch.items())
            return None if any(shape is None for _, shape in shapes) else shapes
        case tuple() | list():
            parts = tuple(_shape(value) for value in batch)
            return None if None in parts else parts
        case _:
            return None


def _merged(parts: Sequence[MicroBatch]) -> MicroBatch:
    if len(parts) == 1:
        return parts[0]
    size, weight = sum(p.size for p in parts), sum(p.weight for p in parts)
    return MicroBatch(parts[0].step, parts[0].replica, parts[0].begin, size, weight)


class Together:
    """How many replicas go through the model in one pass: one, where random numbers are drawn.

    The first step of each epoch shows whether they are.

    Attributes:
        now: As many as in the present step.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = None if device.type == "cpu" else torch.get_device_module(device)
        self._most = self.now = 1
        self._has_drawn = False
        self._before: tuple[object, ...] = ()

    def begin_epoch(self, most: int) -> None:
        """Watch anew; ``most``: as many as may go together, if nothing is seen that forbids it."""
        self._most, self._has_drawn = most, False

    def begin_step(self, *, must_be_alone: bool) -> None:
        """Decide about a step."""
        self.now = 1 if must_be_alone or self._has_drawn else self._most

    def begin(self) -> None:
        """Begin a pass, for which the generators have been seeded."""
        if self._most > 1:
            self._before = self._states()

    def end(self) -> None:
        """End a pass.

        Raises:
            TrainingError: If random numbers were drawn for several replicas at once.
        """
        if self._most == 1 or self._has_drawn or self._before == self._states():
            return
        self._has_drawn = True
        if self.now > 1:
            raise TrainingError(
                "Random numbers were drawn that were not drawn in the first step of the epoch.",
                "Draw them in every step, or use `training.reduce: exact`.",
            )

    def _states(self) -> tuple[object, ...]:
        numpy = sys.modules.get("numpy")
        _, keys, *rest = numpy.random.get_state() if numpy else ("", b"")
        on_device = self._device.get_rng_state().numpy().tobytes() if self._device else b""
        on_host = torch.default_generator.get_state().numpy().tobytes()
        return random.getstate(), bytes(keys), *rest, on_host, on_device
