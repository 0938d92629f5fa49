"""The `tune` stage: train one configuration, the same at any world size and on any site."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fields import open_fields
from model import build, sample_errors
from parsl_rasda.runtime import Trial

# AdamW is an Adam.
OPTIMIZERS: dict[str, type[torch.optim.Adam]] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
SMALLEST = 1e-6  # variance; of fields that fill [-1, 1], only one that is constant has less


def train(trial: Trial) -> None:
    """Train an autoencoder of the trial's configuration and report ``val_loss`` after every epoch.

    ``val_loss`` is the mean square error of the reconstruction over points and components of the validation
    samples, whose components fill [-1, 1]. Training minimises the error of each sample relative to its
    variance: 1 is the error of the mean, whatever the flow, and a learning rate means the same for all.
    """
    data: Any = trial.inputs["data"]  # plain JSON, made by a `prepare` stage
    training, validation = open_fields(data, "train"), open_fields(data, "validation")
    model, _ = trial.prepare(
        build(trial.config, data["shape"][0]),
        lambda parameters, lr: build_optimizer(trial.config, parameters, lr),
        lr=trial.config["lr"],
    )
    for _ in trial.epochs():
        for field in trial.batches(training, torch.Tensor.float):
            error = (model(field) - field).square().mean(dim=(1, 2, 3))
            trial.step((error / field.var(dim=(1, 2, 3)).clamp(min=SMALLEST)).mean())
        trial.report(val_loss=trial.mean(sample_errors(model, trial.shard(validation))))


def build_optimizer(
    config: Mapping[str, Any], parameters: list[nn.Parameter], lr: float
) -> torch.optim.Optimizer:
    """Return the optimizer that the configuration names, with its weight decay."""
    return OPTIMIZERS[config["optimizer"]](parameters, lr=lr, weight_decay=config["weight_decay"])
