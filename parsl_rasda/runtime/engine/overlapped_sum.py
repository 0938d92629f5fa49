"""The sum that torch.distributed makes of buckets of gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed import Work

from parsl_rasda.runtime.engine.arrivals import Arrivals
from parsl_rasda.runtime.engine.flat import Flat, buckets, copy_all, squared_norm
from parsl_rasda.runtime.engine.group import Group
from parsl_rasda.runtime.engine.reduction import NOTHING, Part, added, present_grads
from parsl_rasda.runtime.engine.tail import Flag, Tail, Usage


class OverlappedSum:
    """Buckets of gradients, which the library adds over all ranks."""

    scale = 1.0
    shows_parts = True

    def __init__(self, group: Group, parameters: Sequence[Tensor], *, come_twice: bool = False) -> None:
        self._group, self._parameters = group, parameters
        self._sums: list[Tensor] = []  # of the values; empty before the first micro-batch
        self._flag, self._usage = Flag(group), Usage(group.device)
        places = buckets(parameters) if group.size > 1 else []
        self._buckets = [[parameters[i] for i in bucket] for bucket in places]
        self._flats = [Flat(bucket) for bucket in self._buckets]
        self._arrivals = Arrivals(parameters, places, self._send, come_twice=come_twice)
        self._running: list[Work | None] = []
        self._is_fresh, self._is_last = True, False
        self._samples = 0  # whose gradients have been accumulated

    @property
    def come_twice(self) -> bool:
        """Whether gradients have come twice in one backward pass (`Arrivals`)."""
        return self._arrivals.come_twice

    def begin(self) -> None:
        """Let the gradients of the step's micro-batches accumulate in place."""
        if self._is_fresh:
            self._is_fresh = False
            self._sums, self._samples = [], 0
            for parameter in self._parameters:
                parameter.grad = None

    def listen(self, *, last: bool) -> None:
        """Send gradients from now on, as they come, if they are the last ones."""
        self._is_last = last
        if last and self._group.size > 1:
            self._arrivals.listen()

    def add(self, values: Sequence[Tensor], weight: float, samples: int) -> Part:
        """Add the values; the part is this rank, or its first micro-batch if there are no other ranks."""
        if self._is_last:
            self._arrivals.end()
        self._sums = added(self._sums, values, weight)
        self._samples += samples
        is_alone = self._group.size == 1
        is_shown = self._samples == samples and not self._is_last if is_alone else self._is_last
        return Part(self._samples, squared_norm(present_grads(self._parameters))) if is_shown else NOTHING

    def finish(self, means: Sequence[Tensor], *, halt: bool) -> bool:
        """Wait, and distribute the sums."""
        if self._is_fresh:  # this rank has no samples in this step
            self.begin()
            for number in range(len(self._buckets)):
                self._send(number)
        self._is_fresh = True
        if self._sums:
            copy_all(means, self._sums)
        elif means:
            torch._foreach_zero_(list(means))
        return self._exchange(means, halt=halt) if self._group.size > 1 else halt

    def _send(self, number: int) -> None:
        bucket, flat = self._buckets[number], self._flats[number]
        pairs = [(view, p.grad) for view, p in zip(flat.views, bucket, strict=True)]
        if absent := [view for view, grad in pairs if grad is None]:
            torch._foreach_zero_(absent)
        if present := [(view, grad) for view, grad in pairs if grad is not None]:
            torch._foreach_copy_([view for view, _ in present], [grad for _, grad in present])
        self._running.append(self._group.start_sum(flat.vector))

    def _exchange(self, means: Sequence[Tensor], *, halt: bool) -> bool:
        present = [p.grad is not None for bucket in self._buckets for p in bucket]
        tail = Tail(means, means, self._usage.flags(present, halt=halt))
        self._running += [self._group.start_sum(vector) for vector in tail.vectors]
        running, self._running = self._running, []
        for work in running:
            self._group.finish(work)
        tail.deliver()
        is_used = iter(Usage.read(tail.flags, present))
        for bucket, flat in zip(self._buckets, self._flats, strict=True):
            for parameter, view in zip(bucket, flat.views, strict=True):
                parameter.grad = view if next(is_used) else None
        return self._flag.raised(tail.flags[-1:])
