"""A confusion matrix as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

FEW = 20  # classes whose names and numbers can still be read


def draw(matrix: Tensor, classes: Sequence[str], *, title: str, path: Path) -> None:
    """Write a PNG of a confusion matrix; colours are parts of the images of a class.

    Args:
        matrix: Images of each class (rows) that were taken for each class (columns).
        classes: Their names.
        title: Of the picture.
        path: Where it goes.
    """
    shares = matrix / matrix.sum(dim=1, keepdim=True).clamp(min=1)
    # A Figure of its own, not pyplot: no window, no global state, safe in any thread of a worker.
    figure = Figure(figsize=(7.5, 6.5), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(shares.numpy(), cmap="Blues", vmin=0.0, vmax=1.0, interpolation="nearest")
    axis.set(title=title, xlabel="guessed class", ylabel="true class")
    figure.colorbar(image, ax=axis, label="part of the images of the class")
    if len(classes) <= FEW:
        places = range(len(classes))
        axis.set_xticks(places, classes)
        axis.set_yticks(places, classes)
        for true, guess in matrix.nonzero().tolist():
            colour = "white" if shares[true, guess] > 0.5 else "black"
            axis.text(guess, true, str(int(matrix[true, guess])), ha="center", va="center", color=colour)
    figure.savefig(path, dpi=110)
