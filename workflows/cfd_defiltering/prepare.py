"""The `prepare` stage: filter the flows, scale them, split them, write them as HDF5 shards.

The input of the network is the velocity behind a Gaussian filter, its target the velocity itself.
Both are divided by the root-mean-square speed of the *filtered* snapshot, which is known where only
filtered data exist: flows then look alike while they decay, and an error of 1 means 100 % of the
resolved speed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import h5py
import torch
from torch import Tensor

from parsl_rasda.data import ShardWriter
from parsl_rasda.errors import InvalidSettingError
from parsl_rasda.types import JSON
from turbulence import wave_numbers

SPLITS = ("train", "validation", "unseen")


def gaussian_filter(velocity: Tensor, width: float) -> Tensor:
    """Return the field behind a Gaussian filter, applied exactly in Fourier space.

    The transfer function is ``exp(-(k D)^2 / 24)``, D being the filter's width.

    Args:
        velocity: Periodic field, shape ``(..., grid, grid)``.
        width: D in grid spacings.

    Source:
        Pope 2000, *Turbulent Flows*, table 13.2 (after Leonard 1975).
    """
    grid = velocity.shape[-1]
    ky, kx = wave_numbers(grid)
    delta = width * 2 * math.pi / grid
    transfer = torch.exp(-(kx**2 + ky**2) * delta**2 / 24)
    filtered: Tensor = torch.fft.irfft2(torch.fft.rfft2(velocity.double()) * transfer, s=(grid, grid))
    return filtered.to(velocity.dtype)


def write_shards(
    fields: list[str],
    directory: str,
    *,
    filter_width: float = 8.0,
    validation_fraction: float = 0.125,
) -> dict[str, JSON]:
    """Write the shards of all splits and return where they are.

    The last of ``fields`` is held out whole: the *unseen* simulation. Of every other one, the last flows
    validate. Splits never share a flow: snapshots of one flow resemble each other.

    Args:
        fields: Files that `simulate` returned, two or more.
        directory: Where shards and index go; it exists.
        filter_width: Of the Gaussian, in grid spacings.
        validation_fraction: Part of the flows of a simulation that validate.

    Returns:
        ``index`` (path), ``samples`` (per split) and ``filtered_mse`` (per split: the error of
        doing nothing).

    Raises:
        InvalidSettingError: If there is nothing to hold out, or no flow to train or validate on.
    """
    if len(fields) < 2:
        raise InvalidSettingError("prepare.fields", fields, "two simulations or more: the last is held out")
    if not 0 < validation_fraction < 1:
        raise InvalidSettingError("prepare.validation_fraction", validation_fraction, "between 0 and 1")
    squares: dict[str, float] = dict.fromkeys(SPLITS, 0.0)
    with ShardWriter(directory, attributes={"filter_width": filter_width}) as shards:
        for number, field in enumerate(fields):
            for split, velocity in _splits(field, validation_fraction, held_out=number == len(fields) - 1):
                filtered, truth = _samples(velocity, filter_width)
                shards.write(split, filtered=filtered.numpy(), truth=truth.numpy())
                squares[split] += float(((filtered - truth) ** 2).mean()) * len(truth)
    return {
        "index": str(shards.index),
        "samples": {**shards.samples},
        "filtered_mse": {split: squares[split] / shards.samples[split] for split in SPLITS},
    }


def _splits(field: str, validation_fraction: float, *, held_out: bool) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and the velocity ``(flows, times, 2, grid, grid)`` of each split of one simulation."""
    with h5py.File(field, "r") as file:
        velocity = torch.from_numpy(file["velocity"][:])
    flows = len(velocity)
    training = flows - round(flows * validation_fraction)
    if held_out:
        yield "unseen", velocity
    elif not 0 < training < flows:
        allowed = f"a part of the {flows} flows in {field} that leaves some to train and some to validate"
        raise InvalidSettingError("prepare.validation_fraction", validation_fraction, allowed)
    else:
        yield "train", velocity[:training]
        yield "validation", velocity[training:]


def _samples(velocity: Tensor, filter_width: float) -> tuple[Tensor, Tensor]:
    """Return scaled filtered and true velocity, each ``(samples, 2, grid, grid)``."""
    truth = velocity.flatten(0, 1)
    filtered = gaussian_filter(truth, filter_width)
    speed = filtered.square().sum(dim=1, keepdim=True).mean(dim=(2, 3), keepdim=True).sqrt()
    return filtered / speed, truth / speed
