"""A resumed trial goes on with the tensors that it left: their bits, and how they lie in memory."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from parsl_rasda.runtime import local_trial
from parsl_rasda.runtime.checkpoints.checkpoint import read_header

IMAGES = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))
OPTIMIZERS = {
    "sgd": lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9),
    "adamw": torch.optim.AdamW,
}


def convolutions() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten()
    )
    return layers.to(memory_format=torch.channels_last)


def trained(name, epochs, **options):
    """Train a convolutional network whose tensors are channels last; return it and its optimizer."""
    trial = local_trial({}, epochs=epochs, batch_size=4, replicas=2, **options)
    model, optimizer = trial.prepare(convolutions(), OPTIMIZERS[name], lr=0.01)
    for _ in trial.epochs():
        for x in trial.batches(IMAGES):
            trial.step(model(x.to(memory_format=torch.channels_last)).square().mean())
        trial.report(val_loss=0.0)
    return model, optimizer


def states(optimizer):
    return [
        (key, value)
        for state in optimizer.state.values()
        for key, value in state.items()
        if isinstance(value, torch.Tensor)
    ]


def assert_alike(one, other) -> None:
    assert [(k, t.stride()) for k, t in states(one)] == [(k, t.stride()) for k, t in states(other)]
    for (key, left), (_, right) in zip(states(one), states(other), strict=True):
        assert torch.equal(left, right), key


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_channels_last_is_kept_and_so_are_the_bits(tmp_path, name) -> None:
    whole, of_whole = trained(name, 3)
    trained(name, 1, directory=tmp_path / "first")
    assert read_header(tmp_path / "first" / "epoch-000001")["strides"]
    resumed, of_resumed = trained(
        name, 3, directory=tmp_path / "second", resume_from=tmp_path / "first" / "epoch-000001"
    )
    assert any(not t.is_contiguous() for _, t in states(of_whole)), "or this test shows nothing"
    assert_alike(of_whole, of_resumed)
    for left, right in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert (left.stride(), torch.equal(left, right)) == (right.stride(), True)


def test_a_checkpoint_of_an_earlier_version_lies_as_its_parameters_do(tmp_path) -> None:
    _, of_whole = trained("adamw", 3)
    trained("adamw", 1, directory=tmp_path / "first")
    header = tmp_path / "first" / "epoch-000001" / "header.json"
    values = json.loads(header.read_text()) | {"format": 1}  # which has no seal
    header.write_text(json.dumps({key: value for key, value in values.items() if key != "strides"}))
    _, of_resumed = trained(
        "adamw", 3, directory=tmp_path / "second", resume_from=tmp_path / "first" / "epoch-000001"
    )
    assert_alike(of_whole, of_resumed)
