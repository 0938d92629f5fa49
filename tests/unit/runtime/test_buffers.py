"""Buffers become what the replicas make of them, and stay what they are if nobody changes them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from parsl_rasda.errors import TrainingError
from parsl_rasda.runtime import local_trial
from parsl_rasda.runtime.engine.buffers import RunningBuffers
from tests.unit.runtime.stand_ins import on_each_rank

X = torch.randn(50, 3, generator=torch.Generator().manual_seed(1))


class Model(nn.Module):
    """Has a buffer of each kind; `change` says what a forward pass does to them."""

    def __init__(self, change=lambda model, x: None) -> None:
        super().__init__()
        self.line, self.norm, self.change = nn.Linear(3, 1), nn.BatchNorm1d(3), change
        self.register_buffer("mask", torch.tensor([0.0, -math.inf]))
        self.register_buffer("mean", torch.full((3,), 0.3))
        self.register_buffer("wave", torch.full((3,), 0.3 - 0.1j))
        self.register_buffer("count", torch.tensor(2**40))
        self.register_buffer("seen", torch.tensor(False))
        self.register_buffer("cache", torch.zeros(3), persistent=False)
        self.norm.running_mean.copy_(torch.tensor([0.1, 1.7, 3.3]))
        self.norm.running_var.copy_(torch.tensor([0.7, 1.3, 2.9]))

    def forward(self, x):
        if self.training:
            self.change(self, x)
        return self.line(self.norm(x))


def trained(model, samples=50, before_epoch=lambda epoch: None, **options):
    """Train; returns the batches of each step."""
    trial = local_trial({}, **{"replicas": 4, "batch_size": 4, **options})
    trial.prepare(model, torch.optim.SGD, lr=0.0)
    batches = []
    for epoch in trial.epochs():
        before_epoch(epoch)
        for (x,) in trial.batches((X[:samples],)):
            batches.append(x)
            trial.step(model(x).square().mean())
        for (x,) in trial.shard((X[:5],)):
            model(x)
        trial.report(val_loss=0.0)
    return batches


REDUCTIONS = pytest.mark.parametrize(("reduce", "replicas"), [("exact", 4), ("ddp", 4), ("ddp", 3)])


@REDUCTIONS
def test_frozen_buffers_stay_the_same_bits(reduce, replicas) -> None:
    model = Model()
    model.norm.eval()
    before = {name: tensor.clone() for name, tensor in model.named_buffers()}
    trained(model, epochs=5, reduce=reduce, replicas=replicas)
    assert not model.norm.training
    for name, tensor in model.named_buffers():
        assert torch.equal(tensor, before[name]), name


def test_what_is_frozen_at_an_epoch_stays_frozen_from_then_on() -> None:
    model, seen = Model(), []

    def before_epoch(epoch):
        assert model.training
        seen.append(model.norm.running_mean.clone())
        if epoch == 1:
            model.norm.eval()

    trained(model, epochs=4, before_epoch=before_epoch)
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(seen[1], seen[3])


@REDUCTIONS
def test_each_step_starts_from_the_same_buffers_and_leaves_their_mean(reduce, replicas) -> None:
    def change(model, x):
        model.mean.mul_(0.5).add_(0.5 * x.mean(0))
        model.wave.mul_(0.5).add_(0.5j * x.mean(0))
        model.count += 1
        model.seen.fill_(True)
        model.cache = model.cache + 1

    model = Model(change)
    batches = trained(model, samples=11, reduce=reduce, replicas=replicas, batch_size=7)
    weights = [len(x) / 11 for x in batches]
    mean = sum(w * (0.5 * 0.3 + 0.5 * x.mean(0)) for w, x in zip(weights, batches, strict=True))
    norm = sum(
        w * (0.9 * torch.tensor([0.1, 1.7, 3.3]) + 0.1 * x.mean(0))
        for w, x in zip(weights, batches, strict=True)
    )
    assert len(set(weights)) > 1, "the weights differ"
    torch.testing.assert_close(model.mean, mean)
    wave = sum(w * (0.5 * (0.3 - 0.1j) + 0.5j * x.mean(0)) for w, x in zip(weights, batches, strict=True))
    torch.testing.assert_close(model.wave, wave)
    torch.testing.assert_close(model.norm.running_mean, norm)
    assert (model.count.item(), model.seen.item()) == (2**40 + 1, True)
    assert model.norm.num_batches_tracked.item() == 1


def test_a_module_may_put_another_tensor_in_the_place_of_a_buffer() -> None:
    def change(model, x):
        model.mean = 0.5 * model.mean + 0.5

    model = Model(change)
    place = model.mean
    trained(model, samples=32)
    assert model.mean is place
    assert model.mean.tolist() == pytest.approx([1 - 0.7 / 4] * 3)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(1, 4))
def test_a_counter_counts_steps_however_the_samples_are_spread(samples, replicas) -> None:
    def change(model, x):
        model.count += 1

    model = Model(change)
    model.norm = nn.Identity()
    trained(model, samples=samples, replicas=replicas, batch_size=3)
    assert model.count.item() - 2**40 == math.ceil(samples / (3 * replicas))


def test_a_buffer_that_begins_to_change_in_mid_epoch_is_named() -> None:
    calls = []

    def change(model, x):
        calls.append(x)
        if len(calls) > 6:
            model.mean += 1

    with pytest.raises(TrainingError, match="The buffer 'mean' did not change in the first step"):
        trained(Model(change))


def test_ranks_agree_on_what_changes_though_one_of_them_has_no_samples_at_first(tmp_path) -> None:
    """The second model is trained in the second step only; rank 1 works from the third on."""

    def work(group):
        models = nn.ModuleDict({"d": nn.BatchNorm1d(1), "g": nn.BatchNorm1d(1)})
        buffers = RunningBuffers(models, group, list(models))
        found = []
        for step, name in enumerate(["d", "g", "d"]):
            buffers.begin_step()
            is_working = group.rank == 0 or step == 2
            means = buffers.alloc_means()
            if is_working:
                buffers.begin()
                models[name].running_mean += 1.0
                buffers.values()
            for mean in means:
                mean.zero_()
            buffers.finish(means, {name} if is_working else ())
            found.append((buffers.changing, len(buffers.alloc_means())))
        return found

    one, other = on_each_rank(2, tmp_path, work)
    both = ["d.running_mean", "g.running_mean"]
    assert one == other == [(both[:1], 2), (both, 1), (both, 1)]
