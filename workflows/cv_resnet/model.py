"""Residual networks in plain torch: a small one for digits, ResNet-50 for ImageNet.

Source:
    He, Zhang, Ren & Sun 2016 (arXiv:1512.03385), figure 5 for the blocks, table 1 and section 4.2 for the two
    networks. ResNet-50 strides in the 3 x 3 convolution of a bottleneck, as all later implementations do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "selu": nn.SELU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}
Activation: TypeAlias = Callable[[], nn.Module]


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, activation: Activation) -> None:
        """Build the layers; the output has ``width`` channels."""
        super().__init__()
        convolution, self.last_norm = _normed(width, width, 3, 1)
        self.body = nn.Sequential(*_normed(inputs, width, 3, stride), activation(), convolution)
        self.shortcut = _shortcut(inputs, width, stride)
        self.last = activation()

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(batch, width, height / stride, width / stride)``."""
        y: Tensor = self.last(self.last_norm(self.body(x)) + self.shortcut(x))
        return y


class Bottleneck(nn.Module):
    """A 1 x 1, a 3 x 3 and a 1 x 1 convolution beside a shortcut."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, activation: Activation) -> None:
        """Build the layers; the output has ``4 * width`` channels."""
        super().__init__()
        outputs = self.expansion * width
        convolution, self.last_norm = _normed(width, outputs, 1, 1)
        self.body = nn.Sequential(
            *_normed(inputs, width, 1, 1),
            activation(),
            *_normed(width, width, 3, stride),
            activation(),
            convolution,
        )
        self.shortcut = _shortcut(inputs, outputs, stride)
        self.last = activation()

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(batch, 4 * width, height / stride, width / stride)``."""
        y: Tensor = self.last(self.last_norm(self.body(x)) + self.shortcut(x))
        return y


class ResNet(nn.Module):
    """A stem, stages of blocks that halve the image and double the channels, the mean, and a linear layer."""

    def __init__(
        self,
        stem: nn.Module,
        block: type[BasicBlock | Bottleneck],
        blocks: Sequence[int],
        *,
        width: int,
        classes: int,
        activation: Activation,
    ) -> None:
        """Build the layers.

        Args:
            stem: What comes before the blocks; its output has ``width`` channels.
            block: The kind of block.
            blocks: How many of them each stage has.
            width: Channels of the first stage, before a bottleneck's expansion.
            classes: Number of outputs.
            activation: Makes an activation.
        """
        super().__init__()
        layers: list[nn.Module] = []
        inputs = width
        for stage, count in enumerate(blocks):
            for number in range(count):
                stride = 2 if stage and not number else 1
                layers.append(block(inputs, width * 2**stage, stride, activation))
                inputs = width * 2**stage * block.expansion
        self.stem, self.blocks = stem, nn.Sequential(*layers)
        self.classify = nn.Linear(inputs, classes)
        _initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(batch, classes)`` of images ``(batch, channels, height, width)``."""
        logits: Tensor = self.classify(self.blocks(self.stem(images)).mean(dim=(2, 3)))
        return logits


def small_resnet(classes: int, channels: int, activation: str, *, width: int = 16) -> ResNet:
    """Return a network for images of a few pixels: one 3 x 3 convolution, two stages of one basic block."""
    between = ACTIVATIONS[activation]
    stem = nn.Sequential(*_normed(channels, width, 3, 1), between())
    return ResNet(stem, BasicBlock, (1, 1), width=width, classes=classes, activation=between)


def resnet50(classes: int, channels: int, activation: str) -> ResNet:
    """Return ResNet-50 for images of about 224 x 224 pixels: 25.6 million parameters for 1,000 classes."""
    between = ACTIVATIONS[activation]
    stem = nn.Sequential(*_normed(channels, 64, 7, 2), between(), nn.MaxPool2d(3, stride=2, padding=1))
    return ResNet(stem, Bottleneck, (3, 4, 6, 3), width=64, classes=classes, activation=between)


NETWORKS: dict[str, Callable[[int, int, str], ResNet]] = {"small": small_resnet, "resnet50": resnet50}


def build(config: Mapping[str, Any], data: Mapping[str, Any]) -> ResNet:
    """Return the untrained network of a configuration, which has ``network`` and ``activation``.

    Args:
        config: The hyperparameters.
        data: What a `prepare` stage returned: ``classes`` and ``channels``.
    """
    return NETWORKS[config["network"]](len(data["classes"]), data["channels"], config["activation"])


def predictions(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return the most likely class of each image, and its true class, each ``(samples,)``."""
    with torch.no_grad():
        pairs = [(model(images).argmax(dim=1), labels) for images, labels in batches]
    return torch.cat([guess for guess, _ in pairs]), torch.cat([label for _, label in pairs])


def parameter_count(model: nn.Module) -> int:
    """Return how many numbers training may change."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _normed(inputs: int, outputs: int, kernel: int, stride: int) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
    return convolution, nn.BatchNorm2d(outputs)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(*_normed(inputs, outputs, 1, stride))


def _initialise(model: ResNet) -> None:
    """He et al. 2015 for convolutions; each block starts as its shortcut (Goyal et al. 2017, section 5.1)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        elif isinstance(module, BasicBlock | Bottleneck):
            nn.init.zeros_(module.last_norm.weight)
