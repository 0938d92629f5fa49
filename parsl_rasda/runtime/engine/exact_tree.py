"""The same binary tree of additions over the replicas at any world size that is a power of two."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from parsl_rasda.runtime.engine.arrivals import Arrivals
from parsl_rasda.runtime.engine.exchange import Exchange, Exchanges
from parsl_rasda.runtime.engine.flat import Flat, aligned, as_real, buckets, copy_all, norms, sum_of_squares
from parsl_rasda.runtime.engine.group import Group
from parsl_rasda.runtime.engine.reduction import NOTHING, Part
from parsl_rasda.runtime.engine.tail import Flag, Tail, Usage
from parsl_rasda.runtime.engine.tree import Subtrees


class _Bucket:
    """Gradients of one type on their way.

    Args:
        places: Of its parameters among all.
        parameters: Those of the bucket.
        is_sent: Whether other ranks add to it.
    """

    def __init__(self, places: Sequence[int], parameters: Sequence[Tensor], *, is_sent: bool) -> None:
        self.places, self.parameters = places, parameters
        self.flat = Flat(parameters) if is_sent else None
        self.subtrees = Subtrees()
        self.exchange: Exchange | None = None
        self.total: list[Tensor | None] = []  # of this rank, then of all

    def push(self, leaf: list[Tensor | None]) -> None:
        """Take a leaf. The first subtree is in the vector, so that no copy of it remains."""
        is_first = not self.subtrees
        self.subtrees.push(self._moved(leaf) if is_first and self.flat else leaf)

    def complete(self, carried: int) -> None:
        """Leave this rank's sum in `total`, and in the vector."""
        self.total = self.subtrees.complete(carried) or [None] * len(self.parameters)
        if self.flat is not None:
            self.total = self._moved(self.total)
            for view, total in zip(self.flat.views, self.total, strict=True):
                if total is None:  # to add minus zero changes nothing, not even the sign of a zero
                    as_real(view).fill_(-0.0)

    def _moved(self, leaf: list[Tensor | None]) -> list[Tensor | None]:
        assert self.flat is not None  # noqa: S101 - only called with one
        pairs = list(zip(self.flat.views, leaf, strict=True))
        outside = [(view, t) for view, t in pairs if t is not None and t is not view]
        if outside:
            torch._foreach_copy_([view for view, _ in outside], [t for _, t in outside])
        return [None if t is None else view for view, t in pairs]


class ExactTree:
    """The same binary tree over the replicas at any world size.

    Within a rank, `Subtrees` adds; between ranks, `Exchange`. A missing leaf leaves its sibling unchanged.

    Args:
        parameters: The parameters that have gradients.
        carried: Number of replicas on this rank, a power of two. It may change between steps.
        come_twice: Whether gradients have come twice in one backward pass, before a restart.
    """

    scale = 1.0
    shows_parts = True

    def __init__(
        self, group: Group, parameters: Sequence[Tensor], carried: int, *, come_twice: bool = False
    ) -> None:
        self._group, self._parameters, self.carried = group, parameters, carried
        places = buckets(parameters)
        self._buckets = [_Bucket(b, [parameters[i] for i in b], is_sent=group.size > 1) for b in places]
        self._arrivals = Arrivals(parameters, places, self._take, come_twice=come_twice)
        self._values = Subtrees()
        self._norms: dict[int, Tensor] = {}
        self._is_last = False
        self._usage = Usage(group.device)
        self._flag = Flag(group)
        if group.size > 1:
            self._exchanges = Exchanges(group)
            self._plan_exchanges()

    def _plan_exchanges(self) -> None:
        """Give all buckets room for what they receive; no more are under way at once than have a room."""
        sizes = [b.flat.vector.nbytes for b in self._buckets if b.flat is not None]
        half = max(sizes, default=0) // 2 + 32
        device = self._group.device
        rooms = [torch.empty(half, dtype=torch.uint8, device=device) for _ in range(Exchanges.AT_ONCE)]
        for number, bucket in enumerate(self._buckets):
            if bucket.flat is None:
                continue
            vector, room = bucket.flat.vector, rooms[number % len(rooms)]
            whole = room[: room.nbytes // 16 * 16].view(vector.dtype)
            bucket.exchange = Exchange(self._group, vector, whole, number)

    @property
    def _is_alone(self) -> bool:
        return self._group.size == self.carried == 1

    @property
    def come_twice(self) -> bool:
        """Whether gradients have come twice in one backward pass (`Arrivals`)."""
        return self._arrivals.come_twice

    def begin(self) -> None:
        """Drop the gradients, so that the micro-batch gets new ones."""
        for parameter in self._parameters:
            parameter.grad = None

    def listen(self, *, last: bool) -> None:
        """Take gradients from now on, as they come."""
        self._is_last, self._norms = last, {}
        if not self._is_alone:
            self._arrivals.listen()

    def add(self, values: Sequence[Tensor], weight: float, samples: int) -> Part:
        """Take the gradients that have not been taken; each micro-batch is a part."""
        if values:
            self._values.push(list(torch._foreach_mul(list(values), weight)))
        if self._is_alone:
            return NOTHING
        self._arrivals.end()
        return Part(samples, sum_of_squares([self._norms[i] for i in sorted(self._norms)]))

    def finish(self, means: Sequence[Tensor], *, halt: bool) -> bool:
        """Complete the tree."""
        if not self._is_last:  # this rank has no samples in this step
            for bucket in self._buckets:
                self._send(bucket)
        self._is_last = False
        values = (self._values.complete(self.carried) if means else None) or [None] * len(means)
        if self._group.size > 1:
            return self._exchange(values, means, halt=halt)
        if means:
            copy_all(means, [value for value in values if value is not None])
        for bucket in self._buckets if not self._is_alone else ():
            for parameter, grad in zip(bucket.parameters, bucket.total, strict=True):
                parameter.grad = grad
            bucket.total = []
        return halt

    def _take(self, number: int) -> None:
        bucket = self._buckets[number]
        leaf = [None if p.grad is None else aligned(p.grad.resolve_conj()) for p in bucket.parameters]
        present = [(i, g) for i, g in zip(bucket.places, leaf, strict=True) if g is not None]
        self._norms.update(zip((i for i, _ in present), norms([g for _, g in present]), strict=True))
        for parameter in bucket.parameters:
            parameter.grad = None
        bucket.push(leaf)
        if self._is_last:
            self._send(bucket)

    def _send(self, bucket: _Bucket) -> None:
        bucket.complete(self.carried)
        if bucket.exchange is not None:
            self._exchanges.start(bucket.exchange)

    def _exchange(self, values: list[Tensor | None], means: Sequence[Tensor], *, halt: bool) -> bool:
        present = [total is not None for bucket in self._buckets for total in bucket.total]
        filled = [torch.full_like(m, -0.0) if v is None else v for v, m in zip(values, means, strict=True)]
        tail = Tail(filled, means, self._usage.flags(present, halt=halt))
        for number, vector in enumerate(tail.vectors, len(self._buckets)):
            room = torch.empty_like(vector[: -(-vector.numel() // 2)])
            self._exchanges.start(Exchange(self._group, vector, room, number))
        self._exchanges.finish()
        tail.deliver()
        is_used = iter(Usage.read(tail.flags, present))
        for bucket in self._buckets:
            assert bucket.flat is not None  # noqa: S101 - there are several ranks
            for parameter, view in zip(bucket.parameters, bucket.flat.views, strict=True):
                parameter.grad = view if next(is_used) else None
            bucket.total = []
        return self._flag.raised(tail.flags[-1:])
