"""The `evaluate` stage: what the best network is worth on flows that nothing was tuned on, and a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model import build, sample_errors
from parsl_rasda.data import open_shards
from parsl_rasda.runtime import load_model
from parsl_rasda.types import JSON
from picture import draw


def evaluate(best: Mapping[str, Any], data: Mapping[str, Any], directory: str) -> dict[str, JSON]:
    """Return the errors of the best network beside those of the filtered input, and draw a flow.

    Args:
        best: The best trial: ``trial, metric, epoch, config, checkpoint``.
        data: What `write_shards` returned.
        directory: Where the picture goes; it exists.

    Returns:
        ``filtered_val_mse, best_val_mse, val_ratio`` on the validation flows, ``unseen_filtered_mse,
        unseen_model_mse, unseen_ratio`` on the unseen ones (a ratio of 1 is as good as doing nothing), and
        ``picture``, the path of a PNG that shows the unseen snapshot of median error.
    """
    model = build(best["config"])
    load_model(best["checkpoint"], model)
    model.eval()
    validation, unseen = (open_shards(data["index"], split=split) for split in ("validation", "unseen"))
    # The network that does nothing is the one to beat.
    val_filtered, val_model = (_mean(sample_errors(m, validation.blocks())) for m in (nn.Identity(), model))
    unseen_filtered = _mean(sample_errors(nn.Identity(), unseen.blocks()))
    unseen_errors = sample_errors(model, unseen.blocks())
    unseen_model = _mean(unseen_errors)

    filtered, truth = unseen.read([int(unseen_errors.argsort()[len(unseen) // 2])])
    with torch.no_grad():
        prediction = model(filtered)
    picture = Path(directory) / "picture.png"
    title = (
        f"An unseen flow, defiltered by trial {best['trial']} (epoch {best['epoch']}): "
        f"{unseen_model / unseen_filtered:.0%} of the mean square error is left"
    )
    draw(truth[0], filtered[0], prediction[0], title=title, path=picture)
    return {
        "filtered_val_mse": val_filtered,
        "best_val_mse": val_model,
        "val_ratio": val_model / val_filtered,
        "unseen_filtered_mse": unseen_filtered,
        "unseen_model_mse": unseen_model,
        "unseen_ratio": unseen_model / unseen_filtered,
        "picture": str(picture),
    }


def _mean(values: Tensor) -> float:
    return float(values.double().mean())
