"""On a GPU: the same bits at any width, lower precision, and checkpoints that go anywhere.

Ranks share the one GPU that a test machine has, which NCCL refuses: they speak gloo.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gpu_functions import network, trained
from rank_launch import epochs_of, metrics_of, report_of
from width_cases import differing, final_state

from parsl_rasda.runtime import load_model
from parsl_rasda.types import Outcome

pytestmark = [pytest.mark.gpu, pytest.mark.mpi, pytest.mark.timeout(900)]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(
            "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
        ),
        pytest.param("cpu", marks=pytest.mark.slow),  # what these tests themselves are worth
    ],
)
def accelerator(request):
    return request.param


@pytest.fixture(scope="module")
def alone(tmp_path_factory, accelerator):
    return trained(tmp_path_factory.mktemp("alone"), 1, accelerator=accelerator)


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_train_to_the_bits_of_one(alone, accelerator, tmp_path, world_size) -> None:
    order = trained(tmp_path, world_size, accelerator=accelerator)
    assert metrics_of(order) == metrics_of(alone)
    assert differing(final_state(order), final_state(alone)) == []


def test_the_model_is_on_the_device_and_learns_the_same_twice(alone, accelerator, tmp_path) -> None:
    again = trained(tmp_path, 1, accelerator=accelerator)
    assert metrics_of(again) == metrics_of(alone)
    assert {m["on_device"] for m in metrics_of(alone)} == {1.0}
    losses = [m["train_loss"] for m in metrics_of(alone)]
    assert losses[-1] < losses[0]


def test_a_trial_that_is_resized_on_the_way_ends_with_the_same_bits(alone, accelerator, tmp_path) -> None:
    first = trained(tmp_path / "first", 1, accelerator=accelerator, until=1)
    second = trained(
        tmp_path / "second", 2, accelerator=accelerator, epoch=1, resume_from=report_of(first).checkpoint.path
    )
    assert metrics_of(first, second) == metrics_of(alone)
    assert differing(final_state(second), final_state(alone)) == []


def test_a_checkpoint_is_loaded_where_there_is_no_gpu(alone) -> None:
    model = network(16)
    header = load_model(Path(report_of(alone).checkpoint.path), model)
    assert header["epoch"] == 3
    assert {p.device.type for p in model.parameters()} == {"cpu"}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_gives_the_same_bits_at_any_width_too(accelerator, tmp_path, precision) -> None:
    orders = [
        trained(tmp_path / str(w), w, accelerator=accelerator, training={"precision": precision}, until=1)
        for w in (1, 2)
    ]
    assert [report_of(order).outcome for order in orders] == [Outcome.REACHED] * 2
    assert metrics_of(orders[0]) == metrics_of(orders[1])
    assert len(epochs_of(orders[0])) == 1
