"""The surrogate: a convolutional autoencoder that keeps few numbers of a field, and gives the field back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
    "selu": nn.SELU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
}


class Autoencoder(nn.Module):
    """Convolutions that halve the field, a narrow middle, and convolutions that double it again.

    Fully convolutional: the latent field has ``latent`` channels on a grid ``2^depth`` times coarser, and any
    height and width will do; a field that the factor does not divide is padded by its edge and cut again.
    """

    def __init__(self, components: int, *, width: int, depth: int, latent: int, activation: str) -> None:
        """Build the layers.

        Args:
            components: Channels of the field.
            width: Channels after the first halving; they double with each further one.
            depth: How often the field is halved.
            latent: Channels in the middle.
            activation: A key of `ACTIVATIONS`.
        """
        super().__init__()
        self.factor = 2**depth
        between = ACTIVATIONS[activation]
        widths = [width * 2**level for level in range(depth)]
        down: list[nn.Module] = []
        for inputs, outputs in zip([components, *widths], widths, strict=False):
            down += [nn.Conv2d(inputs, outputs, 5, stride=2, padding=2), between()]
        self.encoder = nn.Sequential(*down, nn.Conv2d(widths[-1], latent, 3, padding=1))
        up: list[nn.Module] = [nn.Conv2d(latent, widths[-1], 3, padding=1), between()]
        for inputs, outputs in zip(reversed(widths), [*reversed(widths[:-1]), width], strict=True):
            # Doubling and then a convolution leaves no checkerboard, as a transposed convolution does
            # (Odena, Dumoulin & Olah 2016, Distill, doi 10.23915/distill.00003).
            up += [nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(inputs, outputs, 3, padding=1)]
            up += [between()]
        self.decoder = nn.Sequential(*up, nn.Conv2d(width, components, 3, padding=1))

    def encode(self, field: Tensor) -> Tensor:
        """Return the latent field ``(batch, latent, height / factor, width / factor)``, rounded up."""
        height, width = field.shape[-2:]
        padding = (0, -width % self.factor, 0, -height % self.factor)
        latent: Tensor = self.encoder(functional.pad(field, padding, mode="replicate"))
        return latent

    def forward(self, field: Tensor) -> Tensor:
        """Return the reconstruction of ``(batch, components, height, width)``, same shape."""
        whole: Tensor = self.decoder(self.encode(field))
        return whole[..., : field.shape[-2], : field.shape[-1]]

    def latent_size(self, shape: Sequence[int]) -> int:
        """Return how many numbers stand for one sample of this shape ``(components, height, width)``."""
        with torch.no_grad():
            return self.encode(torch.zeros(1, *shape)).numel()


def build(config: Mapping[str, Any], components: int) -> Autoencoder:
    """Return the untrained network of a configuration: ``width, depth, latent, activation``."""
    return Autoencoder(
        components,
        width=config["width"],
        depth=config["depth"],
        latent=config["latent"],
        activation=config["activation"],
    )


def sample_errors(model: Callable[[Tensor], Tensor], batches: Iterable[Tensor]) -> Tensor:
    """Return the squared error of each sample, averaged over points and components, shape ``(samples,)``.

    Args:
        model: Reconstructs a batch ``(samples, components, height, width)`` in fp32.
        batches: Of any precision.
    """
    with torch.no_grad():
        fields = (batch.float() for batch in batches)
        return torch.cat([(model(field) - field).square().mean(dim=(1, 2, 3)) for field in fields])


def parameter_count(model: nn.Module) -> int:
    """Return how many numbers training may change."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
