"""The order in which samples are read: shuffled, such that few blocks are needed at any moment.

Blocks come in random order. Each is shuffled and cut into as many pieces as the *window* has blocks;
*slot* ``t`` of the epoch holds piece 0 of the block that comes ``t``-th, piece 1 of the one before it,
and so on, shuffled again::

    slot       0    1    2    3    4     (window 3)
    block A   A0   A1   A2
    block B        B0   B1   B2
    block C             C0   C1   C2

A slot mixes ``window`` blocks; it needs one new block and is the last one to need another. So reading is as
even as without shuffling. Any part of the order is computed from (seed, epoch), without the parts before it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np
from numpy.random import Generator, default_rng  # here: NumPy imports it only at its first use

from parsl_rasda.data.layout import Layout, Numbers

BLOCKS, WITHIN_BLOCK, WITHIN_SLOT = range(3)  # what is shuffled: each has its own random numbers
BLOCKS_KEPT: Final = 4096  # shuffled blocks, about 100 bytes each
SLOTS_KEPT: Final = 512


class BlockOrder:
    """The samples of an epoch, each exactly once. A slice of it is a list of samples.

    It takes 16 bytes for each block, whatever the size of the samples.
    """

    def __init__(self, layout: Layout, *, seed: int, epoch: int, window: int) -> None:
        """Shuffle the blocks. Samples are shuffled when they are asked for.

        Args:
            layout: The layout of the samples.
            seed: The seed of the training; any integer.
            epoch: Epochs done.
            window: Number of blocks that are mixed; 1 keeps the samples of a block together.
        """
        self._layout = layout
        self._seed, self._epoch = seed % 2**64, epoch
        self._blocks = self._random(BLOCKS, 0).permutation(layout.blocks)
        self._window = max(1, min(window, layout.blocks))
        _, sizes = layout.extents(self._blocks)
        slots = np.zeros(layout.blocks + self._window - 1, dtype=np.int64)
        for piece in range(self._window):
            slots[piece : piece + layout.blocks] += self._cut(sizes, piece + 1) - self._cut(sizes, piece)
        self._ends = np.cumsum(slots)
        self._shuffled = lru_cache(BLOCKS_KEPT)(self._shuffle)
        self._slot = lru_cache(SLOTS_KEPT)(self._fill)

    def __len__(self) -> int:
        return self._layout.samples

    def __getitem__(self, part: slice) -> list[int]:
        begin, end, _ = part.indices(len(self))
        if begin >= end:
            return []
        first = int(np.searchsorted(self._ends, begin, side="right"))
        last = int(np.searchsorted(self._ends, end, side="left"))
        samples = np.concatenate([self._slot(slot) for slot in range(first, last + 1)])
        skipped = int(self._ends[last]) - len(samples)
        numbers: list[int] = samples[begin - skipped : end - skipped].tolist()
        return numbers

    def _fill(self, slot: int) -> Numbers:
        """Return the samples of a slot: a piece of each block in the window that ends there."""
        places = range(max(0, slot - self._window + 1), min(slot + 1, len(self._blocks)))
        pieces = []
        for place in places:
            samples, piece = self._shuffled(place), slot - place
            size = np.int64(len(samples))
            pieces.append(samples[self._cut(size, piece) : self._cut(size, piece + 1)])
        return self._random(WITHIN_SLOT, slot).permutation(np.concatenate(pieces))

    def _shuffle(self, place: int) -> Numbers:
        first, size = self._layout.extents(self._blocks[place : place + 1])
        samples: Numbers = first[0] + self._random(WITHIN_BLOCK, place).permutation(size[0])
        return samples

    def _cut(self, sizes: Numbers | np.int64, piece: int) -> Numbers | np.int64:
        return sizes * piece // self._window

    def _random(self, purpose: int, index: int) -> Generator:
        return default_rng((self._seed, self._epoch, purpose, index))
