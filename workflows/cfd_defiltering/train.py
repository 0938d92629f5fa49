"""The `tune` stage: train one configuration, the same at any world size and on any site."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from model import build, mean_square_error, sample_errors
from parsl_rasda.data import open_shards
from parsl_rasda.runtime import Trial


def train(trial: Trial) -> None:
    """Train a network of the trial's configuration and report ``val_loss`` after every epoch.

    ``val_loss`` is the mean square error over points and components of the validation samples. Training
    minimises the error of each sample relative to that of its filtered input: calm flows count as much
    as lively ones, and a learning rate means the same at any filter width.
    """
    data: Any = trial.inputs["data"]  # plain JSON, made by `prepare.write_shards`
    training, validation = (open_shards(data["index"], split=split) for split in ("train", "validation"))
    model, _ = trial.prepare(
        build(trial.config),
        lambda parameters, lr: build_optimizer(trial.config, parameters, lr),
        lr=trial.config["lr"],
    )
    for _ in trial.epochs():
        for filtered, truth in trial.batches(training):
            doing_nothing = mean_square_error(filtered, truth)
            trial.step((mean_square_error(model(filtered), truth) / doing_nothing).mean())
        trial.report(val_loss=trial.mean(sample_errors(model, trial.shard(validation))))


def build_optimizer(
    config: Mapping[str, Any], parameters: list[nn.Parameter], lr: float
) -> torch.optim.Optimizer:
    """Return the optimizer that the configuration names, with its weight decay and momentum."""
    if config["optimizer"] == "sgd":
        return torch.optim.SGD(
            parameters, lr, momentum=config["momentum"], weight_decay=config["weight_decay"]
        )
    return torch.optim.AdamW(parameters, lr, weight_decay=config["weight_decay"])
