"""A Zarr shard whose chunks have the same layout in its file as in memory, read by NumPy alone.

Zarr reads the index of a shard again for every slice, and passes all bytes through its own event loop, which
takes longer than the disk. The files of `Zarr3.write` need neither.

Source:
    Zarr core specification v3 and its codec ``sharding_indexed`` v1.0.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from google_crc32c import value as crc32c
from numpy.typing import NDArray

from parsl_rasda.errors import DataError

_LITTLE: Final = {"name": "bytes", "configuration": {"endian": "little"}}
_CHUNK_CODECS: Final = ((_LITTLE,), ({"name": "bytes"},))  # the second if an element has one byte
_INDEX_CODECS: Final = (_LITTLE, {"name": "crc32c"})
_ENTRY_BYTES, _CHECK_BYTES = 16, 4


class PlainShard:
    """An array that is one such shard, in chunks along its first dimension. No file stays open."""

    def __init__(self, file: Path, chunk: tuple[int, ...], dtype: np.dtype[Any], chunks: int) -> None:
        """Read the index of the shard.

        Args:
            file: The shard.
            chunk: Shape of a chunk.
            dtype: Type of the elements in the file.
            chunks: Number of chunks.

        Raises:
            DataError: If the file is missing or cut short, or its index is damaged.
        """
        self._file, self._chunk, self._dtype = file, chunk, dtype
        self._chunk_bytes = math.prod(chunk) * dtype.itemsize
        self._offsets = self._read_index(chunks)

    @classmethod
    def of(cls, folder: Path, array: Any) -> Self | None:
        """Return a Zarr array as such a shard, or None if it is not one."""
        if not array.shape:
            return None
        metadata, chunk = array.metadata.to_dict(), tuple(array.chunks)
        match metadata.get("codecs"):  # Zarr 2 has none
            case [{"name": "sharding_indexed", "configuration": dict(sharding)}]:
                codecs, index_codecs = tuple(sharding["codecs"]), tuple(sharding["index_codecs"])
                is_plain = codecs in _CHUNK_CODECS and index_codecs == _INDEX_CODECS
                is_at_end = sharding["index_location"] == "end"
            case _:
                return None
        is_whole = array.shards[0] >= array.shape[0] > 0 and array.shards[1:] == chunk[1:] == array.shape[1:]
        if not (is_plain and is_at_end and is_whole):
            return None
        file = folder / array.metadata.encode_chunk_key((0,) * array.ndim)
        return cls(file, chunk, array.dtype.newbyteorder("<"), array.shards[0] // chunk[0])

    def has(self, begin: int, end: int) -> bool:
        """Return whether samples are all in one chunk, from its beginning."""
        return begin % self._chunk[0] == 0 and end - begin <= self._chunk[0]

    def read(self, begin: int, end: int) -> NDArray[Any]:
        """Return samples of one chunk.

        Raises:
            DataError: If the file is shorter than its index says, or gone.
        """
        shape, offset = (end - begin, *self._chunk[1:]), self._offset(begin)
        try:
            values = np.fromfile(self._file, self._dtype, math.prod(shape), offset=offset)
            return values.reshape(shape)
        except (OSError, ValueError) as error:
            raise DataError(str(self._file), f"it is damaged at byte {offset}: {error}") from error

    def announce(self, begin: int) -> None:
        """Tell the system to fetch the chunk that begins with a sample. A hint, which never fails."""
        try:
            descriptor = os.open(self._file, os.O_RDONLY)
        except OSError:
            return  # the read will tell what is wrong
        os.posix_fadvise(descriptor, self._offset(begin), self._chunk_bytes, os.POSIX_FADV_WILLNEED)
        os.close(descriptor)

    def _offset(self, sample: int) -> int:
        return int(self._offsets[sample // self._chunk[0]])

    def _read_index(self, chunks: int) -> NDArray[np.uint64]:
        length = chunks * _ENTRY_BYTES
        try:
            with self._file.open("rb") as stream:
                end = stream.seek(-length - _CHECK_BYTES, os.SEEK_END)
                index, check = stream.read(length), stream.read()
        except OSError as error:
            raise DataError(str(self._file), f"it is not a whole shard: {error}") from error
        offsets, lengths = np.frombuffer(index, "<u8").reshape(-1, 2).T
        if crc32c(index) != int.from_bytes(check, "little"):
            raise DataError(str(self._file), f"it is damaged or cut short: no index at byte {end}")
        if (lengths != self._chunk_bytes).any() or (offsets > end - self._chunk_bytes).any():
            raise DataError(str(self._file), "it is damaged: chunks are missing")
        return offsets
