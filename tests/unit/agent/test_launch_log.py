"""The log of a launch is bounded, whoever writes into it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from parsl_rasda.agent import launch
from parsl_rasda.agent.launch import Launch

PROGRAM = """
import sys
for i in range(50_000):
    sys.stderr.write(f"{i:09}\\n")
sys.stderr.flush()
input()
sys.stderr.write("last words\\n")
"""


def test_a_log_is_begun_afresh_and_its_last_part_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "LARGEST_LOG", 100_000)
    command = {"argv": [sys.executable, "-c", PROGRAM], "environment": {}, "files": {}}
    started = Launch(command, "mark", tmp_path / "log.txt")
    while (tmp_path / "log.txt").stat().st_size < 500_000:
        assert started.returncode is None
    started.bound_log()
    assert (tmp_path / "log.txt").stat().st_size == 0
    assert (tmp_path / "log.txt.1").read_text().splitlines()[-1] == "000049999"
    assert (tmp_path / "log.txt.1").stat().st_size == 100_000
    started.write({})  # a line
    while started.returncode is None:
        pass
    started.close()
    assert (tmp_path / "log.txt").read_text() == "last words\n"
