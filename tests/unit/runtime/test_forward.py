"""How a prepared model computes, and that copies of it compute with weights of their own."""

from __future__ import annotations

import copy
from types import MethodType

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from parsl_rasda.runtime import local_trial
from parsl_rasda.runtime.engine.forward import compile_forward, run_in_precision

X = torch.ones(2, 3)


class Sum(nn.Module):
    """A model of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 1))

    def forward(self, x):
        return x @ self.weight


def prepared(model, precision):
    return local_trial({}, precision=precision).prepare(model, torch.optim.SGD, lr=0.1)[0]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("make", [Sum, lambda: nn.Linear(3, 1), lambda: nn.Sequential(nn.Linear(3, 1))])
def test_a_copy_of_a_prepared_model_computes_with_its_own_weights(make, precision) -> None:
    model = prepared(make(), precision)
    other = copy.deepcopy(model)
    nn.utils.vector_to_parameters(0.0 * nn.utils.parameters_to_vector(other.parameters()), other.parameters())
    assert other(X).tolist() == [[0.0], [0.0]]
    assert model(X).tolist() != [[0.0], [0.0]]
    assert other(X).dtype is model(X).dtype is torch.float32


def test_an_average_of_weights_is_the_average(tmp_path) -> None:
    model = prepared(Sum(), "bf16")
    average = AveragedModel(model)
    for weight in (1.0, 3.0):
        model.weight.data.fill_(weight)
        average.update_parameters(model)
    assert average(X).tolist() == [[6.0], [6.0]]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # torch's own use
def test_a_copy_of_a_compiled_model_computes_with_its_own_weights() -> None:
    torch._dynamo.reset()
    model = Sum()
    run_in_precision(model, "cpu", torch.bfloat16)
    compile_forward(model)
    other = copy.deepcopy(model)
    other.weight.data.fill_(2.0)
    assert (model(X).tolist(), other(X).tolist()) == ([[3.0], [3.0]], [[6.0], [6.0]])


def test_a_prepared_model_is_still_of_its_class() -> None:
    model = prepared(Sum(), "bf16")
    assert isinstance(model, Sum)
    assert (type(model).__name__, type(model).__module__) == ("Sum", Sum.__module__)


def test_a_forward_that_the_user_has_put_on_the_model_is_the_one_that_runs() -> None:
    model = Sum()
    model.forward = MethodType(lambda self, x: 10 * (x @ self.weight), model)
    assert prepared(model, "bf16")(X).tolist() == [[30.0], [30.0]]
