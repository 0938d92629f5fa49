"""The surrogate: a small residual network that adds back what the filter took."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from parsl_rasda.types import JSON

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


class Defilter(nn.Module):
    """A convolutional network on a periodic box, ``u = filtered + net(filtered)``.

    Padding is circular, as the box is. The last layer starts at zero: an untrained network returns its
    input, so every trial starts from the error of doing nothing.
    """

    def __init__(self, width: int, activation: str, *, kernel: int = 5) -> None:
        """Build the layers.

        Args:
            width: Channels of the two hidden layers.
            activation: A key of `ACTIVATIONS`.
            kernel: Points of each convolution in each direction, odd.
        """
        super().__init__()
        between = ACTIVATIONS[activation]

        def convolution(inputs: int, outputs: int) -> nn.Conv2d:
            return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, padding_mode="circular")

        last = convolution(width, 2)
        nn.init.zeros_(last.weight)
        if last.bias is not None:
            nn.init.zeros_(last.bias)
        self.net = nn.Sequential(convolution(2, width), between(), convolution(width, width), between(), last)

    def forward(self, filtered: Tensor) -> Tensor:
        """Return the velocity ``(batch, 2, grid, grid)`` behind the filtered one, same shape."""
        correction: Tensor = self.net(filtered)
        return filtered + correction


def build(config: Mapping[str, JSON]) -> Defilter:
    """Return the untrained network of a configuration, which has ``width`` and ``activation``."""
    return Defilter(int(str(config["width"])), str(config["activation"]))


def mean_square_error(prediction: Tensor, truth: Tensor) -> Tensor:
    """Return the squared error of each sample, averaged over points and components, shape ``(batch,)``."""
    return (prediction - truth).square().mean(dim=(1, 2, 3))


def sample_errors(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the squared error of each sample of ``(filtered, truth)`` batches, shape ``(samples,)``."""
    with torch.no_grad():
        return torch.cat([mean_square_error(model(filtered), truth) for filtered, truth in batches])


def parameter_count(model: nn.Module) -> int:
    """Return how many numbers training may change."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
