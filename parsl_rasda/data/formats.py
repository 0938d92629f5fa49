"""File formats of shards behind one interface: HDF5, Zarr 3 where it is installed, TFRecords to be read only.

A shard holds one array for each part of a sample; the first dimension of all counts samples. Elements are
numbers, or byte strings (of type ``object``), which may differ in length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from parsl_rasda.data.hdf5 import Hdf5
from parsl_rasda.data.tfrecord import TFRecord
from parsl_rasda.data.zarr3 import Zarr3
from parsl_rasda.errors import InvalidSettingError

Array = NDArray[Any]


class OpenShard(Protocol):
    """A shard that is open for reading."""

    def arrays(self) -> Mapping[str, tuple[tuple[int, ...], np.dtype[Any], int]]:
        """Return shape, type and samples per chunk (0: none) of each array, by name."""
        ...

    def read(self, name: str, begin: int, end: int) -> Array:
        """Return these samples of an array.

        Raises:
            DataError: If they cannot be read.
        """
        ...

    def announce(self, name: str, begin: int, end: int) -> None:
        """Let the system begin to fetch what will be read soon; a hint, which never fails."""
        ...

    def close(self) -> None:
        """Close the file."""
        ...


class Format(Protocol):
    """How shards are stored."""

    patterns: ClassVar[tuple[str, ...]]  # of names, as in a shell

    def open(self, path: str) -> OpenShard:
        """Open a shard.

        Raises:
            DataError: If it is missing, truncated, or not of this format.
        """
        ...


class WritableFormat(Format, Protocol):
    """How shards are written; the first pattern is ``*`` and a suffix, with which their names end."""

    def write(
        self, path: str, arrays: Mapping[str, Array], block: int, attributes: Mapping[str, object]
    ) -> None:
        """Write a whole shard, in chunks of one block."""
        ...


FORMATS: Mapping[str, WritableFormat] = {"hdf5": Hdf5(), "zarr": Zarr3()}
ALL_FORMATS: Sequence[Format] = (*FORMATS.values(), TFRecord())


def format_named(name: str) -> WritableFormat:
    """Return the format that is written under this name.

    Raises:
        InvalidSettingError: If there is none.
    """
    if name not in FORMATS:
        raise InvalidSettingError("format", name, " or ".join(FORMATS))
    return FORMATS[name]


def format_of(path: str) -> Format:
    """Return the format that a file's name tells.

    Raises:
        InvalidSettingError: If it tells none.
    """
    for format_ in ALL_FORMATS:
        if any(fnmatchcase(path, pattern) for pattern in format_.patterns):
            return format_
    raise InvalidSettingError("shard", path, f"a name like {', '.join(patterns())}")


def is_shard(name: str) -> bool:
    """Return whether a file of this name is a shard."""
    return any(fnmatchcase(name, pattern) for pattern in patterns())


def patterns() -> Sequence[str]:
    """Return what names of shards are like."""
    return [pattern for format_ in ALL_FORMATS for pattern in format_.patterns]
