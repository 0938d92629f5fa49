"""The `tune` stage: train one configuration, the same at any world size and on any site."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from digits import read_digits
from image_folder import ImageFolder
from image_records import ImageRecords
from model import build, predictions
from parsl_rasda.runtime import Trial


def train(trial: Trial) -> None:
    """Train a network of the trial's configuration and report ``val_error`` after every epoch.

    ``val_error`` is the part of the validation images that are taken for another class.

    Args:
        trial: Its configuration has ``network, activation, optimizer, lr, weight_decay``, and for image files
            ``pixels`` and ``readers``, the processes a rank that decode files while it computes.
    """
    data: Any = trial.inputs["data"]  # plain JSON, made by `digits` or `prepare`
    training, validation = split_of(data, "train", trial.config), split_of(data, "validation", trial.config)
    model, _ = trial.prepare(
        build(trial.config, data),
        lambda parameters, lr: build_optimizer(trial.config, parameters, lr),
        lr=trial.config["lr"],
    )
    readers = 0 if isinstance(training, tuple) else trial.config["readers"]
    for _ in trial.epochs():
        for images, labels in trial.batches(training, workers=readers):
            trial.step(cross_entropy(model(images), labels))
        guesses, labels = predictions(model, trial.shard(validation))
        trial.report(val_error=trial.mean((guesses != labels).double()))


def split_of(
    data: Mapping[str, Any], split: str, config: Mapping[str, Any]
) -> tuple[Tensor, Tensor] | ImageFolder | ImageRecords:
    """Return the images and classes of a split, as a data set for `Trial.batches`.

    Args:
        data: What a `prepare` stage returned.
        split: ``train``, ``validation`` or ``test``.
        config: The hyperparameters; image files are read with ``pixels`` in height and width.
    """
    if data["kind"] == "digits":
        return read_digits(data["path"], split)
    if data["kind"] == "records":
        return ImageRecords(data["path"], split, pixels=config["pixels"], classes=len(data["classes"]))
    return ImageFolder(data["path"], split, pixels=config["pixels"])


def build_optimizer(
    config: Mapping[str, Any], parameters: list[nn.Parameter], lr: float
) -> torch.optim.Optimizer:
    """Return the optimizer that the configuration names, with its weight decay."""
    if config["optimizer"] == "sgd":
        return torch.optim.SGD(parameters, lr, momentum=0.9, weight_decay=config["weight_decay"])
    return torch.optim.Adam(parameters, lr, weight_decay=config["weight_decay"])
