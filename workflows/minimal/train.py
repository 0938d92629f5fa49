"""Train a small network on made-up data: replace the model and the data by your own.

Nothing here knows how many GPUs there are: the trial carries model and batches to the right devices,
adds gradients up, scales the learning rate, and saves and resumes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from parsl_rasda.runtime import Trial


def train(trial: Trial) -> None:
    """Fit a network of the trial's configuration and report `val_loss` after every epoch."""
    training, validation = samples(4096, seed=0), samples(1024, seed=1)
    model, _ = trial.prepare(
        network(trial.config["width"]), lambda p, lr: optimizer(trial, p, lr), lr=trial.config["lr"]
    )
    for _ in trial.epochs():
        for x, y in trial.batches(training):
            trial.step(nn.functional.mse_loss(model(x), y))
        with torch.no_grad():
            errors = [(model(x) - y).square() for x, y in trial.shard(validation)]
        trial.report(val_loss=trial.mean(errors))


def network(width: int) -> nn.Module:
    """Return an untrained network."""
    return nn.Sequential(
        nn.Linear(2, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1)
    )


def optimizer(trial: Trial, parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """Return the optimizer that the configuration names."""
    if trial.config["optimizer"] == "sgd":
        return torch.optim.SGD(parameters, lr, momentum=trial.config["momentum"])
    return torch.optim.AdamW(parameters, lr)


def samples(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return points of a wavy surface: positions, shape ``(count, 2)``, and heights, ``(count, 1)``."""
    x = torch.rand(count, 2, generator=torch.Generator().manual_seed(seed)) * 4 - 2
    return x, torch.sin(2 * x[:, :1]) * torch.cos(x[:, 1:])
