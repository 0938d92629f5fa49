"""A program that ends before its search: nothing goes on without it, and the next one goes on from there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from parsl_rasda.orchestration.run_directory import RunDirectory

PROGRAM = Path(__file__).parent / "ending_program.py"
REPOSITORY = Path(__file__).parents[2]

pytestmark = pytest.mark.parsl


def program(folder: Path, kind: str, way: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        [sys.executable, str(PROGRAM), kind, way],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def events(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line)["event"] for line in (run / "journal.jsonl").read_text().splitlines()[1:]]


@pytest.mark.parametrize(
    ("kind", "way", "code"),
    [
        ("threads", "raise", -signal.SIGINT),
        ("threads", "exit", 7),
        ("threads", "end", 0),
        pytest.param("htex", "raise", -signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_a_program_that_ends_takes_its_searches_along_and_the_next_goes_on(
    tmp_path: Path, kind: str, way: str, code: int
) -> None:
    ended = program(tmp_path, kind, way)
    ended_at = time.time()
    assert ended.returncode == code, ended.stderr
    complaints = [line for line in ended.stderr.splitlines() if "rror" in line or "xception" in line]
    assert not complaints, ended.stderr
    assert RunDirectory(tmp_path / "run").controller is None
    assert not (tmp_path / "next").exists(), "it waited for its turn"
    seen = events(tmp_path / "run")
    (interrupted_at,) = (e["at"] for e in seen if e["type"] == "StudyInterrupted")
    assert ended_at - interrupted_at < 35, "no job was waited for until it had to be killed"
    assert {e["outcome"] for e in seen if e["type"] == "JobEnded"} == {"preempted"}
    assert sum(e["type"] == "EpochReported" for e in seen) < 2 * 16
    finished = program(tmp_path, kind, "finish")
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.strip() == "16"
    epochs = [
        (e["job"]["trial"], e["epoch"]) for e in events(tmp_path / "run") if e["type"] == "EpochReported"
    ]
    assert len(epochs) == 2 * 16 == len(set(epochs)), "no epoch was lost, none was trained twice"
