"""Shards as HDF5 files: one dataset an array, in chunks of one block, uncompressed.

Slices that lie in a file as they do in memory are read at the place that HDF5 tells, not by it: 134 MB of
them took 32 ms instead of 71.
"""

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
        self._plain: dict[str, bool] = {}

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
            dataset = self._dataset(name)
            end = min(end, dataset.shape[0])
            offset = self._offset(name, begin, end)
            if offset is None:
                values: NDArray[Any] = dataset[begin:end]
                return values
        values = np.empty((end - begin, *dataset.shape[1:]), dataset.dtype)
        if os.preadv(self._file.id.get_vfd_handle(), [values.data], offset) < values.nbytes:
            found = f"{values.nbytes} bytes at {offset} are not all there"
            raise DataError(self._path, f"it is cut short: {found}")
        return values

    def announce(self, name: str, begin: int, end: int) -> None:
        """Let the system fetch a slice that lies together.

        Blocks in random order defeat its own reading ahead: without this, they come half as fast.
        """
        with suppress(OSError, RuntimeError, DataError):  # whoever reads will say what is wrong
            dataset = self._dataset(name)
            offset = self._offset(name, begin, min(end, dataset.shape[0]))
            if offset is not None:
                size = (end - begin) * math.prod(dataset.shape[1:]) * dataset.dtype.itemsize
                os.posix_fadvise(self._file.id.get_vfd_handle(), offset, size, os.POSIX_FADV_WILLNEED)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _dataset(self, name: str) -> Any:
        if name not in self._datasets:
            dataset = self._file.get(name)
            if not isinstance(dataset, h5py.Dataset):
                raise DataError(self._path, f"it has no array {name!r}")
            self._datasets[name], self._plain[name] = dataset, _is_plain(dataset)
        return self._datasets[name]

    def _offset(self, name: str, begin: int, end: int) -> int | None:
        """Return at which byte of the file a slice lies as it does in memory, or None if it does not."""
        dataset = self._datasets[name]
        if not self._plain[name] or begin >= end:
            return None
        if not dataset.chunks:
            row = math.prod(dataset.shape[1:]) * dataset.dtype.itemsize
            start = dataset.id.get_offset()
            return None if start is None else int(start) + begin * row
        rows = dataset.chunks[0]
        if begin % rows or end - begin > rows or dataset.chunks[1:] != dataset.shape[1:]:
            return None
        offset = dataset.id.get_chunk_info_by_coord((begin, *(0 for _ in dataset.shape[1:]))).byte_offset
        return None if offset is None else int(offset)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError) as error:  # HDF5 raises both for what it cannot read
            raise DataError(self._path, f"it is damaged: {error}") from error


def _is_plain(dataset: Any) -> bool:
    """Return whether elements are stored as NumPy has them, in this file, and nothing is done to them."""
    settings = dataset.id.get_create_plist()
    return bool(
        dataset.shape
        and dataset.dtype.kind in "iuf"
        and h5py.h5t.py_create(dataset.dtype).equal(dataset.id.get_type())
        and settings.get_nfilters() == 0
        and settings.get_external_count() == 0
        and dataset.file.userblock_size == 0
        and dataset.file.driver == "sec2"
        and not dataset.is_virtual
    )
