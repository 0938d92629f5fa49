"""What ranks add at the end of a step besides gradients: running buffers, usage counts and the flag."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from parsl_rasda.runtime.engine.flat import by_type, copy_all
from parsl_rasda.runtime.engine.group import Group


class Tail:
    """Vectors that hold given tensors, those of one type in one.

    Args:
        values: Vectors.
        means: Where their sums go.
        flags: A vector; its sum is in `flags` after `deliver`.

    Attributes:
        vectors: To be added in place, over all ranks.
    """

    def __init__(self, values: Sequence[Tensor], means: Sequence[Tensor], flags: Tensor) -> None:
        parts = [flags, *values]
        self.flags = flags
        self._means, self._groups = means, by_type(parts)
        self.vectors = [torch.cat([parts[i] for i in group]) for group in self._groups]
        self._sizes = [[parts[i].numel() for i in group] for group in self._groups]

    def deliver(self) -> None:
        """Take the sums out of the vectors."""
        sums: dict[int, Tensor] = {}
        for group, vector, sizes in zip(self._groups, self.vectors, self._sizes, strict=True):
            sums.update(zip(group, torch.split(vector, sizes), strict=True))
        self.flags = sums.pop(0)
        copy_all(self._means, [sums[i] for i in sorted(sums)])


class Usage:
    """Which parameters have a gradient on any rank.

    A rank on which all have one need not ask, as in DistributedDataParallel. Only a rank that misses one
    waits for the counts: on a GPU the next step is then queued only when this one is done.
    """

    def __init__(self, device: torch.device | None) -> None:
        self._device = device
        self._made: tuple[list[bool], Tensor] | None = None

    def flags(self, present: list[bool], *, halt: bool) -> Tensor:
        """Return what to add over all ranks; the last element is the flag to leave."""
        wanted = [*present, halt]
        if self._made is None or self._made[0] != wanted:
            is_pinned = self._device is not None and self._device.type != "cpu"
            host = torch.tensor(wanted, dtype=torch.float, pin_memory=is_pinned)
            self._made = wanted, host.to(self._device, non_blocking=True)
        return self._made[1]

    @staticmethod
    def read(sums: Tensor, present: list[bool]) -> list[bool]:
        """Return for each parameter whether any rank has a gradient."""
        return present if all(present) else [count > 0 for count in sums[:-1].tolist()]


class Flag:
    """Reads a flag from the device without stalling it.

    On a GPU it returns the flag of the previous step, on every rank alike: to read the newest one would drain
    the queue of kernels in each step.
    """

    def __init__(self, group: Group) -> None:
        self._device = group.device
        self._before: tuple[Tensor, torch.Event] | None = None

    def raised(self, flag: Tensor) -> bool:
        """Return whether the flag was raised: in this step, or on a GPU in the previous one."""
        if self._device is None or self._device.type == "cpu":
            return bool(flag.item())
        before = self._before
        copied = torch.Event(self._device)
        host = torch.empty(1, dtype=flag.dtype, pin_memory=True).copy_(flag, non_blocking=True)
        copied.record()
        self._before = host, copied
        if before is None:
            return False
        before[1].synchronize()
        return bool(before[0].item())
