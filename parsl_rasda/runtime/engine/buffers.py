"""The buffers that forward passes change in a model: running statistics, counters, estimates.

Each micro-batch starts with the buffers as they were before the step. After the step they hold the mean
over the replicas, weighted by samples (for integers: the mean growth, rounded). Their values are then a
function of the replicas, whichever ranks carry them. A buffer that no forward pass changes keeps its bits.
Buffers that are not in checkpoints are constants or caches, and are ignored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from parsl_rasda.errors import TrainingError
from parsl_rasda.runtime.engine.group import Group


class _ModuleBuffer:
    """A buffer of a module, which may replace its tensor by another."""

    def __init__(self, name: str, module: nn.Module, key: str, tensor: Tensor) -> None:
        self.name, self._module, self._key, self.tensor = name, module, key, tensor
        self.is_counter = not (tensor.is_floating_point() or tensor.is_complex())
        self.before = tensor  # its value before the step: a copy while it is watched
        self.has_changed = False
        self._version = 0

    @property
    def now(self) -> Tensor:
        tensor = self._module._buffers[self._key]
        return self.tensor if tensor is None else tensor

    def mark(self) -> None:
        self._version = self.tensor._version

    def put(self, value: Tensor) -> None:
        self.tensor.copy_(value)
        self._module._buffers[self._key] = self.tensor
        self.mark()

    def was_touched(self) -> bool:
        return self.now is not self.tensor or self.tensor._version != self._version

    def differs(self) -> bool:
        """Compare values too: some kernels, such as batch normalisation, do not count versions."""
        return self.was_touched() or not torch.equal(self.now, self.before)

    def value(self) -> Tensor:
        """Return the value that is averaged."""
        if self.is_counter:
            return (self.now.long() - self.before.long()).float()  # a difference has few digits
        return _as_real(self.now.detach()).clone()

    def alloc_mean(self) -> Tensor:
        """Return an uninitialised tensor for the mean of such values."""
        return torch.empty_like(_as_real(self.tensor), dtype=torch.float if self.is_counter else None)

    def take(self, mean: Tensor) -> None:
        if self.tensor.is_complex():
            self.put(torch.view_as_complex(mean))
        elif not self.is_counter:
            self.put(mean)
        elif self.tensor.dtype is torch.bool:
            self.put(self.before + mean.round())
        else:
            self.put(self.before + mean.round().to(self.tensor.dtype))


class RunningBuffers:
    """The buffers of a model during the steps of an epoch.

    Call `begin_epoch`; then in each step `begin_step`, `begin` and `values` for each micro-batch, and
    `finish`. The first step of an epoch watches all buffers to find those that change.
    """

    def __init__(self, model: nn.Module, group: Group) -> None:
        self._group, self._model = group, model
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Watch all buffers again, because the user may have unfrozen some."""
        self._watched, self._still, self._is_first = (
            list(_persistent(self._model)),
            list[_ModuleBuffer](),
            True,
        )

    @property
    def do_change(self) -> bool:
        """Whether there are buffers that forward passes change, as far as this epoch has shown."""
        return bool(self._watched)

    @torch.no_grad()
    def begin_step(self) -> None:
        """Remember the values before the step."""
        for buffer in self._watched:
            buffer.before = buffer.now.clone()
        for buffer in (*self._watched, *self._still):
            buffer.mark()

    @torch.no_grad()
    def begin(self) -> None:
        """Start a micro-batch with the values before the step."""
        for buffer in self._watched:
            buffer.put(buffer.before)

    @torch.no_grad()
    def values(self) -> list[Tensor]:
        """Return what this micro-batch adds to the mean, without its weight.

        Raises:
            TrainingError: If a buffer changes now, but did not in the first step of the epoch: the changes
                by the other replicas are lost.
        """
        for buffer in self._still:
            if buffer.was_touched():
                raise TrainingError(
                    f"The buffer {buffer.name!r} did not change in the first step of the epoch, but now.",
                    "Change it in every step, or register it with persistent=False.",
                )
        if self._is_first:
            for buffer in self._watched:
                buffer.has_changed = buffer.has_changed or buffer.differs()
        return [buffer.value() for buffer in self._watched]

    def alloc_means(self) -> list[Tensor]:
        """Return uninitialised tensors for the means that `finish` takes."""
        return [buffer.alloc_mean() for buffer in self._watched]

    @torch.no_grad()
    def finish(self, means: Sequence[Tensor]) -> None:
        """Give each buffer its mean. A collective operation in the first step of an epoch."""
        if self._is_first and self._watched:
            flags = self._group.agree([int(buffer.has_changed) for buffer in self._watched])
        else:
            flags = (1,) * len(self._watched)
        for buffer, mean, has_changed in zip(self._watched, means, flags, strict=True):
            if has_changed:
                buffer.take(mean)
            buffer.before, buffer.has_changed = buffer.tensor, False
        self._still += [b for b, has_changed in zip(self._watched, flags, strict=True) if not has_changed]
        self._watched = [b for b, has_changed in zip(self._watched, flags, strict=True) if has_changed]
        self._is_first = False


def _persistent(model: nn.Module) -> Iterator[_ModuleBuffer]:
    """Yield each buffer that is in checkpoints, once."""
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for key, tensor in module._buffers.items():
            is_kept = tensor is not None and key not in module._non_persistent_buffers_set
            if tensor is None or not is_kept or id(tensor) in seen:
                continue
            seen.add(id(tensor))
            yield _ModuleBuffer(f"{prefix}.{key}".lstrip("."), module, key, tensor)


def _as_real(tensor: Tensor) -> Tensor:
    """Return complex numbers as pairs of real ones, which can be added in a fixed order."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor
