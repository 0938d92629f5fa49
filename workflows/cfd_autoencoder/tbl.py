"""The real thing: the actuated turbulent boundary layers of the paper, prepared for the same autoencoder.

A case is a folder whose name tells how the wall is actuated; in it lies one snapshot per file,
``boxOutput{t}.hdf5``, with ``/<g0>/{u,v,w}`` or ``/<g0>/<g1>/{u,v,w}``. The groups' names differ between
cases, so they are found by position. Each component is a 3-D array (N1, planes, N2): the planes come first
after the permutation (1, 0, 2), the last of them are dropped, each component of each snapshot is stretched
to [-1, 1], and N1 is cut into pieces of one width; what is left over is dropped.

One call of `write_shards` prepares one case, with one snapshot in memory at a time; the cases run side by
side, and `join` makes one data set of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fields import DTYPES, SPLITS, Array, scaled
from parsl_rasda.data import ShardWriter
from parsl_rasda.errors import InvalidSettingError
from parsl_rasda.types import JSON

COMPONENTS = ("u", "v", "w")
SNAPSHOT = re.compile(r"boxOutput(\d+)\.hdf5")
PARAMETER = re.compile(r"([A-Za-z]+)[_=-]?(\d+(?:\.\d+)?)")


def cases(root: str, *, held_out: int = 1) -> list[dict[str, JSON]]:
    """Return the folders below ``root`` that hold snapshots, in order of their names.

    Args:
        root: Of all cases.
        held_out: Number of cases, the last ones, that nothing is tuned on: the *unseen* actuations.

    Returns:
        For each ``folder``, ``number`` and ``is_held_out``.

    Raises:
        InvalidSettingError: If there are no cases, or none is left to train on.
    """
    found = {file.parent for file in Path(root).rglob("boxOutput*.hdf5") if SNAPSHOT.fullmatch(file.name)}
    if not found:
        raise InvalidSettingError("root", root, "a folder with boxOutput<t>.hdf5 files in or below it")
    if not 1 <= held_out < len(found):
        allowed = f"1 to {len(found) - 1} of {len(found)} cases in {root}, two cases or more"
        raise InvalidSettingError("cases.held_out", held_out, allowed)
    return [
        {"folder": str(folder), "number": number, "is_held_out": number >= len(found) - held_out}
        for number, folder in enumerate(sorted(found))
    ]


def actuation(case: str) -> dict[str, float]:
    """Return the parameters in a case's name, ``{"L": 1000.0, "T": 40.0}`` of ``L1000_T40``; perhaps none."""
    return {name: float(value) for name, value in PARAMETER.findall(Path(case).name)}


def snapshots(case: str) -> list[tuple[int, Path]]:
    """Return time and file of the snapshots of a case, in order of time."""
    named = ((SNAPSHOT.fullmatch(file.name), file) for file in Path(case).iterdir())
    return sorted((int(match[1]), file) for match, file in named if match)


def read_snapshot(file: Path, *, planes: int, piece: int) -> Array:
    """Return the samples of one snapshot, ``(planes * pieces, 3, piece, N2)``, stretched to [-1, 1].

    Args:
        file: Of the layout that the module describes.
        planes: How many of the wall-parallel planes are kept.
        piece: Points of a piece along N1.

    Raises:
        InvalidSettingError: If the file has another layout, is cut short, or is too small.
    """
    try:
        with h5py.File(file, "r") as box:
            group = _components(box)
            if group is None:
                allowed = "/<group>/{u,v,w} or /<group>/<group>/{u,v,w}"
                raise InvalidSettingError(f"{file}: groups", list(box), allowed)
            fields = [np.asarray(group[name], dtype=np.float32) for name in COMPONENTS]
    except OSError as error:
        raise InvalidSettingError(str(file), str(error), "a whole HDF5 file") from error
    shapes = {field.shape for field in fields}
    if len(shapes) > 1 or fields[0].ndim != 3:
        raise InvalidSettingError(
            f"{file}: shapes", sorted(shapes), "one shape (N1, planes, N2) for u, v and w"
        )
    points, available, _ = fields[0].shape
    if available < planes or points < piece:
        allowed = f"N1 of at least {piece} and {planes} planes or more"
        raise InvalidSettingError(f"{file}: (N1, planes, N2)", fields[0].shape, allowed)
    kept = np.stack([field.transpose(1, 0, 2)[:planes] for field in fields], axis=1)
    stretched = scaled(kept, axes=(0, 2, 3))
    pieces = [stretched[:, :, n * piece : (n + 1) * piece] for n in range(points // piece)]
    return np.concatenate(pieces)


def write_shards(
    case: Mapping[str, Any],  # plain JSON
    directory: str,
    *,
    planes: int = 89,
    piece: int = 250,
    validation_fraction: float = 0.125,
) -> dict[str, JSON]:
    """Write the shards of a case and return what `join` needs to know.

    The last snapshots in time validate, all others train; of a case that is held out, all are *unseen*.

    Args:
        case: One of those that `cases` returned.
        directory: Where the shards go; it exists.
        planes: See `read_snapshot`.
        piece: See `read_snapshot`.
        validation_fraction: Part of the snapshots that validate, at least one.

    Returns:
        ``folder``, ``actuation``, ``index``, ``samples`` (per split) and ``shape`` of a sample.

    Raises:
        InvalidSettingError: If a file has another layout or not the shape of those before it, or if no
            snapshot is left to train on.
    """
    if not 0 < validation_fraction < 1:
        raise InvalidSettingError("prepare.validation_fraction", validation_fraction, "between 0 and 1")
    folder = str(case["folder"])
    files = snapshots(folder)
    training = len(files) - max(1, round(len(files) * validation_fraction))
    if training < 1 and not case["is_held_out"]:
        raise InvalidSettingError(f"{folder}: snapshots", len(files), "2 or more")
    parameters = actuation(folder)
    shape: tuple[int, ...] = ()
    with ShardWriter(directory, dtypes=DTYPES, attributes={"case": folder, **parameters}) as shards:
        for position, (_, file) in enumerate(files):
            samples = read_snapshot(file, planes=planes, piece=piece)
            if shape and samples.shape[1:] != shape:
                raise InvalidSettingError(
                    f"{file}: shape of a sample", samples.shape[1:], f"{shape}, as before"
                )
            shape = samples.shape[1:]
            split = "unseen" if case["is_held_out"] else "train" if position < training else "validation"
            shards.write(split, field=samples, flow=np.full(len(samples), case["number"], np.int16))
    return {
        "folder": folder,
        "actuation": {**parameters},
        "index": str(shards.index),
        "samples": {**shards.samples},
        "shape": list(shape),
    }


def join(parts: Sequence[Mapping[str, Any]]) -> dict[str, JSON]:
    """Return one data set of all cases, in the form that `fields` describes.

    Args:
        parts: What `write_shards` returned, in the order of `cases`.

    Raises:
        InvalidSettingError: If samples of two cases differ in shape.
    """
    first = parts[0]
    for part in parts:
        if part["shape"] != first["shape"]:
            allowed = f"{first['shape']}, as in {first['folder']}"
            raise InvalidSettingError(f"{part['folder']}: shape of a sample", part["shape"], allowed)
    return {
        "indices": {split: [p["index"] for p in parts if split in p["samples"]] for split in SPLITS},
        "labels": [Path(part["folder"]).name for part in parts],
        "samples": {split: sum(part["samples"].get(split, 0) for part in parts) for split in SPLITS},
        "shape": first["shape"],
    }


def _components(box: h5py.File) -> h5py.Group | None:
    """Return what holds u, v and w: the first group of the file, or the first group in that."""
    group: h5py.Group = box
    for _ in range(2):
        inner = [value for value in group.values() if isinstance(value, h5py.Group)]
        if not inner:
            return None
        group = inner[0]
        if all(isinstance(group.get(name), h5py.Dataset) for name in COMPONENTS):
            return group
    return None
