"""How samples that are read in blocks become batches: in a shuffled order, read ahead, each block once.

What a block is and where it lies is said by a subclass, as `Shards`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from parsl_rasda.data.ahead import read_ahead
from parsl_rasda.data.index import ArrayType
from parsl_rasda.data.layout import Layout
from parsl_rasda.data.order import BlockOrder

Array: TypeAlias = NDArray[Any]  # of any element type
Block: TypeAlias = list[Array]  # neighbouring samples, one array for each part of them
Places: TypeAlias = tuple[list[int], list[int]]  # of samples: their blocks, and where in there
Batch: TypeAlias = Any  # a tensor (or list of byte strings) for each array: a tuple, or one by itself

WINDOW: Final = 8  # blocks
BATCHES_AHEAD: Final = 4
LOADED_AHEAD: Final = 2  # batches whose blocks have been read
READS_ANNOUNCED: Final = 8
BLOCKS_TOLD: Final = 4096


class BlockReader(ABC):
    """Samples in blocks of neighbours. It may be pickled, forked and shared by threads if a subclass may."""

    def __init__(self, layout: Layout, kinds: Sequence[ArrayType], *, window: int = WINDOW) -> None:
        """Describe the samples; nothing is read yet.

        Args:
            layout: Of samples and blocks.
            kinds: Shape and element type of each part of a sample.
            window: Blocks that are mixed when the order is shuffled.
        """
        self.layout, self.kinds, self._window = layout, tuple(kinds), window

    @abstractmethod
    def read_block(self, number: int) -> Block:
        """Return the samples of a block, one array for each kind."""

    @abstractmethod
    def announce_block(self, number: int) -> None:
        """Let the system begin to fetch a block that will be read soon; a hint."""

    @abstractmethod
    def batch_of(self, parts: Block) -> Batch:
        """Return samples, one array for each kind, as what is trained on."""

    def __len__(self) -> int:
        return self.layout.samples

    def order(self, seed: int, epoch: int) -> BlockOrder:
        """Return the order of an epoch: a function of seed and epoch, every sample once."""
        return BlockOrder(self.layout, seed=seed, epoch=epoch, window=self._window)

    def stream(self, reads: Iterable[Sequence[int]], *, streams: int = 1) -> Generator[Batch, None, None]:
        """Yield a batch for each list of samples, read ahead by a thread that ends with the generator.

        Args:
            reads: Lists of samples, neighbours in an `order` (or in numerical order).
            streams: In how many places of the order they are, in turn: blocks are kept for each.

        Raises:
            DataError: If a file cannot be read.
        """
        load = lru_cache(streams * (self._window + 2))(self.read_block)
        places = self._announced(map(self._locate, reads))
        # In the order's own order, in which a block is not needed again soon after it was not needed.
        # One thread reads, another copies: a format that is slow to read does not wait for copies.
        loaded = read_ahead((([load(b) for b in blocks], inside) for blocks, inside in places), LOADED_AHEAD)
        return read_ahead((self._batch(*each) for each in loaded), BATCHES_AHEAD)

    def read(self, indices: Sequence[int]) -> Batch:
        """Return any samples as one batch, each block of them read once.

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
        """Yield all samples in numerical order, a block at a time."""
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
        native = [np.dtype(kind.dtype).newbyteorder("=") for kind in self.kinds]  # torch knows no other
        return [np.empty((samples, *k.shape), d) for k, d in zip(self.kinds, native, strict=True)]

    def _announced(self, reads: Iterable[Places]) -> Iterator[Places]:
        """Yield the reads, each some reads after the system was told of its blocks."""
        told: dict[int, None] = {}
        waiting: deque[Places] = deque()
        for blocks, inside in reads:
            for block in blocks:
                if block not in told:
                    self.announce_block(block)
                    told[block] = None
            while len(told) > BLOCKS_TOLD:
                del told[next(iter(told))]
            waiting.append((blocks, inside))
            if len(waiting) > READS_ANNOUNCED:
                yield waiting.popleft()
        yield from waiting


def _copy(block: Block, row: int, batch: Block, at: int) -> None:
    for values, found in zip(batch, block, strict=True):
        values[at] = found[row]
