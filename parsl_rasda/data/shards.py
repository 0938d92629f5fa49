"""A data set in shards: any number of terabytes, read in blocks, with a few blocks in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from parsl_rasda.data.blocks import WINDOW, Batch, Block, BlockReader
from parsl_rasda.data.files import OPEN_FILES
from parsl_rasda.data.index import Index, Row, index_of, joined
from parsl_rasda.data.layout import Layout
from parsl_rasda.errors import DataError, InvalidSettingError


def open_shards(
    path: str | Path | Sequence[str | Path],
    *,
    arrays: str | Sequence[str] | None = None,
    split: str | None = None,
    window: int = WINDOW,
) -> Shards:
    """Return a data set for ``trial.batches``, ``trial.shard``, or to be read directly.

    Args:
        path: The index of a `ShardWriter` (``shards.index``) or its directory, a shard, or a directory of
            shards from another program. Several paths are joined.
        arrays: The parts of a sample, in order, as in ``x, y``; all by default. With a single name a batch
            is one tensor, not a tuple. Arrays in groups are named by their path. TFRecords have one array,
            ``record``, whose batches are lists of byte strings, not tensors.
        split: The split; needed if there are several.
        window: Number of blocks that are mixed when the order is shuffled. More blocks mix better, and take
            more memory.

    Raises:
        DataError: If a file is missing, damaged or not a shard.
        InvalidSettingError: If there is no such split or array.
    """
    if window < 1:
        raise InvalidSettingError("window", window, "1 or more")
    paths = [path] if isinstance(path, str | Path) else path
    names = (arrays,) if isinstance(arrays, str) else arrays
    index = joined([index_of(Path(each), split, names) for each in paths])
    return Shards(index, window=window, single=isinstance(arrays, str))


class Shards(BlockReader):
    """The samples of one split.

    It may be pickled, forked and shared by threads, because only `OPEN_FILES` keeps files open between reads.
    """

    def __init__(self, index: Index, *, window: int = WINDOW, single: bool = False) -> None:
        """Describe the data set. Nothing is read yet.

        Args:
            index: The index of its samples.
            window: Number of blocks that are mixed.
            single: Whether a batch is one tensor rather than a tuple.
        """
        self._rows = [row for row in index.rows if row.start < row.stop]
        self._names, self._single = tuple(index.arrays), single
        layout = Layout([row.stop - row.start for row in self._rows], index.block)
        super().__init__(layout, tuple(index.arrays.values()), window=window)

    def place_of(self, sample: int) -> tuple[str, int]:
        """Return the file of a sample and its number in the file, for error messages."""
        (block,), (inside,) = self._locate([sample])
        row, begin, _ = self._slice_of(block)
        return row.file, begin + inside

    def read_block(self, number: int) -> Block:
        """Return the samples of a block: a slice of each array.

        Raises:
            DataError: If they cannot be read, or differ from the index.
        """
        row, begin, end = self._slice_of(number)
        with OPEN_FILES.opened(row.file) as shard:
            block = [shard.read(name, begin, end) for name in self._names]
        for values, name, kind in zip(block, self._names, self.kinds, strict=True):
            if values.shape != (end - begin, *kind.shape) or values.dtype != kind.dtype:
                found = f"samples {begin} to {end} of {name!r} are {values.dtype} {values.shape}"
                expected = f"{kind.dtype} {(end - begin, *kind.shape)}"
                raise DataError(row.file, f"{found}, not {expected} as its index says")
        return block

    def announce_block(self, number: int) -> None:
        """Tell the system to fetch a block.

        Raises:
            DataError: If its file cannot be opened.
        """
        row, begin, end = self._slice_of(number)
        with OPEN_FILES.opened(row.file) as shard:
            for name in self._names:
                shard.announce(name, begin, end)

    def batch_of(self, parts: Block) -> Batch:
        """Return a tuple of a tensor (or list of byte strings) for each array, or a single one."""
        import torch

        tensors = tuple(v.tolist() if v.dtype == object else torch.from_numpy(v) for v in parts)
        return tensors[0] if self._single else tensors

    def _slice_of(self, block: int) -> tuple[Row, int, int]:
        number, begin, end = self.layout.slice_of(block)
        row = self._rows[number]
        return row, row.start + begin, row.start + end
