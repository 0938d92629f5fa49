"""Samples as pictures: one component of the field, two reconstructions, and where they are wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

COLUMNS = ("truth", "autoencoder", "PCA", "error: autoencoder", "error: PCA")


@dataclass(frozen=True, slots=True)
class Example:
    """A sample, ``(components, height, width)``, and what two methods make of it."""

    label: str
    truth: Tensor
    autoencoder: Tensor
    pca: Tensor


def draw(examples: Sequence[Example], *, title: str, path: Path) -> None:
    """Write a PNG with a row for each example: its first component, scaled to [-1, 1], and errors.

    Args:
        examples: One at least.
        title: Of the whole picture.
        path: Where it goes.
    """
    # A Figure of its own, not pyplot: no window, no global state, safe in any thread of a worker.
    figure = Figure(figsize=(15, 3.1 * len(examples) + 0.6), layout="constrained")
    figure.suptitle(title)
    grid = figure.subplots(len(examples), len(COLUMNS), squeeze=False)
    for axes, example in zip(grid, examples, strict=True):
        fields = [e[0].numpy() for e in (example.truth, example.autoencoder, example.pca)]
        errors = [field - fields[0] for field in fields[1:]]
        largest = max(abs(error).max() for error in errors)
        for number, (axis, values) in enumerate(zip(axes, [*fields, *errors], strict=True)):
            is_error = number >= len(fields)
            limit, colours = (largest, "PuOr") if is_error else (1.0, "RdBu_r")
            image = axis.imshow(values, origin="lower", cmap=colours, vmin=-limit, vmax=limit)
            name = COLUMNS[number]
            if is_error:
                name += f"\nmean square {(values**2).mean():.2g}"
            axis.set(title=name, xticks=[], yticks=[])
            if number in {len(fields) - 1, len(COLUMNS) - 1}:
                figure.colorbar(image, ax=axis, shrink=0.8)
        axes[0].set_ylabel(f"{example.label}, component 1")
    figure.savefig(path, dpi=100)
