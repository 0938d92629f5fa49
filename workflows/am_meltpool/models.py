"""The surrogates: a 3-D CNN and a small video Swin Transformer, from a clip to (speed, power).

A clip is centred on the laser, so a place in it means something: both networks end in a mean over frames
and a linear layer over all places, which starts as the constant 1, the nominal laser. Every trial therefore
starts from the same error. Neither network uses batch statistics.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from dataset import FRAMES, SIDE, TARGETS
from parsl_rasda.errors import InvalidSettingError

Triple: TypeAlias = tuple[int, int, int]  # frames, rows, columns

MODELS = ("cnn", "swin")
CLIP: Triple = (FRAMES, SIDE, SIDE)
WINDOW: Triple = (4, 4, 4)
HEAD_WIDTH = 12


def build(config: Mapping[str, Any]) -> nn.Module:
    """Return the untrained network of a configuration.

    Args:
        config: ``model`` and what it needs: ``width`` (cnn), or ``patch_frames``, ``patch_rows``,
            ``patch_columns``, ``embed``, ``depth``, ``mlp_ratio`` (swin).

    Raises:
        InvalidSettingError: If there is no such model.
    """
    match config["model"]:
        case "cnn":
            return CNN3d(int(config["width"]))
        case "swin":
            patch = (config["patch_frames"], config["patch_rows"], config["patch_columns"])
            return VideoSwin(
                patch=(int(patch[0]), int(patch[1]), int(patch[2])),
                embed=int(config["embed"]),
                depths=(int(config["depth"]), int(config["depth"])),
                mlp_ratio=float(config["mlp_ratio"]),
            )
        case other:
            raise InvalidSettingError("model", other, f"one of {', '.join(MODELS)}")


class CNN3d(nn.Module):
    """Three convolutions, each of which halves frames, rows and columns."""

    def __init__(self, width: int, clip: Triple = CLIP) -> None:
        """Build the layers.

        Args:
            width: Channels of the first convolution; the others have two and four times as many.
            clip: Size of the input.
        """
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((1, width), (width, 2 * width), (2 * width, 4 * width)):
            layers += [nn.Conv3d(inputs, outputs, 3, stride=2, padding=1), nn.GELU()]
        self.net = nn.Sequential(*layers)
        _, rows, columns = _grid(clip, (8, 8, 8))
        self.head = _head(4 * width * rows * columns)

    def forward(self, clips: Tensor) -> Tensor:
        """Return targets (batch, 2) of clips (batch, 1, frames, rows, columns)."""
        targets: Tensor = self.head(self.net(clips).mean(dim=2).flatten(1))
        return targets


class VideoSwin(nn.Module):
    """Self-attention in windows of a video that shift from block to block, in two stages.

    Source:
        Liu et al. 2022, *Video Swin Transformer* (arXiv:2106.13230); here with two stages and the
        head of this module.
    """

    def __init__(
        self,
        *,
        patch: Triple,
        embed: int,
        depths: tuple[int, int],
        mlp_ratio: float,
        clip: Triple = CLIP,
        window: Triple = WINDOW,
    ) -> None:
        """Build the layers.

        Args:
            patch: What becomes one token.
            embed: Width of the first stage, a multiple of 12; the second is twice as wide.
            depths: Blocks of each stage.
            mlp_ratio: Hidden over outer width of the perceptrons.
            clip: Size of the input.
            window: Tokens that see each other.
        """
        super().__init__()
        self._padding = [pad for size, p in zip(clip, patch, strict=True) for pad in (0, -size % p)]
        self.embed = nn.Conv3d(1, embed, patch, stride=patch)
        self.norm_of_patches = nn.LayerNorm(embed)
        first = _grid(clip, patch)
        second = _grid(first, (1, 2, 2))
        self.first = _stage(embed, first, window, depths[0], mlp_ratio)
        self.merge = Merge(embed)
        self.second = _stage(2 * embed, second, window, depths[1], mlp_ratio)
        self.norm = nn.LayerNorm(2 * embed)
        self.head = _head(2 * embed * second[1] * second[2])

    def forward(self, clips: Tensor) -> Tensor:
        """Return targets (batch, 2) of clips (batch, 1, frames, rows, columns)."""
        tokens = self.embed(functional.pad(clips, self._padding[::-1])).movedim(1, -1)
        tokens = self.merge(self.first(self.norm_of_patches(tokens)))
        tokens = self.norm(self.second(tokens))
        targets: Tensor = self.head(tokens.mean(dim=1).flatten(1))
        return targets


class Block(nn.Module):
    """Attention within windows, then a perceptron, both around a residual; tokens (b, t, h, w, width)."""

    def __init__(self, width: int, grid: Triple, window: Triple, mlp_ratio: float, *, shifted: bool) -> None:
        """Build one block for a fixed grid of tokens."""
        super().__init__()
        # A window that covers an axis whole is cut to it and has nowhere to go.
        self._window = tuple(min(w, g) for w, g in zip(window, grid, strict=True))
        self._shift = tuple(
            w // 2 if shifted and w < g else 0 for w, g in zip(self._window, grid, strict=True)
        )
        self._grid, self._heads = grid, max(1, width // HEAD_WIDTH)
        self._padded = tuple(math.ceil(g / w) * w for g, w in zip(grid, self._window, strict=True))
        self.norm_of_attention, self.norm_of_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        hidden = round(mlp_ratio * width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        offsets = math.prod(2 * w - 1 for w in self._window)
        self.position_bias = nn.Parameter(torch.zeros(self._heads, offsets))
        self.register_buffer("_offset", relative_offsets(self._window), persistent=False)
        self.register_buffer("_apart", self._separation(), persistent=False)
        self._offset: Tensor
        self._apart: Tensor

    def forward(self, tokens: Tensor) -> Tensor:
        """Return tokens of the same shape."""
        tokens = tokens + self._attention(self.norm_of_attention(tokens))
        result: Tensor = tokens + self.mlp(self.norm_of_mlp(tokens))
        return result

    def _attention(self, tokens: Tensor) -> Tensor:
        missing = [(0, p - g) for g, p in zip(self._grid, self._padded, strict=True)]
        padding = [0, 0, *(pad for pair in reversed(missing) for pad in pair)]
        shifted = torch.roll(functional.pad(tokens, padding), [-s for s in self._shift], dims=(1, 2, 3))
        windows = cut(shifted, self._window)  # batch, windows, tokens, width
        q, k, v = self.qkv(windows).unflatten(-1, (3, self._heads, -1)).permute(3, 0, 1, 4, 2, 5)
        bias = self.position_bias[:, self._offset] + self._apart[:, None]
        seen = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        whole = join(self.out(seen.transpose(2, 3).flatten(-2)), self._window, self._padded)
        t, h, w = self._grid
        return torch.roll(whole, self._shift, dims=(1, 2, 3))[:, :t, :h, :w]

    def _separation(self) -> Tensor:
        """Return 0 or minus infinity for each pair of tokens of each window: who may see whom.

        After the roll, a window may hold tokens from opposite borders, and padding; both are kept apart.
        """
        axes = []
        for size, padded, shift in zip(self._grid, self._padded, self._shift, strict=True):
            rolled = torch.arange(padded) + shift
            axes.append(2 * (rolled >= padded) + (rolled % padded >= size))
        t, h, w = axes
        regions = (16 * t[:, None, None] + 4 * h[None, :, None] + w)[None, ..., None]
        region = cut(regions, self._window)[0, ..., 0]
        different = region[:, :, None] != region[:, None, :]
        return torch.zeros(different.shape).masked_fill(different, -math.inf)


class Merge(nn.Module):
    """Patch merging: four neighbours within a frame become one token of twice the width."""

    def __init__(self, width: int) -> None:
        """Build the layers for tokens of a width."""
        super().__init__()
        self.norm, self.reduce = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return tokens (batch, t, h / 2, w / 2, 2 width); odd sizes are padded with zeros."""
        *_, h, w, _ = tokens.shape
        even = functional.pad(tokens, (0, 0, 0, w % 2, 0, h % 2))
        corners = [even[:, :, i::2, j::2] for i, j in product((0, 1), repeat=2)]
        merged: Tensor = self.reduce(self.norm(torch.cat(corners, dim=-1)))
        return merged


def cut(tokens: Tensor, window: Sequence[int]) -> Tensor:
    """Return tokens (batch, t, h, w, width) as windows (batch, windows, tokens of one, width)."""
    a, b, c = window
    batch, t, h, w, width = tokens.shape
    split = tokens.reshape(batch, t // a, a, h // b, b, w // c, c, width)
    return split.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(batch, -1, a * b * c, width)


def join(windows: Tensor, window: Sequence[int], grid: Sequence[int]) -> Tensor:
    """Return windows as tokens (batch, *grid, width): the inverse of `cut`."""
    (a, b, c), (t, h, w) = window, grid
    batch, *_, width = windows.shape
    split = windows.reshape(batch, t // a, h // b, w // c, a, b, c, width)
    return split.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(batch, t, h, w, width)


def relative_offsets(window: Sequence[int]) -> Tensor:
    """Return the number of the offset between each pair of tokens of a window, shape ``(n, n)``."""
    places = torch.tensor(list(product(*(range(w) for w in window))))
    offset = places[:, None] - places[None, :] + torch.tensor([w - 1 for w in window])
    _, h, w = (2 * w - 1 for w in window)
    return offset[..., 0] * h * w + offset[..., 1] * w + offset[..., 2]


def sample_errors(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the squared error of each sample, averaged over the normalised targets, shape ``(samples,)``."""
    with torch.no_grad():
        return torch.cat([(model(clips) - targets).square().mean(dim=1) for clips, targets in batches])


def parameter_count(model: nn.Module) -> int:
    """Return how many numbers training may change."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _stage(width: int, grid: Triple, window: Triple, depth: int, mlp_ratio: float) -> nn.Sequential:
    return nn.Sequential(*(Block(width, grid, window, mlp_ratio, shifted=n % 2 == 1) for n in range(depth)))


def _grid(size: Triple, patch: Triple) -> Triple:
    t, h, w = (math.ceil(s / p) for s, p in zip(size, patch, strict=True))
    return t, h, w


def _head(width: int) -> nn.Linear:
    head = nn.Linear(width, len(TARGETS))
    nn.init.zeros_(head.weight)
    nn.init.ones_(head.bias)
    return head
