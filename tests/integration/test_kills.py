"""Random deaths while ranks start: nothing is left, and nothing is wrong."""

from __future__ import annotations

import os

import pytest
from kills import endure
from rank_launch import missing_of

WRONG = (
    *("wrong_reports", "wrong_trials", "orphans", "left_behind"),
    *("processes_left", "files_left", "shared_memory_left"),
)
KILLS = int(os.environ.get("RASDA_KILLS", "16"))


@pytest.mark.mpi
@pytest.mark.slow
@pytest.mark.timeout(120 + 20 * KILLS)
@pytest.mark.parametrize("launcher", ["hydra", "openmpi"])
def test_kills_while_ranks_start_leave_nothing_behind_and_nothing_wrong(tmp_path, need, launcher) -> None:
    need("openmpi" if launcher == "openmpi" else "mpiexec", also_missing=missing_of(launcher))
    found = endure(tmp_path, KILLS, launcher=launcher)
    assert sum(found["kills"].values()) == KILLS
    assert {name: found[name] for name in WRONG} == dict.fromkeys(WRONG, 0)
