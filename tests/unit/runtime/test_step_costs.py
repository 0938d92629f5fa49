"""What a step costs besides arithmetic: calls of operators, waits for the device, and memory."""

from __future__ import annotations

import weakref
from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from parsl_rasda.protocol import Training
from parsl_rasda.runtime.engine import flat
from parsl_rasda.runtime.engine.datasets import Samples
from parsl_rasda.runtime.engine.engine import Engine, Update
from tests.unit.runtime.stand_ins import GroupOfOne

WAITS = ("aten._local_scalar_dense.default", "aten.equal.default", "aten.nonzero.default")
STEPS = 4


class Calls(TorchDispatchMode):
    """Counts operators by name."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.seen[str(operator)] += 1
        return operator(*args, **(kwargs or {}))


class Memory(TorchDispatchMode):
    """Follows the storages of all tensors that are made."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._live = 0
        self._users = Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        made = operator(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, list | tuple) else (made,):
            if isinstance(tensor, torch.Tensor):
                self._follow(tensor)
        return made

    def known(self, tensors) -> None:
        """Leave out what was there before."""
        for tensor in tensors:
            self._users[tensor.untyped_storage().data_ptr()] += 1

    def _follow(self, tensor) -> None:
        place, size = tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()
        if self._users[place] == 0:
            self._live += size
            self.peak = max(self.peak, self._live)
        self._users[place] += 1
        weakref.finalize(tensor, self._forget, place, size)

    def _forget(self, place, size) -> None:
        self._users[place] -= 1
        if self._users[place] == 0:
            self._live -= size


def like_resnet_50() -> nn.Module:
    """53 convolutions with batch normalisation and a last layer: 161 parameters, 159 buffers."""
    layers = [
        (nn.Conv2d(3 if i == 0 else 2, 2, 1, bias=False), nn.BatchNorm2d(2), nn.ReLU()) for i in range(53)
    ]
    flattened = [layer for block in layers for layer in block]
    return nn.Sequential(*flattened, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 10))


def optimizer_of(parameters, lr):
    return torch.optim.SGD(parameters, lr, momentum=0.9, foreach=False)


def trained(model, size, carried, data, mode, tmp_path, *, reduce="exact", optimizer=optimizer_of):
    """Train an epoch; yields after each step."""
    replicas = size * carried
    training = Training(batch_size=8, reduce=reduce)
    engine = Engine(GroupOfOne(size, tmp_path), training, 1, model, optimizer, Update(0.01))
    with mode:
        batches = engine.batches(
            Samples(data), ((0, replicas, replicas),), transform=None, workers=0, halt=lambda: False
        )
        for x, y in batches:
            if engine.backward(nn.functional.cross_entropy(model(x), y)):
                yield


def plain_calls(model, data) -> Counter:
    optimizer = optimizer_of(model.parameters(), 0.01)
    for step in range(STEPS):
        with Calls() as calls:
            x, y = (part[step * 8 : step * 8 + 8] for part in data)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return calls.seen


def images(count):
    return torch.randn(count, 3, 4, 4), torch.randint(0, 10, (count,))


@pytest.mark.parametrize("reduce", ["exact", "ddp"])
@pytest.mark.parametrize(("size", "most_waits"), [(1, 0), (8, 1)])
def test_a_step_takes_hardly_more_calls_than_a_plain_loop(
    tmp_path, size, most_waits, reduce, monkeypatch
) -> None:
    monkeypatch.setattr(GroupOfOne, "start_sum", lambda *_: None)
    plain = plain_calls(like_resnet_50(), images(8 * STEPS))
    calls = Calls()
    steps = trained(like_resnet_50(), size, 1, images(8 * size * STEPS), calls, tmp_path, reduce=reduce)
    done = 0
    for _ in steps:
        done, found = done + 1, calls.seen.copy()
        calls.seen.clear()
    assert done == STEPS
    assert found.total() <= 1.15 * plain.total(), (found - plain).most_common(20)
    waits = sum((found - plain)[name] for name in WAITS)
    assert waits <= most_waits, "the flag, which a GPU reads a step later"


@pytest.mark.parametrize("size", [1, 8])
@pytest.mark.parametrize("carried", [1, 2, 4])
def test_gradients_take_at_most_two_and_a_half_copies(tmp_path, size, carried, monkeypatch) -> None:
    monkeypatch.setattr(flat, "LEAST_BUCKET_BYTES", 1)
    model = nn.Sequential(*[nn.Linear(64, 64, bias=False) for _ in range(32)])
    gradient = sum(p.numel() * p.element_size() for p in model.parameters())
    memory, count = Memory(), 8 * size * carried * 2
    memory.known(model.parameters())
    data = torch.randn(count, 64), torch.randint(0, 64, (count,))
    for _ in trained(model, size, carried, data, memory, tmp_path, optimizer=torch.optim.SGD):
        pass
    assert gradient * 0.9 < memory.peak <= 2.5 * gradient
