"""Where samples are: rows of shards, cut into blocks. Pure arithmetic, a few bytes for each shard."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]


class Layout:
    """Samples and blocks, both numbered from 0 through all rows. A block never crosses the end of a row.

    Attributes:
        samples: Number of samples.
        blocks: Number of blocks.
    """

    def __init__(self, lengths: Sequence[int], block: int) -> None:
        """Cut rows with these numbers of samples (one or more) into blocks of ``block`` samples."""
        in_rows = np.asarray(lengths, dtype=np.int64)
        self._block = block
        self._row_samples = np.concatenate(([0], np.cumsum(in_rows)))
        self._row_blocks = np.concatenate(([0], np.cumsum(-(-in_rows // block))))
        self.samples, self.blocks = int(self._row_samples[-1]), int(self._row_blocks[-1])

    def locate(self, samples: Numbers) -> tuple[Numbers, Numbers]:
        """Return the block of each sample, and its place in the block."""
        rows = np.searchsorted(self._row_samples, samples, side="right") - 1
        inside = samples - self._row_samples[rows]
        return self._row_blocks[rows] + inside // self._block, inside % self._block

    def extents(self, blocks: Numbers) -> tuple[Numbers, Numbers]:
        """Return the first sample of each block, and the block's number of samples."""
        rows = np.searchsorted(self._row_blocks, blocks, side="right") - 1
        first = self._row_samples[rows] + (blocks - self._row_blocks[rows]) * self._block
        return first, np.minimum(self._block, self._row_samples[rows + 1] - first)

    def slice_of(self, block: int) -> tuple[int, int, int]:
        """Return the row of a block, and where the block begins and ends in that row."""
        row = int(np.searchsorted(self._row_blocks, block, side="right")) - 1
        begin = (block - int(self._row_blocks[row])) * self._block
        length = int(self._row_samples[row + 1] - self._row_samples[row])
        return row, begin, min(begin + self._block, length)
