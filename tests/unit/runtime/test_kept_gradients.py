"""Optimizers that keep the gradient itself, which the next step of several ranks overwrites."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from parsl_rasda.errors import TrainingError
from parsl_rasda.protocol import Training
from parsl_rasda.runtime.engine.datasets import Samples
from parsl_rasda.runtime.engine.engine import Engine
from parsl_rasda.runtime.engine.update import Update
from tests.unit.runtime.stand_ins import GroupOfOne


class Optimistic(torch.optim.Optimizer):
    """Steps by twice the gradient less the one before, of which it keeps what ``kept`` returns."""

    def __init__(self, parameters, lr, kept) -> None:
        super().__init__(parameters, {"lr": lr})
        self.kept = kept

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for p in self.param_groups[0]["params"]:
            p.sub_(self.param_groups[0]["lr"] * (2 * p.grad - self.state[p].get("before", p.grad)))
            self.state[p]["before"] = self.kept(p.grad)


def train(tmp_path, optimizer, *, size) -> None:
    model = nn.Linear(2, 1)
    training = Training(batch_size=4, reduce="exact")
    engine = Engine(GroupOfOne(size, tmp_path), training, 1, model, optimizer, Update(0.01))
    replicas = 2 * size
    schedule = ((0, replicas, replicas),)
    samples = Samples((torch.randn(3 * 4 * replicas, 2),))
    for (x,) in engine.batches(samples, schedule, transform=None, workers=0, halt=lambda: False):
        engine.backward(model(x).square().mean())


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("kept", [lambda grad: grad, lambda grad: grad.view(-1), torch.Tensor.detach])
def test_an_optimizer_that_keeps_the_gradient_itself_is_refused_at_any_width(tmp_path, size, kept) -> None:
    with pytest.raises(TrainingError, match=r"Optimistic keeps the gradient itself as 'before'.*clone\(\)"):
        train(tmp_path, lambda parameters, lr: Optimistic(parameters, lr, kept), size=size)


@pytest.mark.parametrize("size", [1, 2])
def test_optimizers_that_copy_it_are_not(tmp_path, size) -> None:
    train(tmp_path, lambda parameters, lr: Optimistic(parameters, lr, torch.clone), size=size)
    for of_torch in (torch.optim.Rprop, torch.optim.Adagrad, torch.optim.ASGD, torch.optim.NAdam):
        for options in ({"foreach": False}, {"foreach": True}):
            train(tmp_path, lambda parameters, lr, of=of_torch, o=options: of(parameters, lr, **o), size=size)
    train(tmp_path, lambda parameters, lr: torch.optim.SGD(parameters, lr, momentum=0.9), size=size)
