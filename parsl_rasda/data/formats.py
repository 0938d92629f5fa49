"""File formats of shards behind one interface: HDF5, Zarr 3 if it is installed, and TFRecords (read only).

A shard has an array for each part of a sample. The first dimension of each array counts samples. Elements
are numbers, or byte strings (of type ``object``), whose lengths may differ.
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
        """Return shape, type and samples per chunk (0: not in chunks) of each array, by name."""
        ...

    def read(self, name: str, begin: int, end: int) -> Array:
        """Return these samples of an array.

        Raises:
            DataError: If they cannot be read.
        """
        ...

    def announce(self, name: str, begin: int, end: int) -> None:
        """Tell the system that these samples will be read soon. A hint, which never fails."""
        ...

    def close(self) -> None:
        """Close the file."""
        ...


class Format(Protocol):
    """How shards are stored."""

    patterns: ClassVar[tuple[str, ...]]  # of file names, as in a shell

    def open(self, path: str) -> OpenShard:
        """Open a shard.

        Raises:
            DataError: If it is missing, truncated, or not of this format.
        """
        ...


class WritableFormat(Format, Protocol):
    """A format that can be written. Its first pattern is ``*`` and the suffix of new files."""

    def write(
        self, path: str, arrays: Mapping[str, Array], block: int, attributes: Mapping[str, object]
    ) -> None:
        """Write a whole shard, in chunks of one block."""
        ...


FORMATS: Mapping[str, WritableFormat] = {"hdf5": Hdf5(), "zarr": Zarr3()}
ALL_FORMATS: Sequence[Format] = (*FORMATS.values(), TFRecord())


def format_named(name: str) -> WritableFormat:
    """Return the format of this name, which can be written.

    Raises:
        InvalidSettingError: If there is none.
    """
    if name not in FORMATS:
        raise InvalidSettingError("format", name, " or ".join(FORMATS))
    return FORMATS[name]


def format_of(path: str) -> Format:
    """Return the format of a file, by its name.

    Raises:
        InvalidSettingError: If no format has such names.
    """
    for format_ in ALL_FORMATS:
        if any(fnmatchcase(path, pattern) for pattern in format_.patterns):
            return format_
    raise InvalidSettingError("shard", path, f"a name like {', '.join(patterns())}")


def is_shard(name: str) -> bool:
    """Return whether a file of this name is a shard."""
    return any(fnmatchcase(name, pattern) for pattern in patterns())


def patterns() -> Sequence[str]:
    """Return the patterns of the names of shards."""
    return [pattern for format_ in ALL_FORMATS for pattern in format_.patterns]
