"""What Slurm says of jobs that ended; the lines are what Slurm 22.05 showed."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest

from parsl_rasda.agent.slurm import (
    BatchJobEnd,
    cancel_step,
    end_time,
    granted_gpus,
    read_end,
    read_end_time,
)

LINE = (
    "JobId=7 JobName=parsl.slurm-0 UserId=root(0) Priority=1 Nice=0 JobState={state} Reason={reason} "
    "Dependency=(null) Requeue=0 Restarts={restarts} BatchFlag=1 ExitCode={code} RunTime=00:01:04 "
    "StartTime=2026-11-25T09:31:07 EndTime={end} Deadline=N/A NodeList=n[0-3]"
)


def shown(
    state: str, reason: str = "None", code: str = "0:0", *, restarts: int = 0, end: str = "Unknown"
) -> str:
    return LINE.format(state=state, reason=reason, code=code, restarts=restarts, end=end)


def verdict(state: str, reason: str = "None", code: str = "0:0", *, restarts: int = 0) -> BatchJobEnd | None:
    return read_end("7", shown(state, reason, code, restarts=restarts))


@pytest.mark.parametrize(
    ("state", "reason", "code", "words"),
    [
        ("TIMEOUT", "TimeLimit", "0:0", "Slurm job 7 is TIMEOUT: its walltime was over"),
        ("CANCELLED", "None", "0:15", "Slurm job 7 is CANCELLED: it was cancelled, signal 15"),
        ("NODE_FAIL", "NodeDown", "0:0", "Slurm job 7 is NODE_FAIL: one of its nodes failed"),
        (
            "PREEMPTED",
            "None",
            "0:15",
            "Slurm job 7 is PREEMPTED: a job with a higher priority took its nodes, signal 15",
        ),
        (
            "FAILED",
            "JobLaunchFailure",
            "0:15",
            "Slurm job 7 is FAILED: it was told to end from outside, signal 15",  # by --signal=B:TERM
        ),
    ],
)
def test_what_the_batch_system_takes_back_is_nobodys_fault(
    state: str, reason: str, code: str, words: str
) -> None:
    assert verdict(state, reason, code) == BatchJobEnd(words, was_taken_back=True)


@pytest.mark.parametrize(
    ("state", "reason", "code", "words"),
    [
        (
            "FAILED",
            "NonZeroExitCode",
            "3:0",
            "Slurm job 7 is FAILED: it failed, reason NonZeroExitCode, exit code 3",
        ),
        (
            "OUT_OF_MEMORY",
            "OutOfMemory",
            "0:125",
            "Slurm job 7 is OUT_OF_MEMORY: it ran out of memory, reason OutOfMemory, signal 125",
        ),
        ("COMPLETED", "None", "0:0", "Slurm job 7 is COMPLETED: it ended by itself"),
        ("FAILED", "None", "0:9", "Slurm job 7 is FAILED: it failed, signal 9"),
    ],
)
def test_what_the_pilot_did_itself_is_a_loss(state: str, reason: str, code: str, words: str) -> None:
    assert verdict(state, reason, code) == BatchJobEnd(words, was_taken_back=False)


@pytest.mark.parametrize("state", ["RUNNING", "PENDING", "COMPLETING", "SUSPENDED"])
def test_a_job_that_has_not_ended_has_no_verdict(state: str) -> None:
    assert verdict(state) is None


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "COMPLETING", "CONFIGURING"])
def test_a_job_that_slurm_has_put_back_into_the_queue_was_taken_back(state: str) -> None:
    words = "Slurm job 7 was put back into the queue"
    assert verdict(state, "BeginTime", restarts=1) == BatchJobEnd(words, was_taken_back=True)


def test_a_job_that_ran_again_and_ended_did_so_for_its_own_reason() -> None:
    found = verdict("FAILED", "NonZeroExitCode", "3:0", restarts=1)
    assert found is not None
    assert not found.was_taken_back


def test_the_end_of_a_job_is_slurms_own_time() -> None:
    end = time.mktime((2026, 11, 25, 10, 31, 7, 0, 0, -1))
    assert read_end_time(shown("RUNNING", end="2026-11-25T10:31:07")) == end


@pytest.mark.parametrize("answer", ["", "Invalid job id", shown("RUNNING"), shown("RUNNING", end="N/A")])
def test_a_job_without_an_end_has_none(answer: str) -> None:
    assert read_end_time(answer) is None


def test_an_answer_that_is_none_has_no_verdict() -> None:
    assert read_end("7", "slurm_load_jobs error: Invalid job id specified") is None


def test_the_job_that_an_array_is_named_by_is_not_taken_for_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of it, Slurm shows all: the first record is its own, the others are those of the other tasks."""
    ends = {"7": "2026-11-25T10:31:07", "8": "2026-11-25T12:00:00", "70": "2026-11-25T12:00:00"}
    lines = [
        f"{shown('RUNNING', end=end).replace('JobId=7', f'JobId={job} ArrayJobId=7')} "
        f"Nodes=n{job} CPU_IDs=0-7 Mem=4000 GRES=gpu:2(IDX:0-1)"
        for job, end in ends.items()
    ]
    (tmp_path / "records").write_text("\n".join(lines))
    command = tmp_path / "scontrol"
    command.write_text(f'#!/bin/sh\n[ "$2" = hostnames ] && echo "$3" || cat {tmp_path}/records\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert end_time("7") == read_end_time(shown("RUNNING", end=ends["7"]))
    assert granted_gpus("7") == {"n7": 2}


def test_only_steps_of_that_name_in_our_own_job_are_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = "7.0 t0-attempt-1\\n7.1 t1-attempt-1\\n7.batch batch\\n"
    for name, text in {
        "squeue": f'[ "$4" = --job=7 ] && printf "{listing}"',
        "scancel": 'echo "$@" >> "$0.words"',
    }.items():
        command = tmp_path / name
        command.write_text(f"#!/bin/sh\n{text}\n")
        command.chmod(command.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert cancel_step("t0-attempt-1") == 0, "we are in no job"
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert cancel_step("t0-attempt-1") == 1
    assert (tmp_path / "scancel.words").read_text() == "--signal=KILL 7.0\n"
