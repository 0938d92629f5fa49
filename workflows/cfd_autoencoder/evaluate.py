"""The `evaluate` stage: the best autoencoder beside PCA of the same latent size, on unseen flows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fields import SPLITS, open_fields
from model import build, sample_errors
from parsl_rasda.runtime import load_model
from parsl_rasda.types import JSON
from picture import Example, draw

EXAMPLES = 3  # samples in the picture


def principal_components(samples: Tensor, size: int) -> Callable[[Tensor], Tensor]:
    """Return the linear reconstruction from ``size`` numbers that is best for these samples.

    Args:
        samples: Shape ``(samples, ...)``; fewer samples have fewer components.
        size: Numbers kept of each sample.
    """
    flat = samples.flatten(1)
    mean = flat.mean(dim=0)
    components = torch.linalg.svd(flat - mean, full_matrices=False).Vh[:size]

    def reconstructed(batch: Tensor) -> Tensor:
        nearest: Tensor = mean + (batch.flatten(1) - mean) @ components.T @ components
        return nearest.reshape(batch.shape)

    return reconstructed


def evaluate(
    best: Mapping[str, Any], data: Mapping[str, Any], directory: str, *, pca_samples: int = 2048
) -> dict[str, JSON]:
    """Return the reconstruction errors of the best autoencoder and of PCA, and draw examples.

    Args:
        best: The best trial: ``trial, metric, epoch, config, checkpoint``.
        data: What a `prepare` stage returned, see `fields`.
        directory: Where the picture goes; it exists.
        pca_samples: At most so many training samples, drawn at random, make the components; with fewer than
            ``latent_size``, PCA keeps as many numbers as there are samples.

    Returns:
        ``latent_size``, ``compression`` (numbers of a sample over numbers kept), ``val_mse, val_pca_mse,
        val_ratio`` on the validation flows, ``unseen_mse, unseen_pca_mse, unseen_ratio`` on those that
        nothing was tuned on (a ratio below 1 beats PCA), ``unseen_by_label`` (both errors of each kind of
        flow) and ``picture``, the path of a PNG of unseen snapshots.
    """
    training, validation, unseen = (open_fields(data, split) for split in SPLITS)
    model = build(best["config"], data["shape"][0])
    load_model(best["checkpoint"], model)
    model.eval()
    size = model.latent_size(data["shape"])
    drawn = torch.randperm(len(training), generator=torch.Generator().manual_seed(0))[:pca_samples]
    pca = principal_components(training.read(drawn.tolist()).float(), size)
    val, val_pca = (_mean(sample_errors(m, validation.blocks())) for m in (model, pca))
    errors, pca_errors = (sample_errors(m, unseen.blocks()) for m in (model, pca))
    by_label: dict[str, JSON] = {}
    examples: list[Example] = []
    flows = torch.cat(list(open_fields(data, "unseen", "flow").blocks()))
    for flow in sorted(set(flows.tolist())):
        label, members = data["labels"][flow], (flows == flow).nonzero().flatten()
        by_label[label] = {"mse": _mean(errors[members]), "pca_mse": _mean(pca_errors[members])}
        typical = int(members[errors[members].argsort()[len(members) // 2]])
        if len(examples) < EXAMPLES:
            truth = unseen.read([typical]).float()
            with torch.no_grad():
                examples.append(Example(label, truth[0], model(truth)[0], pca(truth)[0]))
    unseen_mse, unseen_pca = _mean(errors), _mean(pca_errors)
    picture = Path(directory) / "picture.png"
    title = (
        f"Unseen flows from {size} numbers each: trial {best['trial']} (epoch {best['epoch']}) leaves "
        f"{unseen_mse / unseen_pca:.0%} of the mean square error of PCA"
    )
    draw(examples, title=title, path=picture)
    return {
        "latent_size": size,
        "compression": math.prod(data["shape"]) / size,
        "val_mse": val,
        "val_pca_mse": val_pca,
        "val_ratio": val / val_pca,
        "unseen_mse": unseen_mse,
        "unseen_pca_mse": unseen_pca,
        "unseen_ratio": unseen_mse / unseen_pca,
        "unseen_by_label": by_label,
        "picture": str(picture),
    }


def _mean(values: Tensor) -> float:
    return float(values.double().mean())
