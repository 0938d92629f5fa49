"""Whether a queue of PBS takes what is asked for; Slurm's own judgement, and when it gives none.

Slurm itself judges in the integration tests.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from parsl_rasda.backends.parsl.request_check import RequestAnswer, check_request, read_queue
from parsl_rasda.study import load_site

SLURM = "provider: {type: SlurmProvider, partition: gpu, cmd_timeout: 1}"


def shown(**fields: object) -> str:
    limits = {"resources_max": {"nodect": 10, "walltime": "24:00:00"}, "resources_min": {"nodect": 2}}
    return json.dumps({"Queue": {"gpu": {"enabled": "True", "started": "True", **limits, **fields}}})


def test_a_request_within_the_limits_is_taken() -> None:
    answer = read_queue(shown(), nodes=10, walltime="24:00:00")
    assert answer is not None
    assert answer.is_taken


@pytest.mark.parametrize(
    ("nodes", "walltime", "queue", "said"),
    [
        (11, "01:00:00", {}, "at most 10"),
        (1, "01:00:00", {}, "at least 2"),
        (4, "24:00:01", {}, "at most 24:00:00"),
        (4, "01:00:00", {"enabled": "False"}, "takes no jobs"),
        (4, "01:00:00", {"started": "False"}, "starts no jobs"),
    ],
)
def test_a_request_beyond_them_is_told_with_the_limit(
    nodes: int, walltime: str, queue: dict[str, str], said: str
) -> None:
    answer = read_queue(shown(**queue), nodes=nodes, walltime=walltime)
    assert answer is not None
    assert not answer.is_taken
    assert said in answer.words


@pytest.mark.parametrize("said", ["", "qstat: unknown queue", "{}", '{"Queue": {"a": {}, "b": {}}}'])
def test_no_answer_is_no_judgement(said: str) -> None:
    assert read_queue(said, nodes=1, walltime="01:00:00") is None


def asked_of_slurm(folder: Path, does: str, patch: pytest.MonkeyPatch) -> RequestAnswer | None:
    (folder / "sbatch").write_text(f"#!/bin/sh\n{does}\n")
    (folder / "sbatch").chmod(0o755)
    patch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    (folder / "site.yaml").write_text(SLURM)
    return check_request(load_site(folder / "site.yaml"))


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (1, "sbatch: error: Unable to contact slurm controller (connect failure)"),
        (1, "sbatch: fatal: Could not establish a configuration source"),
        (1, "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"),
        (127, "/bin/sh: 1: sbatch: not found"),
        (127, "sbatch: error while loading shared libraries: libslurm.so"),
        (1, "env: sbatch: No such file or directory"),
    ],
)  # fmt: skip
def test_a_slurm_that_cannot_be_reached_refuses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, said: str
) -> None:
    does = f"printf '%s\\n' {shlex.quote(said)} >&2; exit {code}"
    assert asked_of_slurm(tmp_path, does, monkeypatch) is None


def test_a_slurm_that_does_not_answer_refuses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert asked_of_slurm(tmp_path, "exec sleep 5", monkeypatch) is None


def test_what_slurm_says_is_its_judgement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = "sbatch: error: invalid partition specified: gpu"
    answer = asked_of_slurm(tmp_path, f"echo {refusal} >&2; exit 1", monkeypatch)
    assert answer == RequestAnswer(False, refusal)
    start = "sbatch: Job 7 to start at 2026-11-30T12:00:00 a"
    assert asked_of_slurm(tmp_path, f"echo {start} >&2", monkeypatch) == RequestAnswer(True, start[8:])
