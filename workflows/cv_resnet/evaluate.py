"""The `evaluate` stage: what the best network is worth on the test half, and its confusion matrix."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from image_folder import ImageFolder
from image_records import ImageRecords
from model import build, predictions
from parsl_rasda.runtime import load_model
from parsl_rasda.types import JSON
from picture import draw
from train import split_of

BATCH = 64  # images
CONFUSIONS = 5  # that are named


def evaluate(best: Mapping[str, Any], data: Mapping[str, Any], directory: str) -> dict[str, JSON]:
    """Return the error of the best network on images that decided nothing, and draw its confusions.

    Args:
        best: The best trial: ``trial, metric, epoch, config, checkpoint``.
        data: What a `prepare` stage returned.
        directory: Where the picture goes; it exists.

    Returns:
        ``val_error`` (it chose the trial, so it flatters), ``test_error``, ``test_samples``, ``confusions``
        (the most frequent: ``[true class, guessed class, images]``) and ``picture``, the path of a PNG.
    """
    config, classes = best["config"], data["classes"]
    model = build(config, data)
    load_model(best["checkpoint"], model)
    model.eval()
    validation, test = (
        confusion_matrix(*predictions(model, batches(split_of(data, split, config))), len(classes))
        for split in ("validation", "test")
    )
    error = error_of(test)
    picture = Path(directory) / "picture.png"
    title = f"Test half, trial {best['trial']} (epoch {best['epoch']}): error {error:.1%}"
    draw(test, classes, title=title, path=picture)
    return {
        "val_error": error_of(validation),
        "test_error": error,
        "test_samples": int(test.sum()),
        "confusions": [[classes[true], classes[guess], n] for true, guess, n in confusions(test)],
        "picture": str(picture),
    }


def confusion_matrix(guesses: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return how often each class (rows) was taken for each class (columns), ``(classes, classes)``."""
    return torch.bincount(labels * classes + guesses, minlength=classes**2).reshape(classes, classes)


def error_of(matrix: Tensor) -> float:
    """Return the part of the images that were taken for another class."""
    return 1 - float(matrix.trace()) / float(matrix.sum())


def confusions(matrix: Tensor) -> list[tuple[int, int, int]]:
    """Return the most frequent confusions as (true class, guessed class, images), at most `CONFUSIONS`."""
    wrong = matrix.clone().fill_diagonal_(0)
    order = wrong.flatten().argsort(descending=True, stable=True)[:CONFUSIONS].tolist()
    pairs = [divmod(number, len(matrix)) for number in order]
    return [(true, guess, int(wrong[true, guess])) for true, guess in pairs if wrong[true, guess]]


def batches(
    dataset: tuple[Tensor, Tensor] | ImageFolder | ImageRecords,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield all images and classes of a split in order, `BATCH` at a time."""
    if not isinstance(dataset, tuple):
        for start in range(0, len(dataset), BATCH):
            yield dataset.read(range(start, min(start + BATCH, len(dataset))))
    else:
        images, labels = dataset
        for start in range(0, len(labels), BATCH):
            yield images[start : start + BATCH], labels[start : start + BATCH]
