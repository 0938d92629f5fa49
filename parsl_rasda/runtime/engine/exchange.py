"""Adding a vector over all ranks along one binary tree: recursive halving, then doubling.

At distance 1, 2, 4, .. a rank sends half of its range to a partner, which sends the other half; each adds
what it receives to the half that it keeps. In the end each has its part of the sum, and the same partners
swap these in the opposite order. Each element is added along the tree whose leaves are the ranks in their
order, so where the ranges are cut changes no bit. A rank sends ``2 (W - 1) / W`` of the vector, half of it to
the partner at distance 1: as ranks are in the order of nodes, nearly all of it stays on the node.

Source:
    Rabenseifner 2004, Optimization of collective reduction operations (ICCS), with the distances reversed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from parsl_rasda.runtime.engine.group import Group


class _Level(NamedTuple):
    peer: int
    sent: Tensor
    kept: Tensor
    received: Tensor  # room for the partner's values of what is kept
    is_upper: bool  # the partner has the left operand


class Exchange:
    """The sum of one vector, in place.

    Args:
        group: The ranks, a power of two.
        flat: The vector, the same size on every rank, contiguous.
        scratch: Room for half of it, rounded up.
        tag: Tells apart the exchanges that run at the same time.
    """

    def __init__(self, group: Group, flat: Tensor, scratch: Tensor, tag: int) -> None:
        self._group, self._tag = group, tag
        self._levels: list[_Level] = []
        self._turn = 0
        self._wait: Callable[[], None] = lambda: None
        begin, end, distance = 0, flat.numel(), 1
        while distance < group.size:
            middle = (begin + end) // 2
            is_upper = bool(group.rank & distance)
            lower, upper = flat[begin:middle], flat[middle:end]
            sent, kept = (lower, upper) if is_upper else (upper, lower)
            room = scratch[: kept.numel()]
            self._levels.append(_Level(group.rank ^ distance, sent, kept, room, is_upper))
            begin, end = (middle, end) if is_upper else (begin, middle)
            distance *= 2

    def start(self) -> None:
        """Begin the first swap."""
        self._turn = 0
        self._swap()

    def advance(self) -> bool:
        """Wait for the present swap and begin the next one; return whether there is one."""
        self._wait()
        if self._turn < len(self._levels):
            level = self._levels[self._turn]
            own, other = level.kept, level.received
            left, right = (other, own) if level.is_upper else (own, other)
            torch.add(left, right, out=own)
        self._turn += 1
        if self._turn == 2 * len(self._levels):
            return False
        self._swap()
        return True

    def _swap(self) -> None:
        back = self._turn - len(self._levels)
        if back < 0:
            level = self._levels[self._turn]
            mine, theirs = level.sent, level.received
        else:
            level = self._levels[-1 - back]
            mine, theirs = level.kept, level.sent
        self._wait = self._group.start_swap(mine, theirs, level.peer, self._tag)


class Exchanges:
    """The exchanges of a step, beside the backward pass.

    Each rank starts them in the same order. Each start first takes those that are under way half of the way
    on: then two are, of which one sends while the other adds, and no rank waits for one that a partner does
    only later.
    """

    AT_ONCE = 2

    def __init__(self, group: Group) -> None:
        self._group = group
        self._levels = group.size.bit_length() - 1
        self._under_way: list[Exchange] = []

    def start(self, exchange: Exchange) -> None:
        """Start an exchange; its scratch must be that of none of the two before it."""

        def started() -> None:
            exchange.start()
            self._under_way.append(exchange)
            self._advance(self._levels)

        self._group.beside.start(started)

    def finish(self) -> None:
        """Wait until all are done."""
        self._group.beside.start(lambda: self._advance(2 * self._levels))
        self._group.beside.wait()

    def _advance(self, turns: int) -> None:
        for _ in range(turns):
            self._under_way = [exchange for exchange in self._under_way if exchange.advance()]
