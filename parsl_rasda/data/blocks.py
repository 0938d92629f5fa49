"""How samples that are read in blocks become batches: in shuffled order, read ahead, each block once.

Subclasses, such as `Shards`, define the blocks and their places.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from parsl_rasda.data.index import ArrayType
from parsl_rasda.data.layout import Layout
from parsl_rasda.data.order import BlockOrder
from parsl_rasda.read_ahead import read_ahead

Array: TypeAlias = NDArray[Any]  # of any element type
Block: TypeAlias = list[Array]  # neighbouring samples: an array for each part of a sample
Places: TypeAlias = tuple[list[int], list[int]]  # of samples: their blocks, and their places in them
Batch: TypeAlias = Any  # a tuple of a tensor (or list of byte strings) for each array, or a single one

WINDOW: Final = 8  # blocks
BATCHES_AHEAD: Final = 4
LOADED_AHEAD: Final = 2  # batches whose blocks are in memory
READS_ANNOUNCED: Final = 8
BLOCKS_REMEMBERED: Final = 4096  # as announced


class BlockReader(ABC):
    """Samples in blocks of neighbours. It may be pickled, forked or shared by threads if the subclass may."""

    def __init__(self, layout: Layout, kinds: Sequence[ArrayType], *, window: int = WINDOW) -> None:
        """Describe the samples. Nothing is read yet.

        Args:
            layout: The layout of samples and blocks.
            kinds: Shape and element type of each part of a sample.
            window: Number of blocks that are mixed when the order is shuffled.
        """
        self.layout, self.kinds, self._window = layout, tuple(kinds), window

    @abstractmethod
    def read_block(self, number: int) -> Block:
        """Return the samples of a block: an array for each kind."""

    @abstractmethod
    def announce_block(self, number: int) -> None:
        """Tell the system that a block will be read soon. A hint."""

    @abstractmethod
    def batch_of(self, parts: Block) -> Batch:
        """Turn samples, an array for each kind, into a batch to train on."""

    def __len__(self) -> int:
        return self.layout.samples

    def order(self, seed: int, epoch: int) -> BlockOrder:
        """Return the order of an epoch: every sample once, as a function of seed and epoch."""
        return BlockOrder(self.layout, seed=seed, epoch=epoch, window=self._window)

    def stream(self, reads: Iterable[Sequence[int]], *, streams: int = 1) -> Generator[Batch, None, None]:
        """Yield a batch for each list of samples, read ahead by a thread that ends with the generator.

        Args:
            reads: Lists of samples that are neighbours in an `order` (or in numerical order).
            streams: The number of places in the order from which they come in turn; blocks are kept for each.

        Raises:
            DataError: If a file cannot be read.
        """
        load = lru_cache(streams * (self._window + 2))(self.read_block)
        places = self._announced(map(self._locate, reads))
        # Blocks are loaded in the given order, so one that has left the window is not needed again soon.
        # One thread reads and another copies: a format that is slow to read does not wait for copies.
        loaded = read_ahead((([load(b) for b in blocks], inside) for blocks, inside in places), LOADED_AHEAD)
        return read_ahead((self._batch(*each) for each in loaded), BATCHES_AHEAD)

    def read(self, indices: Sequence[int]) -> Batch:
        """Return any samples as one batch. Each of their blocks is read once.

        Raises:
            DataError: If a file cannot be read.
        """
        blocks, inside = self._locate(indices)
        parts = self._empty(len(blocks))
        load = lru_cache(1)(self.read_block)
        for at in sorted(range(len(blocks)), key=blocks.__getitem__):
            _copy(load(blocks[at]), inside[at], parts, at)
        return self.batch_of(parts)

    def blocks(self) -> Iterator[Batch]:
        """Yield all samples in numerical order, one block at a time."""
        extents = self.layout.extents(np.arange(self.layout.blocks))
        pairs = zip(*(extent.tolist() for extent in extents), strict=True)
        return self.stream(range(first, first + size) for first, size in pairs)

    def _locate(self, indices: Sequence[int]) -> Places:
        samples = np.asarray(indices, dtype=np.int64)
        if len(samples) and not 0 <= samples.min() <= samples.max() < len(self):
            raise IndexError(f"samples {samples.min()} to {samples.max()} of {len(self)}")
        blocks, inside = self.layout.locate(samples)
        return blocks.tolist(), inside.tolist()

    def _batch(self, blocks: list[Block], inside: list[int]) -> Batch:
        parts = self._empty(len(blocks))
        for at, (block, row) in enumerate(zip(blocks, inside, strict=True)):
            _copy(block, row, parts, at)
        return self.batch_of(parts)

    def _empty(self, samples: int) -> Block:
        native = [np.dtype(kind.dtype).newbyteorder("=") for kind in self.kinds]  # torch has no other
        return [np.empty((samples, *k.shape), d) for k, d in zip(self.kinds, native, strict=True)]

    def _announced(self, reads: Iterable[Places]) -> Iterator[Places]:
        """Yield the reads, and announce the blocks of each some reads earlier."""
        announced: dict[int, None] = {}
        waiting: deque[Places] = deque()
        for blocks, inside in reads:
            for block in blocks:
                if block not in announced:
                    self.announce_block(block)
                    announced[block] = None
            while len(announced) > BLOCKS_REMEMBERED:
                del announced[next(iter(announced))]
            waiting.append((blocks, inside))
            if len(waiting) > READS_ANNOUNCED:
                yield waiting.popleft()
        yield from waiting


def _copy(block: Block, row: int, batch: Block, at: int) -> None:
    for values, found in zip(batch, block, strict=True):
        values[at] = found[row]
