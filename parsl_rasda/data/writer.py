"""Writes shards: whole files, one after another, then their index."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from parsl_rasda.data.formats import format_named
from parsl_rasda.data.index import BLOCK, INDEX, ArrayType, Row, save
from parsl_rasda.errors import InvalidSettingError

SAMPLES_PER_SHARD: Final = 1024


class ShardWriter:
    """Collects samples and writes them as shards. The index is written if the ``with`` ends without an error.

    A shard appears when it is whole, and the index names only shards that exist.

    Attributes:
        index: The index file, for `open_shards`.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        dtypes: Mapping[str, str] | None = None,
        attributes: Mapping[str, Any] | None = None,
        samples_per_shard: int = SAMPLES_PER_SHARD,
        format: str = "hdf5",  # noqa: A002 # the usual word
    ) -> None:
        """Prepare to write into a directory that exists.

        Args:
            directory: The directory of shards and index.
            dtypes: Element types of arrays, if they differ from those of the samples: ``float32``,
                ``float16``, ``uint8``.
            attributes: Numbers and strings to keep in every shard and in the index.
            samples_per_shard: Number of samples in a shard; as many are kept in memory for each split.
            format: ``hdf5`` or ``zarr``.

        Raises:
            InvalidSettingError: If there is no such format, or a shard would be empty.
        """
        if samples_per_shard < 1:
            raise InvalidSettingError("samples_per_shard", samples_per_shard, "1 or more")
        self.index = Path(directory) / INDEX
        self._format, self._dtypes = format_named(format), dict(dtypes or {})
        self._attributes, self._samples_per_shard = dict(attributes or {}), samples_per_shard
        self._kinds: dict[str, ArrayType] = {}
        self._rows: dict[str, list[Row]] = {}
        self._waiting: dict[str, list[dict[str, NDArray[Any]]]] = {}

    @property
    def samples(self) -> dict[str, int]:
        """Samples so far, by split."""
        return {split: _written(self._rows[split]) + self._held(split) for split in self._rows}

    def write(self, split: str, /, **arrays: ArrayLike) -> None:
        """Add samples to a split.

        Args:
            split: Its name.
            arrays: Parts of the samples, with the same names in every call; their first dimension counts
                samples.

        Raises:
            InvalidSettingError: If arrays do not fit each other, earlier arrays, or their element type.
        """
        values = {name: self._converted(name, np.asarray(array)) for name, array in arrays.items()}
        if len({len(array) for array in values.values()}) != 1:
            lengths = {name: len(array) for name, array in values.items()}
            raise InvalidSettingError("ShardWriter.write", lengths, "arrays with equal numbers of samples")
        kinds = {name: ArrayType(array.shape[1:], str(array.dtype)) for name, array in values.items()}
        self._kinds = self._kinds or kinds
        if kinds != self._kinds:
            raise InvalidSettingError("ShardWriter.write", kinds, f"the same arrays as before: {self._kinds}")
        self._rows.setdefault(split, [])
        self._waiting.setdefault(split, []).append(values)
        while self._held(split) >= self._samples_per_shard:
            self._write_shard(split)

    def close(self) -> None:
        """Write the remaining samples, and the index."""
        for split in self._waiting:
            if self._held(split):
                self._write_shard(split)
        save(self.index, self._kinds, self._rows, self._attributes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()

    def _converted(self, name: str, values: NDArray[Any]) -> NDArray[Any]:
        wanted = np.dtype(self._dtypes.get(name, values.dtype))
        if values.dtype == wanted and wanted.kind in "biuf":
            return values.copy()  # the caller may reuse its array
        if wanted.kind not in "biuf" or not np.can_cast(values.dtype, wanted, "same_kind"):
            raise InvalidSettingError(
                f"ShardWriter: {name}", str(values.dtype), f"values that {wanted} can hold"
            )
        try:
            with np.errstate(over="raise"):
                return values.astype(wanted)
        except FloatingPointError:
            largest = float(np.abs(values).max())
            raise InvalidSettingError(
                f"ShardWriter: {name}", largest, f"values that {wanted} can hold"
            ) from None

    def _held(self, split: str) -> int:
        return sum(len(next(iter(values.values()))) for values in self._waiting[split])

    def _write_shard(self, split: str) -> None:
        waiting, most = self._waiting[split], self._samples_per_shard
        joined = waiting[0]
        if len(waiting) > 1:
            joined = {name: np.concatenate([values[name] for values in waiting]) for name in self._kinds}
        suffix = self._format.patterns[0].removeprefix("*")
        file = self.index.parent / f"{split}-{len(self._rows[split]):05d}{suffix}"
        beside = file.with_name(f".{file.stem}.part{suffix}")
        _remove(beside)
        now = {name: values[:most] for name, values in joined.items()}
        self._format.write(str(beside), now, BLOCK, self._attributes)
        _remove(file)
        beside.rename(file)
        length = len(next(iter(now.values())))
        self._rows[split].append(Row(file.name, 0, length))
        self._waiting[split] = [{name: values[most:] for name, values in joined.items()}]


def _written(rows: list[Row]) -> int:
    return sum(row.stop - row.start for row in rows)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
