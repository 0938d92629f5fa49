"""What the cases of `benchmarks/gpu.py` train: networks of the usual kinds, without a library of them."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

CLASSES = 10


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return convolution, nn.BatchNorm2d(outputs)


class Bottleneck(nn.Module):
    """The block of a ResNet-50."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_convolution(inputs, width, 1), nn.ReLU(),
            *_convolution(width, width, 3, stride), nn.ReLU(),
            *_convolution(width, 4 * width, 1),
        )  # fmt: skip
        is_same = inputs == 4 * width and stride == 1
        self.beside = nn.Identity() if is_same else nn.Sequential(*_convolution(inputs, 4 * width, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        return (self.body(x) + self.beside(x)).relu()


def resnet50(width: int = 64) -> nn.Module:
    """He et al. 2016 (arXiv:1512.03385); 25.6 M parameters with a width of 64 and 1,000 classes."""
    blocks, inputs = [], width
    for stage, depth in enumerate((3, 4, 6, 3)):
        for index in range(depth):
            blocks.append(Bottleneck(inputs, width << stage, 2 if stage and not index else 1))
            inputs = 4 * (width << stage)
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 1000))
    stem = (*_convolution(3, width, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    return nn.Sequential(*stem, *blocks, *head)


def small_cnn(channels: int) -> nn.Module:
    """A few layers for images of 32 x 32."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, channels), (channels, 2 * channels), (2 * channels, 4 * channels)):
        layers += [*_convolution(inputs, outputs, 3, 2), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.1), nn.Linear(4 * channels * 16, CLASSES))


class Attention(nn.Module):
    """A block of a transformer, with torch's fused attention."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = max(1, width // 64)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.inner, self.outer = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.body = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        parts = self.inner(self.norms[0](x)).view(batch, length, 3, self.heads, -1).transpose(1, 3).unbind(2)
        mixed = functional.scaled_dot_product_attention(*parts, is_causal=True)
        x = x + self.outer(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.body(self.norms[1](x))


def transformer(words: int, width: int, depth: int) -> nn.Module:
    """About 125 M parameters with 32,000 words, a width of 768 and 12 blocks."""
    blocks = (Attention(width) for _ in range(depth))
    return nn.Sequential(nn.Embedding(words, width), *blocks, nn.LayerNorm(width), nn.Linear(width, words))


class UNet(nn.Module):
    """One level of a U-Net whose way up is bilinear, a kernel that is known to add in no fixed order."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.down = nn.Sequential(*_convolution(3, channels, 3), nn.ReLU())
        self.inner = nn.Sequential(*_convolution(channels, channels, 3, 2), nn.ReLU())
        self.head = nn.Linear(2 * channels, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        high = self.down(x)
        low = functional.interpolate(self.inner(high), scale_factor=2.0, mode="bilinear")
        return self.head(torch.cat([high, low], 1).mean((2, 3)))


class Words(nn.Module):
    """A transformer that reads an image row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.block, self.head = nn.Linear(96, 64), Attention(64), nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.first(x.transpose(1, 2).flatten(2))).mean(1))


def _channels_last() -> nn.Module:
    return small_cnn(16).to(memory_format=torch.channels_last)


MODELS = {
    "cnn": lambda: small_cnn(16),
    "attention": Words,
    "unet": UNet,
    "channels_last": _channels_last,
}  # whose bits are compared


class Flat(nn.Module):
    """Many parameters and next to no arithmetic: its loss is the sum of all, times the mean of the input."""

    def __init__(self, tensors: int, elements: int) -> None:
        super().__init__()
        self.parts = nn.ParameterList(torch.full((elements,), 1e-3) for _ in range(tensors))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([part.sum() for part in self.parts]).mean() * x.mean()


class Images(Dataset[Any]):
    """Images in memory, handed out one by one."""

    def __init__(self, count: int, side: int) -> None:
        self.pixels = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8).float()
        self.labels = torch.randint(0, CLASSES, (count,))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.pixels[index], self.labels[index]


def samples_of(name: str, count: int, *, small: bool = False) -> Any:
    """Return samples for a model."""
    generator = torch.Generator().manual_seed(5)
    if name == "flat":
        return torch.ones(count, 1)
    if name == "transformer":
        shape = (count, 8 if small else 512)
        words = torch.randint(0, 64, shape, generator=generator)
        return words, words.roll(-1, 1)
    side = 224 if name == "resnet50" and not small else 32
    images = torch.randn(count, 3, side, side, generator=generator)
    return images, torch.randint(0, CLASSES, (count,), generator=generator)


def train(trial: Any) -> None:
    """Train one of `MODELS` on random images: the ranks' function."""
    torch.manual_seed(0)
    data = samples_of("cnn", trial.config["samples"])
    model = MODELS[trial.config["model"]]()
    model, _ = trial.prepare(model, torch.optim.AdamW, lr=1e-3)
    if trial.config.get("allocate"):
        held = [torch.empty(2**50, dtype=torch.uint8, device=trial.device)]  # a petabyte
        raise AssertionError(f"{len(held)} allocations of a petabyte succeeded")
    (trial.directory / "pid").write_text(str(os.getpid()))
    for _ in trial.epochs():
        for x, y in trial.batches(data):
            if trial.config["model"] == "channels_last":
                x = x.contiguous(memory_format=torch.channels_last)  # noqa: PLW2901
            trial.step(functional.cross_entropy(model(x), y))
        with torch.no_grad():
            losses = [functional.cross_entropy(model(x), y, reduction="none") for x, y in trial.shard(data)]
        trial.report(val_loss=trial.mean(torch.cat(losses)))
