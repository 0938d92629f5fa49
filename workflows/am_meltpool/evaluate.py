"""The `evaluate` stage: what the best network is worth on clips that nothing was tuned on."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from dataset import NOMINAL, TARGETS, UNITS, Clips
from models import build
from parsl_rasda.runtime import load_model
from parsl_rasda.types import JSON

BATCH = 32


def evaluate(best: Mapping[str, Any], data: Mapping[str, Any], directory: str) -> dict[str, JSON]:
    """Return the errors of the best network beside those of predicting the mean, and draw its predictions.

    Args:
        best: The best trial: ``trial, metric, epoch, config, checkpoint``.
        data: What `write_index` returned.
        directory: Where picture and predictions go; it exists.

    Returns:
        For validation and test (``val_``, ``test_``): ``mean_mse, best_mse, ratio`` (normalised; a ratio of 1
        is as good as predicting the mean of the training targets). On the test clips, ``speed`` and
        ``power``: root-mean-square and mean absolute error in their units, and ``r2``. ``picture``: a PNG
        with a parity plot per target. ``predictions``: a CSV file of the unlabelled scan lines, or None if
        there are none.
    """
    model = build(best["config"])
    load_model(best["checkpoint"], model)
    model.eval()
    result: dict[str, JSON] = {}
    for name, split in (("val", "validation"), ("test", "test")):
        clips = Clips(data["index"], split)
        mse = float((predict(model, clips) - clips.targets).square().mean())
        mean_mse = data["mean_mse"][split]
        result |= {f"{name}_mean_mse": mean_mse, f"{name}_best_mse": mse, f"{name}_ratio": mse / mean_mse}

    test = Clips(data["index"], "test")
    nominal = torch.tensor(NOMINAL)
    predicted, truth = predict(model, test) * nominal, test.targets * nominal
    for k, name in enumerate(TARGETS):
        result[name] = {**_errors(predicted[:, k], truth[:, k])}
    picture = Path(directory) / "parity.png"
    _draw(predicted, truth, title=_title(best, len(test)), path=picture)
    result["picture"] = str(picture)

    unlabelled = Clips(data["index"], "unlabelled")
    result["predictions"] = None
    if len(unlabelled):
        table = Path(directory) / "predictions.csv"
        _write(table, unlabelled, predict(model, unlabelled) * nominal)
        result["predictions"] = str(table)
    return result


def predict(model: nn.Module, clips: Clips) -> Tensor:
    """Return the normalised speed and power of each clip, shape ``(clips, 2)``."""
    with torch.no_grad():
        parts = [range(n, min(n + BATCH, len(clips))) for n in range(0, len(clips), BATCH)]
        return torch.cat([model(batch) for batch, _ in clips.stream(parts)])


def _errors(predicted: Tensor, truth: Tensor) -> dict[str, float]:
    error = (predicted - truth).double()
    scatter = (truth - truth.mean()).double().square().mean()
    return {
        "rmse": float(error.square().mean().sqrt()),
        "mae": float(error.abs().mean()),
        "r2": float(1 - error.square().mean() / scatter),
    }


def _title(best: Mapping[str, Any], clips: int) -> str:
    model = best["config"]["model"]
    return f"{clips} unseen scan lines, by trial {best['trial']} ({model}, epoch {best['epoch']})"


def _draw(predicted: Tensor, truth: Tensor, *, title: str, path: Path) -> None:
    """Write a parity plot of each target; both are ``(clips, 2)`` in units of the targets."""
    # A Figure of its own, not pyplot: no window, no global state, safe in any thread of a worker.
    figure = Figure(figsize=(11, 5.5), layout="constrained")
    figure.suptitle(title)
    axes: Any = figure.subplots(1, len(TARGETS))  # an array; matplotlib is not checked
    for k, axis in enumerate(axes):
        true, guess = truth[:, k].numpy(), predicted[:, k].numpy()
        low, high = float(min(true.min(), guess.min())), float(max(true.max(), guess.max()))
        errors = _errors(predicted[:, k], truth[:, k])
        axis.plot([low, high], [low, high], color="black", linewidth=1, label="exact")
        axis.axhline(true.mean(), color="tab:orange", linestyle="--", linewidth=1, label="mean")
        axis.scatter(true, guess, s=14, color="tab:blue", alpha=0.7, label="network")
        axis.set(
            title=f"{TARGETS[k]}: RMSE {errors['rmse']:.3g} {UNITS[k]}, R² {errors['r2']:.2f}",
            xlabel=f"true {TARGETS[k]} [{UNITS[k]}]",
            ylabel=f"predicted {TARGETS[k]} [{UNITS[k]}]",
            aspect="equal",
        )
        axis.legend(loc="upper left")
    figure.savefig(path, dpi=110)


def _write(path: Path, clips: Clips, predicted: Tensor) -> None:
    """Write what the network says about scan lines whose laser parameters nobody told."""
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["object", "layer", "scan_line", "speed_mm_s", "power_w"])
        for line, (speed, power) in zip(clips.lines, predicted.tolist(), strict=True):
            layer = line.group.rpartition("/")[2]
            table.writerow([line.object_name, layer, line.line, f"{speed:.2f}", f"{power:.2f}"])
