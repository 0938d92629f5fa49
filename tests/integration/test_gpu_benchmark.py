"""`benchmarks/gpu.py`, whole and small on the CPU: time on a GPU is too short to find its mistakes there."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import CASES, measured, summary

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

SMALL = argparse.Namespace(accelerator="cpu", small=True)


@pytest.mark.slow
@pytest.mark.mpi
@pytest.mark.timeout(300)
def test_every_case_runs_and_holds_what_it_claims(tmp_path) -> None:
    out = tmp_path / "gpu.json"
    command = [sys.executable, BENCHMARKS / "gpu.py", "--accelerator", "cpu", "--small", "--out", out]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    cases = json.loads(out.read_text())["cases"]
    assert list(cases) == list(CASES)
    assert {case["state"] for case in cases.values()} == {"done"}, done.stdout
    assert done.returncode == 0, done.stdout
    assert len(done.stdout.splitlines()) == len(CASES)
    assert all(case["figures"] for case in cases.values())


def test_a_case_that_fails_says_why_and_one_that_is_late_ends() -> None:
    failed = measured("no such case", SMALL, 60.0)
    assert (failed["state"], failed["why"]) == ("failed", "exit 1")
    assert "KeyError: 'no such case'" in summary(failed)
    assert measured("restarts", SMALL, 1.0)["state"] == "late"
    assert measured("restarts", SMALL, 0.0)["state"] == "not begun"
