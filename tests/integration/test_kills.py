"""Random deaths while ranks start: nothing is left, and nothing is wrong."""

from __future__ import annotations

import os

import pytest
from kills import endure

KILLS = int(os.environ.get("RASDA_KILLS", "30"))


@pytest.mark.mpi
@pytest.mark.slow
@pytest.mark.timeout(120 + 20 * KILLS)
def test_kills_while_ranks_start_leave_nothing_behind_and_nothing_wrong(tmp_path) -> None:
    found = endure(tmp_path, KILLS)
    assert sum(found["kills"].values()) == KILLS
    wrong = ("wrong_reports", "wrong_trials", "orphans", "processes_left", "files_left", "shared_memory_left")
    assert {name: found[name] for name in wrong} == dict.fromkeys(wrong, 0)
    assert found["slowest_end_after_a_kill_s"] < 10.0
