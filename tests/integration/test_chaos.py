"""A monkey let loose on one run: it comes to what an undisturbed one comes to. `make chaos` tries 200."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cage import Cage
from monkey import endure

pytestmark = [pytest.mark.parsl, pytest.mark.mpi, pytest.mark.slow, pytest.mark.timeout(900)]

SEED = int(os.environ.get("RASDA_CHAOS_SEED", "1"))


@pytest.fixture
def cage() -> Iterator[Cage]:
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder, Cage(Path(folder)) as cage:
        yield cage  # its path is short, for it holds sockets, too


def test_whatever_is_killed_stopped_or_damaged_a_study_ends_as_undisturbed(need, cage: Cage) -> None:
    need("mpiexec")
    found = endure(cage, "trained", SEED)
    assert found.wrong == [], found
    assert found.acts
