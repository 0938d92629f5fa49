"""What went wrong while ranks wait for each other: the others' doing, or this rank's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from parsl_rasda.runtime.engine.group import Group, PeersLostError


@dataclass
class Failing:
    """A collective that ends with an error."""

    error: Exception

    def wait(self) -> None:
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: device-side assert triggered"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        torch.OutOfMemoryError("CUDA out of memory"),
    ],
)
def test_an_error_of_a_kernel_that_shows_in_a_collective_is_told_as_it_is(error) -> None:
    group = Group(0, 1, torch.device("cpu"), Path(), one_node=True)
    with pytest.raises(type(error)) as found:
        group.finish(Failing(error))
    assert found.value is error


@pytest.mark.parametrize("words", ["Connection closed by peer", "NCCL error: unhandled cuda error"])
def test_any_other_error_of_a_collective_means_that_a_peer_is_gone(words) -> None:
    group = Group(0, 1, torch.device("cpu"), Path(), one_node=True)
    with pytest.raises(PeersLostError, match=words):
        group.finish(Failing(RuntimeError(words)))
