"""One snapshot as a picture: vorticity, the errors of the velocity, energy spectra."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from turbulence import energy_spectrum, wave_numbers

COLOURS = {"truth": "black", "filtered": "tab:orange", "network": "tab:blue"}
SPECTRUM_FLOOR = 1e-6  # of the largest value: below it there is only rounding


def draw(truth: Tensor, filtered: Tensor, prediction: Tensor, *, title: str, path: Path) -> None:
    """Write a PNG of one snapshot.

    Args:
        truth: Velocity ``(2, grid, grid)``, in units of the filtered root-mean-square speed.
        filtered: The network's input, same shape and unit.
        prediction: The network's output, same shape and unit.
        title: Of the whole picture.
        path: Where it goes.
    """
    # A Figure of its own, not pyplot: no window, no global state, safe in any thread of a worker.
    figure = Figure(figsize=(12, 8), layout="constrained")
    figure.suptitle(title)
    parts: Any = figure.subfigures(2, 1)  # an array; matplotlib types it as one SubFigure
    upper, lower = parts
    fields = {"truth": truth, "filtered": filtered, "network": prediction}

    vorticities = {f"vorticity: {name}": vorticity(velocity) for name, velocity in fields.items()}
    largest = float(vorticities["vorticity: truth"].abs().max())
    colours: dict[str, str | float] = {"cmap": "RdBu_r", "vmin": -largest, "vmax": largest}
    _show(upper, upper.subplots(1, 3), vorticities, colours, "vorticity / filtered rms speed")

    errors = {}
    for name in ("filtered", "network"):
        error = (fields[name] - truth).square().sum(dim=0)
        errors[f"velocity error: {name} (MSE {float(error.mean()) / 2:.2g})"] = error.sqrt()
    colours = {"cmap": "viridis", "vmin": 0.0, "vmax": max(float(e.max()) for e in errors.values())}
    *axes, last = lower.subplots(1, 3)
    _show(lower, axes, errors, colours, "|velocity error| / filtered rms speed")

    for name, velocity in fields.items():
        spectrum = energy_spectrum(velocity).numpy()
        last.loglog(range(1, len(spectrum)), spectrum[1:], color=COLOURS[name], label=name)
    highest = float(energy_spectrum(truth).max())
    last.set(title="energy spectrum", xlabel="wave number k", ylabel="E(k)")
    last.set_ylim(SPECTRUM_FLOOR * highest, 3 * highest)
    last.legend()
    figure.savefig(path, dpi=110)


def _show(
    part: Any,  # a SubFigure, and Axes: matplotlib is not checked
    axes: Sequence[Any],
    images: Mapping[str, Tensor],
    colours: Mapping[str, str | float],
    label: str,
) -> None:
    """Draw fields of the box side by side, under one colour scale."""
    side = 2 * math.pi
    drawn = [
        axis.imshow(values.numpy(), origin="lower", extent=(0.0, side, 0.0, side), **colours)
        for axis, values in zip(axes, images.values(), strict=True)
    ]
    for axis, title in zip(axes, images, strict=True):
        axis.set(title=title, xlabel="x", ylabel="y")
    part.colorbar(drawn[0], ax=axes, label=label)


def vorticity(velocity: Tensor) -> Tensor:
    """Return ``dv/dx - du/dy``, shape ``(grid, grid)``, of a periodic velocity ``(2, grid, grid)``."""
    grid = velocity.shape[-1]
    ky, kx = wave_numbers(grid)
    u_hat, v_hat = torch.fft.rfft2(velocity.double())
    curl: Tensor = torch.fft.irfft2(1j * kx * v_hat - 1j * ky * u_hat, s=(grid, grid))
    return curl
