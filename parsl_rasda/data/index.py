"""Which samples are in which file: found by a scan, or read from the JSON that a `ShardWriter` has left.

::

    {"format": 1, "block": 16, "arrays": {"frames": {"shape": [64, 64], "dtype": "uint8"}},
     "attributes": {}, "splits": {"train": [["train-00000.h5", 0, 1024], ...]}}
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from parsl_rasda.atomic_files import replace_file
from parsl_rasda.confined import confined
from parsl_rasda.data.formats import format_of, is_shard, patterns
from parsl_rasda.errors import DataError, InvalidSettingError

FORMAT: Final = 1
INDEX: Final = "index.json"
BLOCK: Final = 16  # samples


@dataclass(frozen=True, slots=True)
class ArrayType:
    """A part of a sample: its shape, without the dimension of samples, and its element type."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class Row:
    """Consecutive samples of one file."""

    file: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Index:
    """The samples of one split.

    Attributes:
        block: Number of samples that are read at once.
        arrays: The parts of a sample, in order.
        rows: Where the samples are, in order.
    """

    block: int
    arrays: Mapping[str, ArrayType]
    rows: tuple[Row, ...]


def index_of(path: Path, split: str | None, names: Sequence[str] | None) -> Index:
    """Return the index in an index file, of a directory (its index file, or all its shards), or of a shard.

    Args:
        path: The file or directory.
        split: The split; needed if there are several.
        names: The arrays of a sample, in order; None means all.

    Raises:
        DataError: If a file is missing, damaged or not a shard, or if shards differ in their arrays.
        InvalidSettingError: If there is no such split or array.
    """
    if path.is_dir() and (path / INDEX).exists():
        path /= INDEX
    if path.suffix == ".json":
        return _load(path, split, names)
    if split is not None:
        raise InvalidSettingError("split", split, f"none for {path}: it has no {INDEX}")
    if path.is_dir() and not is_shard(path.name):
        files = sorted(str(p) for p in path.iterdir() if is_shard(p.name) and not p.name.startswith("."))
        if not files:
            raise DataError(str(path), f"it has no shard ({', '.join(patterns())}) and no {INDEX}")
    else:
        files = [str(path)]
    return joined([_scan(file, names) for file in files])


def joined(indices: Sequence[Index]) -> Index:
    """Return one index of all samples of several indices.

    Raises:
        DataError: If their arrays differ.
    """
    first = indices[0]
    for index in indices[1:]:
        if index.arrays != first.arrays:
            found = (
                f"its arrays are {dict(index.arrays)}, not {dict(first.arrays)} as in {first.rows[0].file}"
            )
            raise DataError(index.rows[0].file, found)
    return Index(first.block, first.arrays, tuple(row for index in indices for row in index.rows))


def save(
    path: Path,
    arrays: Mapping[str, ArrayType],
    splits: Mapping[str, Sequence[Row]],
    attributes: Mapping[str, object],
) -> None:
    """Write an index file, whole or not at all."""
    text = json.dumps(
        {
            "format": FORMAT,
            "block": BLOCK,
            "arrays": {name: {"shape": kind.shape, "dtype": kind.dtype} for name, kind in arrays.items()},
            "attributes": dict(attributes),
            "splits": {name: [[r.file, r.start, r.stop] for r in rows] for name, rows in splits.items()},
        },
        indent=1,
    )
    replace_file(path, text)


def _load(path: Path, split: str | None, names: Sequence[str] | None) -> Index:
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
        if data["format"] != FORMAT:
            raise DataError(str(path), f"it has format {data['format']!r}; this parsl_rasda reads {FORMAT}")
        splits: dict[str, list[tuple[str, int, int]]] = data["splits"]
        if split is None and len(splits) == 1:
            split = next(iter(splits))
        if split not in splits:
            raise InvalidSettingError("split", split, f"one of {', '.join(splits)} of {path}")
        rows = tuple(Row(_shard(path.parent, file), start, stop) for file, start, stop in splits[split])
        kinds = {n: ArrayType(tuple(a["shape"]), a["dtype"]) for n, a in data["arrays"].items()}
        return Index(int(data["block"]), _chosen(kinds, names, str(path)), rows)
    except FileNotFoundError:
        raise DataError(str(path), "there is no such file") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(str(path), f"not an index of shards: {type(error).__name__}: {error}") from error


def _shard(folder: Path, name: str) -> str:
    """Return the path of a shard: an absolute one lies where whoever wrote the index had the data.

    Raises:
        ValueError: If a relative one leads out of the folder of the index.
    """
    return name if name.startswith("/") else str(confined(folder, name))


def _scan(file: str, names: Sequence[str] | None) -> Index:
    """Return the index of a shard without an index file."""
    shard = format_of(file).open(file)
    try:
        found = shard.arrays()
    finally:
        shard.close()
    if not found:
        raise DataError(file, "it has no array")
    kinds = {name: ArrayType(shape[1:], str(dtype)) for name, (shape, dtype, _) in found.items()}
    arrays = _chosen(kinds, names, file)
    lengths = {name: found[name][0][0] for name in arrays}
    if len(set(lengths.values())) > 1:
        raise DataError(file, f"its arrays differ in their number of samples: {lengths}")
    first = next(iter(arrays))
    return Index(found[first][2] or BLOCK, arrays, (Row(file, 0, lengths[first]),))


def _chosen(
    found: Mapping[str, ArrayType], names: Sequence[str] | None, file: str
) -> Mapping[str, ArrayType]:
    for name in names or ():
        if name not in found:
            raise InvalidSettingError("arrays", name, f"{', '.join(found)}, which are those of {file}")
    return {name: found[name] for name in (found if names is None else names)}
