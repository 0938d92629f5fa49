"""How the gradients of the replicas become the gradient of a step.

Each way adds weighted gradients and weighted running buffers, such as those of batch normalisation, and
leaves the sums on every rank: in ``parameter.grad`` and in given tensors. A flag is sent along, so that all
ranks leave at the same step without another collective operation.

`ExactTree` adds along a binary tree over the replicas. The tree is the same at any world size that is a
power of two, so the bits of the sum are too. It sends ``log2(world size)`` gradients, and nothing while the
backward pass runs. `OverlappedSum` does what DistributedDataParallel does, without its wrapper: it
all-reduces buckets while the last backward pass runs. Its rounding depends on the world size.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Protocol, TypeAlias

import torch
from torch import Tensor
from torch.distributed import Work

from parsl_rasda.errors import TrainingError
from parsl_rasda.runtime.engine.group import Group

BUCKET_BYTES = 25 * 2**20  # as in DistributedDataParallel
Leaf: TypeAlias = list[Tensor | None]  # a gradient for each parameter, then the running buffers


class Reduction(Protocol):
    """Adds up one step. Call `begin`, `part` and `add` for each micro-batch, then `finish` once.

    Attributes:
        scale: Factor on the loss of each micro-batch; adding the gradients divides by it again.
        shows_parts: Whether it ever has the gradients of a part of a step.
    """

    scale: float
    shows_parts: bool

    def begin(self, *, last: bool) -> None:
        """Begin a micro-batch; ``last`` tells whether it is this rank's last of the step."""
        ...

    def part(self, samples: int, *, last: bool) -> int:
        """Return of how many samples of the step the gradients are now the sum, or 0 if they show no part.

        Args:
            samples: Of the micro-batch whose backward pass is done.
            last: As in `begin`.
        """
        ...

    def add(self, values: Sequence[Tensor], weight: float) -> None:
        """Add the micro-batch after its backward pass, and ``weight * values`` of the running buffers."""
        ...

    def finish(self, means: Sequence[Tensor], *, halt: bool) -> bool:
        """Leave the sums on every rank, those of the weighted values in ``means``.

        Returns:
            Whether any rank has raised its flag (see `Flag`).
        """
        ...


class ExactTree:
    """The same binary tree over the replicas at any world size.

    Within a rank, a binary counter adds subtrees of equal size as they complete. Between ranks, a butterfly
    adds them, because ``a + b`` and ``b + a`` are the same bits. A missing leaf leaves its sibling unchanged.

    Args:
        parameters: The parameters that have gradients.
        carried: Number of replicas on this rank, a power of two.
    """

    scale = 1.0
    shows_parts = True

    def __init__(self, group: Group, parameters: Sequence[Tensor], carried: int) -> None:
        self._group, self._parameters, self._carried = group, parameters, carried
        self._subtrees: list[tuple[int, Leaf | None]] = []  # (leaves, their sum)
        self._flag = Flag(group)

    def begin(self, *, last: bool) -> None:
        """Drop the gradients, so that the micro-batch gets new ones."""
        for parameter in self._parameters:
            parameter.grad = None

    def part(self, samples: int, *, last: bool) -> int:
        """Return the samples of the micro-batch: its gradients are by themselves."""
        return samples

    def add(self, values: Sequence[Tensor], weight: float) -> None:
        """Take the gradients as one leaf."""
        grads = [parameter.grad for parameter in self._parameters]
        self._push([*grads, *(value * weight for value in values)])

    def finish(self, means: Sequence[Tensor], *, halt: bool) -> bool:
        """Complete the tree."""
        while not self._subtrees or self._subtrees[0][0] < self._carried:
            self._push(None)  # replicas without samples
        total = self._subtrees.pop()[1] or [None] * (len(self._parameters) + len(means))
        if self._group.size == 1:
            self._deliver(total, means)
            return halt
        return self._exchange(total, means, halt=halt)

    def _push(self, leaf: Leaf | None) -> None:
        count = 1
        while self._subtrees and self._subtrees[-1][0] == count:
            leaf, count = _added(self._subtrees.pop()[1], leaf), count * 2
        self._subtrees.append((count, leaf))

    def _exchange(self, total: Leaf, means: Sequence[Tensor], *, halt: bool) -> bool:
        like = [*self._parameters, *means]
        # Adding minus zero changes nothing, not even the sign of a zero.
        full = [
            torch.full_like(t, -0.0) if part is None else part for part, t in zip(total, like, strict=True)
        ]
        counts = torch.tensor(
            [float(part is not None) for part in total] + [float(halt)], device=like[0].device
        )
        distance = 1
        while distance < self._group.size:
            flat = flattened([*full, counts])
            other = torch.empty_like(flat)
            self._group.swap(flat, other, self._group.rank ^ distance)
            unflatten(flat + other, [*full, counts])  # rounds to the type of each, as within a rank
            distance *= 2
        used = counts[:-1].tolist()
        self._deliver([part if count else None for part, count in zip(full, used, strict=True)], means)
        return self._flag.raised(counts[-1:])

    def _deliver(self, total: Leaf, means: Sequence[Tensor]) -> None:
        count = len(self._parameters)
        for parameter, grad in zip(self._parameters, total[:count], strict=True):
            parameter.grad = grad
        for mean, value in zip(means, total[count:], strict=True):
            if value is not None:
                mean.copy_(value)


class OverlappedSum:
    """Buckets of gradients, added over all ranks while the last backward pass runs."""

    scale = 1.0
    shows_parts = True

    def __init__(self, group: Group, parameters: Sequence[Tensor]) -> None:
        self._group, self._parameters = group, parameters
        self._sums: list[Tensor] = []  # of the values; empty before the first micro-batch
        self._flag = Flag(group)
        self._buckets = _buckets(parameters)
        self._bucket_of = {p: index for index, bucket in enumerate(self._buckets) for p in bucket}
        self._ready = [0] * len(self._buckets)
        self._running: list[tuple[list[Tensor], Tensor, Work | None]] = []
        self._armed = False
        self._fresh = True
        self._samples = 0  # whose gradients have been accumulated
        for parameter in parameters if group.size > 1 else ():
            if not parameter.requires_grad:
                continue  # it may be unfrozen later, and is sent at the end
            parameter.register_post_accumulate_grad_hook(self._arrived)  # type: ignore[no-untyped-call] # torch

    def begin(self, *, last: bool) -> None:
        """Let the gradients of the step's micro-batches accumulate in place."""
        if self._fresh:
            self._fresh = False
            self._sums, self._samples = [], 0
            for parameter in self._parameters:
                parameter.grad = None
        self._armed = last

    def part(self, samples: int, *, last: bool) -> int:
        """Return the samples of this rank, or those of its first micro-batch if there are no other ranks."""
        self._samples += samples
        if self._group.size > 1:
            return self._samples if last else 0
        return samples if self._samples == samples and not last else 0

    def add(self, values: Sequence[Tensor], weight: float) -> None:
        """Add the values as they are after this micro-batch."""
        self._sums = added(self._sums, values, weight)

    def finish(self, means: Sequence[Tensor], *, halt: bool) -> bool:
        """Send the remaining buckets, wait, and distribute the sums."""
        if self._fresh:
            self.begin(last=True)  # this rank has no samples in this step
        self._fresh, self._armed = True, False
        for mean, total in zip_longest(means, self._sums):
            mean.zero_() if total is None else mean.copy_(total)
        return self._exchange(means, halt=halt) if self._group.size > 1 else halt

    def _arrived(self, parameter: Tensor) -> None:
        if not self._armed or parameter.grad is None or parameter.grad.layout is not torch.strided:
            return  # what is sparse is refused after the backward pass
        index = self._bucket_of[parameter]
        self._ready[index] += 1
        if self._ready[index] > len(self._buckets[index]):
            raise TrainingError(
                "A gradient arrived twice in one backward pass.",
                "Use activation checkpointing with use_reentrant=False, or `training.reduce: exact`.",
            )
        while self._next_is_whole():  # the same order on every rank
            self._send()

    def _next_is_whole(self) -> bool:
        index = len(self._running)
        return index < len(self._buckets) and self._ready[index] == len(self._buckets[index])

    def _send(self) -> None:
        bucket = self._buckets[len(self._running)]
        flat = flattened([torch.zeros_like(p) if p.grad is None else p.grad for p in bucket])
        self._running.append((bucket, flat, self._group.start_sum(flat)))

    def _exchange(self, means: Sequence[Tensor], *, halt: bool) -> bool:
        flags = [float(p.grad is not None) for p in self._parameters]
        like = self._parameters[0]
        counts = torch.tensor([*flags, float(halt)], dtype=like.dtype, device=like.device)
        while len(self._running) < len(self._buckets):
            self._send()
        tail = flattened([*means, counts])
        self._group.finish(self._group.start_sum(tail))
        unflatten(tail, [*means, counts])
        is_used = dict(zip(self._parameters, counts[:-1].tolist(), strict=True))
        for bucket, flat, work in self._running:
            self._group.finish(work)
            grads = [torch.empty_like(p) for p in bucket]
            unflatten(flat, grads)
            for parameter, grad in zip(bucket, grads, strict=True):
                parameter.grad = grad if is_used[parameter] else None
        self._running, self._ready = [], [0] * len(self._buckets)
        return self._flag.raised(counts[-1:])


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


def _added(left: Leaf | None, right: Leaf | None) -> Leaf | None:
    if left is None or right is None:
        return right if left is None else left
    pairs = [(a, b) for a, b in zip(left, right, strict=True) if a is not None and b is not None]
    if pairs:
        torch._foreach_add_([a for a, _ in pairs], [b for _, b in pairs])
    return [b if a is None else a for a, b in zip(left, right, strict=True)]


def added(sums: list[Tensor], values: Sequence[Tensor], weight: float) -> list[Tensor]:
    """Return the sums with the weighted values added, in place unless there are no sums yet."""
    if not sums:
        return [value * weight for value in values]
    return [total.add_(value, alpha=weight) for total, value in zip(sums, values, strict=True)]


def flattened(tensors: Sequence[Tensor]) -> Tensor:
    """Return all tensors in one vector, of the widest type among them."""
    dtype = tensors[0].dtype
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return torch.cat([tensor.reshape(-1).to(dtype) for tensor in tensors])


def unflatten(flat: Tensor, into: Sequence[Tensor]) -> None:
    """Copy a vector back into tensors, whatever their strides and types."""
    begin = 0
    for tensor in into:
        tensor.copy_(flat[begin : begin + tensor.numel()].view(tensor.shape))
        begin += tensor.numel()


def _buckets(parameters: Sequence[Tensor]) -> list[list[Tensor]]:
    """Return the parameters from the last to the first, about the order in which gradients arrive."""
    buckets: list[list[Tensor]] = [[]]
    filled = 0
    for parameter in reversed(parameters):
        if filled >= BUCKET_BYTES:
            buckets.append([])
            filled = 0
        buckets[-1].append(parameter)
        filled += parameter.numel() * parameter.element_size()
    return buckets
