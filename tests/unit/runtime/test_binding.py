"""Which cores a rank keeps to: those that the site file gives its GPU, as far as it may use them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parsl_rasda.devices import CORES_VARIABLE
from parsl_rasda.runtime.process.binding import own_cores

LUMI = {CORES_VARIABLE: "49-55 57-63 17-23 25-31 1-7 9-15 33-39 41-47"}
ALL = frozenset(range(64))


@pytest.mark.parametrize(("gpu", "cores"), [(0, range(49, 56)), (4, range(1, 8)), (7, range(41, 48))])
def test_a_rank_keeps_to_the_cores_next_to_its_gpu(gpu: int, cores: range) -> None:
    assert own_cores(gpu, LUMI, ALL) == frozenset(cores)


def test_lists_and_ranges_may_be_mixed() -> None:
    assert own_cores(1, {CORES_VARIABLE: "0 2,4-6,9"}, ALL) == {2, 4, 5, 6, 9}


@pytest.mark.parametrize("environ", [{}, {CORES_VARIABLE: ""}, {CORES_VARIABLE: "0-7"}])
def test_a_gpu_without_cores_of_its_own_binds_nothing(environ: dict[str, str]) -> None:
    assert own_cores(3, environ, ALL) is None


@given(allowed=st.frozensets(st.integers(0, 63)), gpu=st.integers(0, 7))
def test_a_rank_is_never_bound_to_cores_that_it_may_not_use(allowed: frozenset[int], gpu: int) -> None:
    cores = own_cores(gpu, LUMI, allowed)
    assert cores is None or (cores and cores <= allowed)


def test_a_process_binds_itself() -> None:
    mine = sorted(os.sched_getaffinity(0))
    code = """import os
from parsl_rasda.runtime.process.binding import bind
bind(0)
print(os.sched_getaffinity(0))"""
    environ = {**os.environ, CORES_VARIABLE: str(mine[-1])}
    said = subprocess.run(
        (sys.executable, "-c", code), env=environ, capture_output=True, text=True, check=True
    )
    assert said.stdout == f"{{{mine[-1]}}}\n"
