"""A data set in shards: any number of terabytes, read in blocks, with memory for a few of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from parsl_rasda.data.ahead import read_ahead
from parsl_rasda.data.files import OPEN_FILES
from parsl_rasda.data.index import Index, Row, index_of, joined
from parsl_rasda.data.layout import Layout
from parsl_rasda.data.order import BlockOrder
from parsl_rasda.errors import DataError, InvalidSettingError

Array: TypeAlias = NDArray[Any]  # of any element type
Block: TypeAlias = list[Array]  # neighbouring samples, one array for each part of them
Places: TypeAlias = tuple[list[int], list[int]]  # of samples: their blocks, and where in there
Batch: TypeAlias = Any  # a tensor (or list of byte strings) for each array: a tuple, or one by itself

WINDOW: Final = 8  # blocks
BATCHES_AHEAD: Final = 4
LOADED_AHEAD: Final = 2  # batches whose blocks have been read
READS_ANNOUNCED: Final = 8
BLOCKS_TOLD: Final = 4096


def open_shards(
    path: str | Path | Sequence[str | Path],
    *,
    arrays: str | Sequence[str] | None = None,
    split: str | None = None,
    window: int = WINDOW,
) -> Shards:
    """Return a data set for ``trial.batches``, ``trial.shard``, or to be read directly.

    Args:
        path: What `ShardWriter` left (``shards.index``, or its directory), a shard, or a directory of
            shards that something else wrote; several are joined.
        arrays: The parts of a sample, in order, as in ``x, y``; all by default. A single name gives
            batches of one tensor instead of a tuple. Arrays in groups are named by their path. TFRecords
            have one, ``record``, which gives a list of byte strings in place of a tensor.
        split: Which one, where there are several.
        window: Blocks that are mixed when the order is shuffled: more mix better and take more memory.

    Raises:
        DataError: If a file is missing, damaged or foreign; it is named.
        InvalidSettingError: If there is no such split or array.
    """
    if window < 1:
        raise InvalidSettingError("window", window, "1 or more")
    paths = [path] if isinstance(path, str | Path) else path
    names = (arrays,) if isinstance(arrays, str) else arrays
    index = joined([index_of(Path(each), split, names) for each in paths])
    return Shards(index, window=window, single=isinstance(arrays, str))


class Shards:
    """The samples of one split.

    Nothing is open between reads but what `OPEN_FILES` keeps: it may be pickled, forked, shared by threads.
    """

    def __init__(self, index: Index, *, window: int = WINDOW, single: bool = False) -> None:
        """Describe the data set; nothing is read yet.

        Args:
            index: Of its samples.
            window: Blocks that are mixed.
            single: Whether a batch is one tensor rather than a tuple.
        """
        self._index, self._window, self._single = index, window, single
        self._rows = [row for row in index.rows if row.start < row.stop]
        self._layout = Layout([row.stop - row.start for row in self._rows], index.block)

    def __len__(self) -> int:
        return self._layout.samples

    def order(self, seed: int, epoch: int) -> BlockOrder:
        """Return the order of an epoch: a function of seed and epoch, every sample once."""
        return BlockOrder(self._layout, seed=seed, epoch=epoch, window=self._window)

    def stream(self, reads: Iterable[Sequence[int]], *, streams: int = 1) -> Generator[Batch, None, None]:
        """Yield a batch for each list of samples, read ahead by a thread that ends with the generator.

        Args:
            reads: Lists of samples, neighbours in an `order` (or in numerical order).
            streams: In how many places of the order they are, in turn: blocks are kept for each.

        Raises:
            DataError: If a file cannot be read.
        """
        load = lru_cache(streams * (self._window + 2))(self._read_block)
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
        batch = self._empty(len(blocks))
        load = lru_cache(1)(self._read_block)
        for at in sorted(range(len(blocks)), key=blocks.__getitem__):
            _copy(load(blocks[at]), inside[at], batch, at)
        return self._tensors(batch)

    def blocks(self) -> Iterator[Batch]:
        """Yield all samples in numerical order, a block at a time."""
        extents = zip(
            *(e.tolist() for e in self._layout.extents(np.arange(self._layout.blocks))), strict=True
        )
        return self.stream(range(first, first + size) for first, size in extents)

    def place_of(self, sample: int) -> tuple[str, int]:
        """Return the file that a sample is in, and its number in there, for those who tell what is wrong."""
        (block,), (inside,) = self._locate([sample])
        row, begin, _ = self._slice_of(block)
        return row.file, begin + inside

    def _locate(self, indices: Sequence[int]) -> Places:
        samples = np.asarray(indices, dtype=np.int64)
        if len(samples) and not 0 <= samples.min() <= samples.max() < len(self):
            raise IndexError(f"samples {samples.min()} to {samples.max()} of {len(self)}")
        blocks, inside = self._layout.locate(samples)
        return blocks.tolist(), inside.tolist()

    def _batch(self, blocks: list[Block], inside: list[int]) -> Batch:
        batch = self._empty(len(blocks))
        for at, (block, row) in enumerate(zip(blocks, inside, strict=True)):
            _copy(block, row, batch, at)
        return self._tensors(batch)

    def _empty(self, samples: int) -> Block:
        kinds = self._index.arrays.values()
        native = [np.dtype(kind.dtype).newbyteorder("=") for kind in kinds]  # torch knows no other
        return [np.empty((samples, *k.shape), d) for k, d in zip(kinds, native, strict=True)]

    def _tensors(self, batch: Block) -> Batch:
        import torch

        parts = tuple(v.tolist() if v.dtype == object else torch.from_numpy(v) for v in batch)
        return parts[0] if self._single else parts

    def _announced(self, reads: Iterable[Places]) -> Iterator[Places]:
        """Yield the reads, each some reads after the system was told of its blocks."""
        told: dict[int, None] = {}
        waiting: deque[Places] = deque()
        for blocks, inside in reads:
            for block in blocks:
                if block not in told:
                    self._announce(block)
                    told[block] = None
            while len(told) > BLOCKS_TOLD:
                del told[next(iter(told))]
            waiting.append((blocks, inside))
            if len(waiting) > READS_ANNOUNCED:
                yield waiting.popleft()
        yield from waiting

    def _announce(self, number: int) -> None:
        row, begin, end = self._slice_of(number)
        with OPEN_FILES.opened(row.file) as shard:
            for name in self._index.arrays:
                shard.announce(name, begin, end)

    def _slice_of(self, block: int) -> tuple[Row, int, int]:
        number, begin, end = self._layout.slice_of(block)
        row = self._rows[number]
        return row, row.start + begin, row.start + end

    def _read_block(self, number: int) -> Block:
        row, begin, end = self._slice_of(number)
        with OPEN_FILES.opened(row.file) as shard:
            block = [shard.read(name, begin, end) for name in self._index.arrays]
        for values, (name, kind) in zip(block, self._index.arrays.items(), strict=True):
            if values.shape != (end - begin, *kind.shape) or values.dtype != kind.dtype:
                found = f"samples {begin} to {end} of {name!r} are {values.dtype} {values.shape}"
                expected = f"{kind.dtype} {(end - begin, *kind.shape)}"
                raise DataError(row.file, f"{found}, not {expected} as its index says")
        return block


def _copy(block: Block, row: int, batch: Block, at: int) -> None:
    for values, found in zip(batch, block, strict=True):
        values[at] = found[row]
