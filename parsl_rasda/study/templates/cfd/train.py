"""Train and test a network that restores filtered velocity fields: replace it by your own.

`train` is called for every trial, on each of its ranks; `evaluate` once, with the best trial.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from parsl_rasda.data import open_shards
from parsl_rasda.runtime import Trial, load_model


class Correction(nn.Module):
    """``u = filtered + net(filtered)`` on a periodic box."""

    def __init__(self, width: int) -> None:
        """Build three convolutions with ``width`` channels between them."""
        super().__init__()
        sizes = [(2, width), (width, width), (width, 2)]
        layers = [nn.Conv2d(a, b, 5, padding=2, padding_mode="circular") for a, b in sizes]
        self.net = nn.Sequential(layers[0], nn.GELU(), layers[1], nn.GELU(), layers[2])

    def forward(self, filtered: Tensor) -> Tensor:
        """Return the velocity, shape ``(batch, 2, grid, grid)`` as the filtered one."""
        corrected: Tensor = filtered + self.net(filtered)
        return corrected


def train(trial: Trial) -> None:
    """Train a network of the trial's configuration and report `val_loss` after every epoch."""
    data: Any = trial.inputs["data"]  # what the stage `prepare` returned
    training, validation = (open_shards(data["index"], split=split) for split in ("train", "validation"))
    model, _ = trial.prepare(
        Correction(trial.config["width"]), lambda p, lr: optimizer(trial, p, lr), lr=trial.config["lr"]
    )
    for _ in trial.epochs():
        for filtered, truth in trial.batches(training):
            trial.step(nn.functional.mse_loss(model(filtered), truth))
        with torch.no_grad():
            errors = [squared_errors(model(filtered), truth) for filtered, truth in trial.shard(validation)]
        trial.report(val_loss=trial.mean(errors))


def evaluate(best: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, float]:
    """Return the error of the best network on unseen flows, and that of the filtered input."""
    model = Correction(best["config"]["width"])
    load_model(best["checkpoint"], model)
    model.eval()
    unseen = list(open_shards(data["index"], split="unseen").blocks())
    with torch.no_grad():
        network = torch.cat([squared_errors(model(filtered), truth) for filtered, truth in unseen])
    nothing = torch.cat([squared_errors(filtered, truth) for filtered, truth in unseen])
    return {"network": float(network.mean()), "nothing": float(nothing.mean())}


def squared_errors(prediction: Tensor, truth: Tensor) -> Tensor:
    """Return the mean square error of each sample, shape ``(batch,)``."""
    return (prediction - truth).square().mean(dim=(1, 2, 3))


def optimizer(trial: Trial, parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """Return the optimizer that the configuration names."""
    if trial.config["optimizer"] == "sgd":
        return torch.optim.SGD(parameters, lr, momentum=trial.config["momentum"])
    return torch.optim.AdamW(parameters, lr)
