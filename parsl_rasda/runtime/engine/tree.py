"""The part of the tree of additions that is within a rank."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from parsl_rasda.runtime.engine.flat import as_real

Leaf: TypeAlias = list[Tensor | None]


class Subtrees:
    """A binary counter: adds subtrees of equal size as they complete, the left one in place."""

    def __init__(self) -> None:
        self._subtrees: list[tuple[int, Leaf | None]] = []  # (leaves, their sum)

    def __bool__(self) -> bool:
        return bool(self._subtrees)

    def push(self, leaf: Leaf | None) -> None:
        """Take the next leaf; None if it is missing, or for a tensor that it does not have."""
        count = 1
        while self._subtrees and self._subtrees[-1][0] == count:
            leaf, count = _added(self._subtrees.pop()[1], leaf), count * 2
        self._subtrees.append((count, leaf))

    def complete(self, leaves: int) -> Leaf | None:
        """Return the sum of all leaves, a power of two; those that are missing change nothing."""
        while not self._subtrees or self._subtrees[0][0] < leaves:
            self.push(None)
        return self._subtrees.pop()[1]


def _added(left: Leaf | None, right: Leaf | None) -> Leaf | None:
    if left is None or right is None:
        return right if left is None else left
    both = zip(left, right, strict=True)
    pairs = [(as_real(a), as_real(b)) for a, b in both if a is not None and b is not None]
    if pairs:
        torch._foreach_add_([a for a, _ in pairs], [b for _, b in pairs])
    return [b if a is None else a for a, b in zip(left, right, strict=True)]
