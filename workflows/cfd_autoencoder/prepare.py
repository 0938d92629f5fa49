"""The `prepare` stage: scale the snapshots of turbulence and cavities, split them, write them as shards.

As the paper's group prepares its boundary layers (`tbl`): each component of each snapshot is stretched to
[-1, 1]. An error then means the same for a fast flow and a slow one.
"""

from __future__ import annotations

from collections.abc import Iterator

import h5py
import numpy as np

from fields import DTYPES, SPLITS, Array, scaled
from parsl_rasda.data import ShardWriter
from parsl_rasda.errors import InvalidSettingError
from parsl_rasda.types import JSON

LABELS = ("turbulence", "cavity")


def write_shards(
    turbulence: list[str],
    cavities: list[str],
    directory: str,
    *,
    validation_fraction: float = 0.25,
) -> dict[str, JSON]:
    """Write the shards of all splits and return where they are.

    The last file of each list is held out whole: the *unseen* flows. Of the other simulations of turbulence,
    the last flows validate; a cavity is one flow, so of the other cavities the last ones validate. Splits
    never share a flow: snapshots of one flow resemble each other.

    Args:
        turbulence: Files that `simulate` returned, two or more.
        cavities: Files that `simulate_cavity` returned, three or more.
        directory: Where shards and index go; it exists.
        validation_fraction: Part of the flows that validate, at least one of each kind.

    Returns:
        As `fields` says.

    Raises:
        InvalidSettingError: If there is nothing to hold out, or no flow to train or validate on, or the
            files do not fit together.
    """
    for key, files, least in (("turbulence", turbulence, 2), ("cavities", cavities, 3)):
        if len(files) < least:
            raise InvalidSettingError(f"prepare.{key}", files, f"{least} files or more: the last is held out")
    if not 0 < validation_fraction < 1:
        raise InvalidSettingError("prepare.validation_fraction", validation_fraction, "between 0 and 1")
    shape: tuple[int, ...] = ()
    flows = (*_turbulence(turbulence, validation_fraction), *_cavities(cavities, validation_fraction))
    with ShardWriter(directory, dtypes=DTYPES) as shards:
        for file, split, which, label in flows:
            samples = _samples(file, which)
            if shape and samples.shape[1:] != shape:
                found, allowed = samples.shape[1:], f"{shape}, as in the files before it"
                raise InvalidSettingError(f"prepare: sample of {file}", found, allowed)
            shape = samples.shape[1:]
            shards.write(split, field=samples, flow=np.full(len(samples), LABELS.index(label), np.int16))
    return {
        "indices": {split: [str(shards.index)] for split in SPLITS},
        "labels": list(LABELS),
        "samples": {**shards.samples},
        "shape": list(shape),
    }


Part = tuple[str, str, slice, str]  # file, split, flows, label


def _turbulence(files: list[str], fraction: float) -> Iterator[Part]:
    *known, last = files
    for path in known:
        with h5py.File(path, "r") as file:
            flows = len(file["velocity"])
        training = flows - max(1, round(flows * fraction))
        if training < 1:
            allowed = f"a part of the {flows} flows in {path} that leaves some to train on"
            raise InvalidSettingError("prepare.validation_fraction", fraction, allowed)
        yield path, "train", slice(training), "turbulence"
        yield path, "validation", slice(training, None), "turbulence"
    yield last, "unseen", slice(None), "turbulence"


def _cavities(files: list[str], fraction: float) -> Iterator[Part]:
    *known, _ = files
    training = len(known) - max(1, round(len(known) * fraction))
    if training < 1:
        allowed = f"a part of {len(known)} cavities that leaves some to train on"
        raise InvalidSettingError("prepare.validation_fraction", fraction, allowed)
    for number, path in enumerate(files):
        held_out = number == len(known)
        split = "unseen" if held_out else "train" if number < training else "validation"
        yield path, split, slice(None), "cavity"


def _samples(path: str, flows: slice) -> Array:
    """Return scaled snapshots, ``(samples, 2, grid, grid)``."""
    with h5py.File(path, "r") as file:
        velocity = file["velocity"][flows]
    snapshots: Array = np.concatenate(velocity).astype(np.float32)
    return scaled(snapshots, axes=(2, 3))
