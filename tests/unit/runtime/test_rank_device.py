"""Which kernels may run, by what the study asks for."""

from __future__ import annotations

import os

import pytest
import torch

from parsl_rasda.runtime.engine.rank_device import make_deterministic


@pytest.fixture(autouse=True)
def as_before():
    variable = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True
    if variable is None:
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def test_kernels_without_a_fixed_order_are_errors_where_exact_sums_are_demanded() -> None:
    make_deterministic(is_demanded=True)
    with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
        torch.zeros(2).put_(torch.tensor([0, 0]), torch.ones(2), accumulate=False)


def test_they_are_warned_of_where_exact_sums_are_only_preferred() -> None:
    make_deterministic(is_demanded=False)
    with pytest.warns(UserWarning, match="does not have a deterministic implementation"):
        torch.zeros(2).put_(torch.tensor([0, 0]), torch.ones(2), accumulate=False)


def test_no_time_goes_into_filling_memory() -> None:
    make_deterministic(is_demanded=True)
    assert not torch.utils.deterministic.fill_uninitialized_memory
