"""What a `tune` stage hands to the next one, made of a trial that trained in this process."""

from __future__ import annotations

from typing import Any

from parsl_rasda.runtime import Trial


def best_of(trial: Trial, metric: str = "val_loss") -> dict[str, Any]:
    """Return the trial as the best of its search."""
    last = trial.history[-1]
    return {
        "trial": "t0",
        "metric": last.metrics[metric],
        "epoch": last.epoch,
        "config": dict(trial.config),
        "checkpoint": last.checkpoint.path,
    }
