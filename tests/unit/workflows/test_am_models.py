from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from parsl_rasda.errors import InvalidSettingError
from tests.workflow_folder import workflow_folder

with workflow_folder("am_meltpool"):
    from models import (
        Block,
        CNN3d,
        VideoSwin,
        build,
        cut,
        join,
        parameter_count,
        relative_offsets,
    )

CLIP = (8, 9, 11)
axes = st.integers(1, 9)
windows = st.integers(1, 5)


def small_swin(depth: int = 2) -> VideoSwin:
    return VideoSwin(
        patch=(2, 2, 2), embed=12, depths=(depth, depth), mlp_ratio=1, clip=CLIP, window=(2, 3, 3)
    )


@pytest.mark.parametrize("patch", list(product((2, 4), repeat=3)))
@pytest.mark.parametrize("depth", [1, 2])
def test_every_swin_of_the_space_starts_at_the_nominal_laser(patch: tuple[int, ...], depth: int) -> None:
    names = ("patch_frames", "patch_rows", "patch_columns")
    config = {
        "model": "swin",
        **dict(zip(names, patch, strict=True)),
        "embed": 24,
        "depth": depth,
        "mlp_ratio": 1,
    }
    with torch.no_grad():
        assert torch.equal(build(config)(torch.randn(1, 1, 16, 41, 41)), torch.ones(1, 2))


def test_the_networks_of_the_study_are_small() -> None:
    swin = {"model": "swin", "patch_frames": 4, "patch_rows": 4, "patch_columns": 4, "embed": 24, "depth": 1}
    assert [parameter_count(CNN3d(width)) for width in (8, 12, 16)] == [19_858, 42_746, 74_274]
    assert [parameter_count(build({**swin, "mlp_ratio": ratio})) for ratio in (1, 2)] == [30_020, 35_852]


def test_a_model_that_does_not_exist_is_refused() -> None:
    with pytest.raises(InvalidSettingError, match="one of cnn, swin"):
        build({"model": "vgg"})


@given(grid=st.tuples(axes, axes, axes), window=st.tuples(windows, windows, windows))
def test_windows_hold_every_token_once_and_fit_together_again(
    grid: tuple[int, int, int], window: tuple[int, int, int]
) -> None:
    t, h, w = (math.ceil(g / s) * s for g, s in zip(grid, window, strict=True))
    tokens = torch.arange(2 * t * h * w * 3).reshape(2, t, h, w, 3)
    pieces = cut(tokens, window)
    assert pieces.shape == (2, t * h * w // math.prod(window), math.prod(window), 3)
    assert torch.equal(join(pieces, window, (t, h, w)), tokens)
    a, b, c = window
    assert torch.equal(pieces[0, 0], tokens[0, :a, :b, :c].reshape(-1, 3))


def test_equal_offsets_share_a_bias_and_no_others_do() -> None:
    window = (2, 3, 2)
    places = list(product(*(range(n) for n in window)))
    numbers = relative_offsets(window)
    seen: dict[tuple[int, ...], int] = {}
    for (i, p), (j, q) in product(enumerate(places), repeat=2):
        offset = tuple(a - b for a, b in zip(p, q, strict=True))
        assert seen.setdefault(offset, int(numbers[i, j])) == numbers[i, j]
    assert len(set(seen.values())) == len(seen) == 3 * 5 * 3
    assert 0 <= min(seen.values()) <= max(seen.values()) < 45


@settings(max_examples=30, deadline=None)
@given(grid=st.tuples(axes, axes, axes), shifted=st.booleans(), place=st.data())
def test_a_block_sees_its_window_and_nothing_across_a_border(
    grid: tuple[int, int, int], *, shifted: bool, place: st.DataObject
) -> None:
    torch.manual_seed(0)
    window = (2, 4, 4)
    block = Block(12, grid, window, 1, shifted=shifted)
    at = tuple(place.draw(st.integers(0, n - 1)) for n in grid)
    tokens = torch.randn(1, *grid, 12, requires_grad=True)
    block(tokens)[(0, *at)].sum().backward()
    assert tokens.grad is not None
    seen = {tuple(p) for p in tokens.grad.abs().sum(dim=-1)[0].nonzero().tolist()}

    def group(position: int, size: int, length: int) -> int:
        size = min(size, length)
        offset = size - size // 2 if shifted and size < length else 0
        return (position + offset) // size

    expected = {
        p
        for p in product(*(range(n) for n in grid))
        if all(group(a, w, n) == group(b, w, n) for a, b, w, n in zip(p, at, window, grid, strict=True))
    }
    assert seen == expected


def test_a_shift_lets_windows_exchange_what_they_know() -> None:
    def reach(depth: int) -> int:
        torch.manual_seed(0)
        tokens = torch.randn(1, 4, 8, 8, 12, requires_grad=True)
        result = tokens
        for n in range(depth):
            result = Block(12, (4, 8, 8), (2, 4, 4), 1, shifted=n % 2 == 1)(result)
        result[0, 1, 3, 3].sum().backward()
        assert tokens.grad is not None
        return int((tokens.grad.abs().sum(dim=-1) > 0).sum())

    assert reach(1) == 32
    assert reach(2) > 32


@pytest.mark.parametrize("model", [small_swin(), CNN3d(4, CLIP)], ids=["swin", "cnn"])
def test_every_parameter_is_trained_and_clips_do_not_touch_each_other(model: torch.nn.Module) -> None:
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    clips = torch.randn(3, 1, *CLIP)
    together = model(clips)
    assert torch.allclose(together, torch.cat([model(clip[None]) for clip in clips]), atol=1e-4)
    together.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().sum()) > 0, name


def test_only_parameters_are_kept_in_a_checkpoint() -> None:
    model = small_swin()
    assert model.state_dict().keys() == dict(model.named_parameters()).keys()
