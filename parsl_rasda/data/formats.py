"""File formats of shards behind one interface: HDF5, and Zarr 3 where it is installed.

A shard holds one array for each part of a sample; the first dimension of all counts samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from parsl_rasda.data.hdf5 import Hdf5
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

    suffixes: ClassVar[tuple[str, ...]]

    def open(self, path: str) -> OpenShard:
        """Open a shard.

        Raises:
            DataError: If it is missing, truncated, or not of this format.
        """
        ...

    def write(
        self, path: str, arrays: Mapping[str, Array], block: int, attributes: Mapping[str, object]
    ) -> None:
        """Write a whole shard, in chunks of one block."""
        ...


FORMATS: Mapping[str, Format] = {"hdf5": Hdf5(), "zarr": Zarr3()}


def format_named(name: str) -> Format:
    """Return the format of this name.

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
    for format_ in FORMATS.values():
        if path.endswith(format_.suffixes):
            return format_
    raise InvalidSettingError("shard", path, f"a name that ends with {', '.join(suffixes())}")


def suffixes() -> Sequence[str]:
    """Return how names of shards may end."""
    return [suffix for format_ in FORMATS.values() for suffix in format_.suffixes]
