"""Train and test a network that reads laser speed and power off a film: replace it by your own.

`train` is called for every trial, on each of its ranks; `evaluate` once, with the best trial.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from parsl_rasda.runtime import Trial, load_model
from workflows.am_meltpool.dataset import NOMINAL, SIDE, Clips


class Reader(nn.Module):
    """Convolutions over frames, rows and columns, then what is seen at each place of the film."""

    def __init__(self, width: int, kernel_frames: int) -> None:
        """Build three convolutions; each halves rows and columns and doubles the channels."""
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((1, width), (width, 2 * width), (2 * width, 4 * width)):
            kernel, padding = (kernel_frames, 3, 3), (kernel_frames // 2, 1, 1)
            layers += [nn.Conv3d(inputs, outputs, kernel, stride=(2, 2, 2), padding=padding), nn.GELU()]
        self.see = nn.Sequential(*layers)
        places = math.ceil(SIDE / 8) ** 2
        self.read = nn.Linear(4 * width * places, 2)  # speed and power, over their nominal values
        nn.init.zeros_(self.read.weight)
        nn.init.ones_(self.read.bias)

    def forward(self, clips: Tensor) -> Tensor:
        """Return targets, shape ``(batch, 2)``, of clips, shape ``(batch, 1, frames, rows, columns)``."""
        targets: Tensor = self.read(self.see(clips).mean(dim=2).flatten(1))
        return targets


def train(trial: Trial) -> None:
    """Train a network of the trial's configuration and report `val_loss` after every epoch."""
    data: Any = trial.inputs["data"]  # what the stage `data` returned
    training, validation = Clips(data["index"], "train"), Clips(data["index"], "validation")
    model, _ = trial.prepare(
        Reader(trial.config["width"], trial.config["kernel_frames"]),
        lambda p, lr: torch.optim.AdamW(p, lr, weight_decay=trial.config["weight_decay"]),
        lr=trial.config["lr"],
    )
    for _ in trial.epochs():
        for clips, targets in trial.batches(training):
            trial.step(nn.functional.mse_loss(model(clips), targets))
        with torch.no_grad():
            errors = [squared_errors(model(clips), targets) for clips, targets in trial.shard(validation)]
        trial.report(val_loss=trial.mean(errors))


def evaluate(best: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, float]:
    """Return the root-mean-square errors of the best network on unseen objects, and its gain.

    Returns:
        ``speed_mm_s``, ``power_w``, and ``error_over_mean``: its mean square error over that of always
        guessing the mean of the training targets; below 1 it has learnt something.
    """
    clips = Clips(data["index"], "test")
    model = Reader(best["config"]["width"], best["config"]["kernel_frames"])
    load_model(best["checkpoint"], model)
    model.eval()
    with torch.no_grad():
        predicted = torch.cat([model(clips.read([i])[0]) for i in range(len(clips))])
    errors = (predicted - clips.targets).square()
    speed, power = (errors.mean(dim=0).sqrt() * torch.tensor(NOMINAL)).tolist()
    gain = float(errors.mean()) / data["mean_mse"]["test"]
    return {"speed_mm_s": speed, "power_w": power, "error_over_mean": gain}


def squared_errors(predicted: Tensor, targets: Tensor) -> Tensor:
    """Return the mean square error of each clip, shape ``(batch,)``."""
    return (predicted - targets).square().mean(dim=1)
