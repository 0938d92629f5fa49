"""The noise of gradients, as a trial reports it, against what the gradients of single samples say."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from parsl_rasda.runtime import local_trial
from parsl_rasda.runtime.checkpoints.checkpoint import read_header
from parsl_rasda.runtime.engine.group import Group
from parsl_rasda.runtime.engine.noise import NoiseMeter, noise_in
from parsl_rasda.types import GradientNoise

SAMPLES = 512
_GENERATOR = torch.Generator().manual_seed(3)
IMAGES = torch.randn(SAMPLES, 1, 8, 8, generator=_GENERATOR)
LABELS = (IMAGES[:, 0, :4].mean((1, 2)) > IMAGES[:, 0, 4:].mean((1, 2)) - 0.12).long()  # three in four


def small_cnn() -> nn.Module:
    torch.manual_seed(5)
    layers = (nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3), nn.ReLU())
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 16, 2))


def direct(model: nn.Module) -> GradientNoise:
    """Return what the gradients of all single samples say."""
    grads = []
    for x, y in zip(IMAGES, LABELS, strict=True):
        loss = nn.functional.cross_entropy(model(x[None]), y[None])
        grads.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]))
    each = torch.stack(grads).double()
    variance = float(each.var(0).sum())
    return GradientNoise(float(each.mean(0).square().sum()) - variance / SAMPLES, variance)


def reported(model: nn.Module | None = None, *, lr: float = 0.0, **options):
    """Train for some epochs; returns the trial."""
    trial = local_trial(
        {}, **{"replicas": 8, "batches": 1, "batch_size": 32, "epochs": 2, "reduce": "exact", **options}
    )
    model, _ = trial.prepare(small_cnn() if model is None else model, torch.optim.SGD, lr=lr)
    for _ in trial.epochs():
        for x, y in trial.batches((IMAGES, LABELS)):
            trial.step(nn.functional.cross_entropy(model(x), y))
        trial.report(val_loss=0.0)
    return trial


def mean_of(trial) -> GradientNoise:
    found = [report.noise for report in trial.history]
    return GradientNoise(*(sum(getattr(n, k) for n in found) / len(found) for k in ("gradient", "variance")))


@pytest.mark.parametrize("options", [{}, {"replicas": 2}, {"batch_size": 24}, {"clip_norm": 1e-3}])
def test_the_noise_scale_is_that_of_the_gradients_of_single_samples(options) -> None:
    expected, found = direct(small_cnn()), mean_of(reported(epochs=4, **options))
    assert found.variance == pytest.approx(expected.variance, rel=0.1)
    assert found.scale == pytest.approx(expected.scale, rel=0.2)
    assert 4 < expected.scale < 32, "neither hides the other"


@pytest.mark.slow
def test_one_rank_that_adds_in_place_sees_the_first_pass_of_each_step() -> None:
    found = mean_of(reported(reduce="ddp", batches=8, batch_size=4, epochs=24))
    assert found.scale == pytest.approx(direct(small_cnn()).scale, rel=0.2)


@pytest.mark.parametrize("options", [{"replicas": 1}, {"replicas": 1, "reduce": "ddp"}])
def test_one_replica_shows_nothing(options) -> None:
    assert [report.noise for report in reported(**options).history] == [None, None]


def test_the_noise_of_an_epoch_is_in_its_report_and_not_in_the_checkpoint_after_it(tmp_path) -> None:
    reported(directory=tmp_path)
    assert read_header(tmp_path / "epoch-000002")["noise"] == []


def test_a_step_that_overflows_does_not_count(tmp_path) -> None:
    weight = nn.Parameter(torch.zeros(1))
    meter = NoiseMeter(Group(0, 1, weight.device, tmp_path, one_node=True), 2, range(2), [])
    for first, second in ((1.0, 3.0), (math.inf, 3.0), (1.0, 3.0)):
        for replica, gradient in enumerate((first, second)):
            meter.add_part(torch.tensor((gradient / 2) ** 2, dtype=torch.float64), replica, 1, 2)
        weight.grad = torch.tensor([(first + second) / 2])
        meter.add_step([weight], 2, 1.0)
    assert noise_in(meter.sums()) == GradientNoise(3.0, 2.0)


def test_hidden_gradients_have_an_infinite_scale_and_negative_variance_none() -> None:
    assert GradientNoise(-1.0, 2.0).scale == math.inf
    assert GradientNoise(0.0, 2.0).scale == math.inf
    assert GradientNoise(2.0, 8.0).scale == 4.0
    assert GradientNoise(2.0, -8.0).scale == 0.0


def test_two_replicas_of_known_gradients_by_hand() -> None:
    # Steps of 2 samples with the gradients 1 and 3: parts 1 and 9, the whole 4.
    sums = [1.0, 9.0, 4.0 * 2, 2.0, 2.0, 1.0, 2.0, 1.0]
    assert noise_in(sums) == GradientNoise(3.0, 2.0)
    assert noise_in([0.0] * 8) is None


def test_it_is_written_with_the_epoch(tmp_path) -> None:
    reported(directory=tmp_path)
    first = json.loads((tmp_path / "epochs.jsonl").read_text().splitlines()[0])
    assert set(first["noise"]) == {"gradient", "variance"}
