"""The `tune` stage: train one configuration, the same at any world size and on any site."""

from __future__ import annotations

from typing import Any

import torch

from dataset import Clips
from models import build, sample_errors
from parsl_rasda.runtime import Trial


def train(trial: Trial) -> None:
    """Train a network of the trial's configuration and report ``val_loss`` after every epoch.

    ``val_loss`` is the mean square error of normalised speed and power on the validation clips; the test
    clips are left to `evaluate`. Every ``step`` epochs the learning rate is multiplied by ``gamma``.
    """
    data: Any = trial.inputs["data"]  # plain JSON, made by `dataset.write_index`
    training, validation = Clips(data["index"], "train"), Clips(data["index"], "validation")
    step, gamma = trial.config["step"], trial.config["gamma"]
    model, _ = trial.prepare(
        build(trial.config),
        lambda parameters, lr: torch.optim.AdamW(parameters, lr, weight_decay=trial.config["weight_decay"]),
        lr=trial.config["lr"],
        schedule=lambda position: float(gamma ** (position // step)),
    )
    for _ in trial.epochs():
        for clips, targets in trial.batches(training):
            trial.step((model(clips) - targets).square().mean())
        trial.report(val_loss=trial.mean(sample_errors(model, trial.shard(validation))))
