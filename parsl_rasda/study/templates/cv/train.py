"""Train and test a network that tells classes of images: replace images and network by your own.

`draw` makes the images once; `train` is called for every trial, on each of its ranks; `evaluate` once,
with the best trial.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from parsl_rasda.runtime import Trial, load_model

CLASSES = ("disc", "ring", "plus", "cross")
THICKNESS = 0.25  # of lines, over the size of a shape
ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}
Images = tuple[Tensor, Tensor]  # images, shape (n, 1, pixels, pixels), and their classes, shape (n,)


def draw(count: int, pixels: int, noise: float, directory: str) -> dict[str, Any]:
    """Draw noisy shapes, and return where they are: ``images`` (path), and ``classes`` (names)."""
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % len(CLASSES)
    centre = torch.rand(count, 2, 1, 1, generator=random) * 0.6 - 0.3
    size = torch.rand(count, 1, 1, generator=random) * 0.3 + 0.4
    line = torch.linspace(-1, 1, pixels)
    x, y = (line[None, None, :] - centre[:, 0]) / size, (line[None, :, None] - centre[:, 1]) / size
    radius = (x**2 + y**2).sqrt()
    upright = torch.minimum(x.abs(), y.abs()) < THICKNESS
    diagonal = torch.minimum((x - y).abs(), (x + y).abs()) < THICKNESS * 2**0.5
    inside, outside = radius < 1, radius > 1 - THICKNESS
    shapes = (inside, inside & outside, inside & upright, inside & diagonal)
    images = torch.stack([shape.float() for shape in shapes])[labels, torch.arange(count)]
    images += noise * torch.randn(images.shape, generator=random)
    order = torch.randperm(count, generator=random)
    file = Path(directory) / "images.pt"
    torch.save({"images": images[order, None], "labels": labels[order]}, file)
    return {"images": str(file), "classes": list(CLASSES)}


def split_of(data: Mapping[str, Any], name: str) -> Images:
    """Return the images of a split: ``train``, ``validation`` (a sixth) or ``test`` (a sixth)."""
    found = torch.load(data["images"], weights_only=True)
    held_back = len(found["labels"]) // 6
    begin, end = {
        "train": (2 * held_back, None),
        "validation": (0, held_back),
        "test": (held_back, 2 * held_back),
    }[name]
    return found["images"][begin:end], found["labels"][begin:end]


class Block(nn.Module):
    """Two convolutions beside a shortcut; halves rows and columns.

    Normalised over the channels of each image: unlike batch statistics, that is the same at any number
    of replicas.
    """

    def __init__(self, inputs: int, outputs: int, activation: str) -> None:
        """Build the layers."""
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride=2, padding=1),
            nn.GroupNorm(1, outputs),
            ACTIVATIONS[activation](),
            nn.Conv2d(outputs, outputs, 3, padding=1),
        )
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=2)

    def forward(self, images: Tensor) -> Tensor:
        """Return features, shape ``(batch, outputs, pixels / 2, pixels / 2)``."""
        features: Tensor = self.body(images) + self.shortcut(images)
        return features


def build(config: Mapping[str, Any], classes: int) -> nn.Module:
    """Return the untrained network of a configuration: two blocks, the mean, and a linear layer."""
    width, activation = config["width"], config["activation"]
    blocks = (Block(1, width, activation), Block(width, 2 * width, activation), nn.AdaptiveAvgPool2d(1))
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(2 * width, classes))


def train(trial: Trial) -> None:
    """Train a network of the trial's configuration and report `val_accuracy` after every epoch."""
    data: Any = trial.inputs["data"]  # what the stage `prepare` returned
    training, validation = split_of(data, "train"), split_of(data, "validation")
    model, _ = trial.prepare(
        build(trial.config, len(data["classes"])),
        lambda p, lr: optimizer(trial, p, lr),
        lr=trial.config["lr"],
    )
    augment = mirrored if trial.config["flips"] else None
    for _ in trial.epochs():
        for images, labels in trial.batches(training, augment):
            trial.step(nn.functional.cross_entropy(model(images), labels))
        with torch.no_grad():
            hits = [correct(model(images), labels) for images, labels in trial.shard(validation)]
        trial.report(val_accuracy=trial.mean(hits))


def mirrored(batch: Images) -> Images:
    """Return a batch half of which is mirrored at random, the same whatever the number of GPUs."""
    images, labels = batch
    turned = torch.randint(2, (len(images), 1, 1, 1), device=images.device).bool()
    return torch.where(turned, images.flip(-1), images), labels


def evaluate(best: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the accuracy of the best network on images that decided nothing, overall and by class."""
    model = build(best["config"], len(data["classes"]))
    load_model(best["checkpoint"], model)
    model.eval()
    images, labels = split_of(data, "test")
    with torch.no_grad():
        hits = correct(model(images), labels)
    by_class = {name: float(hits[labels == i].mean()) for i, name in enumerate(data["classes"])}
    return {"accuracy": float(hits.mean()), **by_class}


def correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Return 1 for each image whose class is told, else 0; shape ``(batch,)``."""
    return (logits.argmax(dim=1) == labels).double()


def optimizer(trial: Trial, parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """Return the optimizer that the configuration names."""
    decay = trial.config["weight_decay"]
    if trial.config["optimizer"] == "sgd":
        return torch.optim.SGD(parameters, lr, momentum=trial.config["momentum"], weight_decay=decay)
    return torch.optim.AdamW(parameters, lr, weight_decay=decay)
