"""A data set in shards: any number of terabytes, read in blocks, with memory for a few of them."""

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


class Shards(BlockReader):
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
        self._rows = [row for row in index.rows if row.start < row.stop]
        self._names, self._single = tuple(index.arrays), single
        layout = Layout([row.stop - row.start for row in self._rows], index.block)
        super().__init__(layout, tuple(index.arrays.values()), window=window)

    def place_of(self, sample: int) -> tuple[str, int]:
        """Return the file that a sample is in, and its number in there, for those who tell what is wrong."""
        (block,), (inside,) = self._locate([sample])
        row, begin, _ = self._slice_of(block)
        return row.file, begin + inside

    def read_block(self, number: int) -> Block:
        """Return the samples of a block, a slice of each array.

        Raises:
            DataError: If they cannot be read, or are not what the index says.
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
        """Let the system begin to fetch a block.

        Raises:
            DataError: If its file cannot be opened.
        """
        row, begin, end = self._slice_of(number)
        with OPEN_FILES.opened(row.file) as shard:
            for name in self._names:
                shard.announce(name, begin, end)

    def batch_of(self, parts: Block) -> Batch:
        """Return a tensor (or list of byte strings) for each array: a tuple, or one by itself."""
        import torch

        tensors = tuple(v.tolist() if v.dtype == object else torch.from_numpy(v) for v in parts)
        return tensors[0] if self._single else tensors

    def _slice_of(self, block: int) -> tuple[Row, int, int]:
        number, begin, end = self.layout.slice_of(block)
        row = self._rows[number]
        return row, row.start + begin, row.start + end
