"""Shards as HDF5 files: one dataset an array, in chunks of one block, uncompressed."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, ClassVar

import h5py
import numpy as np
from numpy.typing import NDArray

from parsl_rasda.errors import DataError


class Hdf5:
    """The format."""

    patterns: ClassVar[tuple[str, ...]] = ("*.h5", "*.hdf5")

    def open(self, path: str) -> Hdf5Shard:
        """Open a shard, without a cache."""
        try:
            # Blocks are kept by the reader; HDF5 would keep a megabyte for each array of each file too.
            return Hdf5Shard(path, h5py.File(path, "r", rdcc_nbytes=0))
        except FileNotFoundError:
            raise DataError(path, "there is no such file") from None
        except OSError as error:
            raise DataError(path, f"not a whole HDF5 file: {error}") from error

    def write(
        self, path: str, arrays: Mapping[str, NDArray[Any]], block: int, attributes: Mapping[str, object]
    ) -> None:
        """Write a shard."""
        with h5py.File(path, "w") as file:
            file.attrs.update(attributes)
            for name, values in arrays.items():
                chunks = (min(block, len(values)), *values.shape[1:])
                file.create_dataset(name, data=values, chunks=chunks)


class Hdf5Shard:
    """An open file."""

    def __init__(self, path: str, file: Any) -> None:
        self._path, self._file = path, file
        self._datasets: dict[str, Any] = {}  # found by name once: it takes longer than many a read

    def arrays(self) -> Mapping[str, tuple[tuple[int, ...], np.dtype[Any], int]]:
        """Return shape, type and samples per chunk of each dataset of numbers, in groups too."""
        found: dict[str, tuple[tuple[int, ...], np.dtype[Any], int]] = {}

        def add(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset) and item.shape and item.dtype.kind in "biuf":
                found[name] = (item.shape, item.dtype, item.chunks[0] if item.chunks else 0)

        with self._explained():
            self._file.visititems(add)
        return found

    def read(self, name: str, begin: int, end: int) -> NDArray[Any]:
        """Return a slice of a dataset."""
        with self._explained():
            values: NDArray[Any] = self._dataset(name)[begin:end]
        return values

    def announce(self, name: str, begin: int, end: int) -> None:
        """Let the system fetch a slice, or its first chunk where the dataset is stored in chunks.

        Blocks in random order defeat its own reading ahead: without this, they come half as fast.
        """
        with suppress(OSError, RuntimeError, DataError):  # whoever reads will say what is wrong
            dataset = self._dataset(name)
            if dataset.chunks:
                first = (begin, *(0 for _ in dataset.shape[1:]))
                chunk = dataset.id.get_chunk_info_by_coord(first)
                offset, size = chunk.byte_offset, chunk.size
            else:
                sample = math.prod(dataset.shape[1:]) * dataset.dtype.itemsize
                offset, size = (dataset.id.get_offset() or 0) + begin * sample, (end - begin) * sample
            os.posix_fadvise(self._file.id.get_vfd_handle(), offset, size, os.POSIX_FADV_WILLNEED)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _dataset(self, name: str) -> Any:
        if name not in self._datasets:
            dataset = self._file.get(name)
            if not isinstance(dataset, h5py.Dataset):
                raise DataError(self._path, f"it has no array {name!r}")
            self._datasets[name] = dataset
        return self._datasets[name]

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError) as error:  # HDF5 raises both for what it cannot read
            raise DataError(self._path, f"it is damaged: {error}") from error
