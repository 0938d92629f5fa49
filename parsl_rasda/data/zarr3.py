"""Shards as Zarr 3 groups (directories): each array one Zarr shard, in chunks of one block, uncompressed."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from parsl_rasda.errors import DataError


class Zarr3:
    """The format."""

    suffixes: ClassVar[tuple[str, ...]] = (".zarr",)

    def open(self, path: str) -> Zarr3Shard:
        """Open a shard; its files are opened for single reads only."""
        zarr = _zarr(path)
        if not Path(path).exists():
            raise DataError(path, "there is no such directory")
        with _explained(path, "not a whole Zarr group"):
            return Zarr3Shard(path, zarr.open_group(path, mode="r"))

    def write(
        self, path: str, arrays: Mapping[str, NDArray[Any]], block: int, attributes: Mapping[str, object]
    ) -> None:
        """Write a shard."""
        group = _zarr(path).create_group(path, attributes=dict(attributes))
        for name, values in arrays.items():
            rows = min(block, len(values))
            whole = -(-len(values) // rows) * rows
            array = group.create_array(
                name,
                shape=values.shape,
                dtype=values.dtype,
                chunks=(rows, *values.shape[1:]),
                shards=(whole, *values.shape[1:]),
                compressors=None,
                # A chunk that is missing reads as zeros: it must never be missing because it is zero.
                config={"write_empty_chunks": True},
            )
            array[:] = values


class Zarr3Shard:
    """An open group, whose arrays are all there."""

    def __init__(self, path: str, group: Any) -> None:
        self._path = path
        self._arrays = dict(sorted(group.arrays()))
        for name, array in self._arrays.items():
            if array.nchunks_initialized < array.nchunks:
                found = (
                    f"of array {name!r} only {array.nchunks_initialized} of {array.nchunks} chunks are there"
                )
                raise DataError(path, found)

    def arrays(self) -> Mapping[str, tuple[tuple[int, ...], np.dtype[Any], int]]:
        """Return shape, type and samples per chunk of each array of the group."""
        return {name: (a.shape, a.dtype, a.chunks[0]) for name, a in self._arrays.items() if a.shape}

    def read(self, name: str, begin: int, end: int) -> NDArray[Any]:
        """Return a slice of an array."""
        if name not in self._arrays:
            raise DataError(self._path, f"it has no array {name!r}")
        with _explained(self._path, "it is damaged"):
            values: NDArray[Any] = self._arrays[name][begin:end]
        return values

    def announce(self, name: str, begin: int, end: int) -> None:
        """Let the system fetch a slice, from where it lies in a shard that `write` wrote."""
        array = self._arrays.get(name)
        if array is None:
            return
        file = Path(self._path, name, array.metadata.encode_chunk_key((0,) * array.ndim))
        sample_bytes = math.prod(array.shape[1:]) * array.dtype.itemsize
        with suppress(OSError):  # whoever reads will say what is wrong
            descriptor = os.open(file, os.O_RDONLY)
            length = (end - begin) * sample_bytes
            os.posix_fadvise(descriptor, begin * sample_bytes, length, os.POSIX_FADV_WILLNEED)
            os.close(descriptor)

    def close(self) -> None:
        """Close nothing, as nothing is open."""


def _zarr(path: str) -> Any:
    try:
        import zarr
    except ImportError:
        raise DataError(path, "Zarr is not installed here: pip install 'parsl_rasda[zarr]'") from None
    return zarr


@contextmanager
def _explained(path: str, what: str) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # stores and codecs raise what they like; all of it is this file
        raise DataError(path, f"{what}: {error}") from error
