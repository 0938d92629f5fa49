"""Shards as Zarr 3 groups (directories): each array is one Zarr shard, uncompressed, in chunks of a block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from parsl_rasda.confined import confined
from parsl_rasda.data.plain_shard import PlainShard
from parsl_rasda.errors import DataError


class Zarr3:
    """The format."""

    patterns: ClassVar[tuple[str, ...]] = ("*.zarr",)

    def open(self, path: str) -> Zarr3Shard:
        """Open a shard. Its files are opened for each read."""
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
                # A missing chunk reads as zeros, so a chunk of zeros must not be left out.
                config={"write_empty_chunks": True},
            )
            array[:] = values


class Zarr3Shard:
    """An open group, none of whose chunks is missing."""

    def __init__(self, path: str, group: Any) -> None:
        self._path = path
        self._arrays = dict(sorted(group.arrays()))
        plain = {n: PlainShard.of(confined(Path(path), n), array) for n, array in self._arrays.items()}
        self._plain = {name: shard for name, shard in plain.items() if shard is not None}
        for name, array in self._arrays.items():
            if name not in self._plain and array.nchunks_initialized < array.nchunks:
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
        end = min(end, self._arrays[name].shape[0])
        plain = self._plain.get(name)
        if plain is not None and begin < end and plain.has(begin, end):
            return plain.read(begin, end)
        with _explained(self._path, "it is damaged"):
            values: NDArray[Any] = self._arrays[name][begin:end]
        return values

    def announce(self, name: str, begin: int, end: int) -> None:
        """Tell the system to fetch the chunk that begins here, if the array is a `PlainShard`."""
        if name in self._plain and begin < self._arrays[name].shape[0]:
            self._plain[name].announce(begin)

    def close(self) -> None:
        """Do nothing, as no file is open."""


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
    except Exception as error:  # stores and codecs raise errors of any type; all are about this file
        raise DataError(path, f"{what}: {error}") from error
