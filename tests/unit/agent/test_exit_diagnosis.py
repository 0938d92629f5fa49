from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from parsl_rasda.agent import exit_diagnosis
from parsl_rasda.protocol import Checkpoint, EpochReport, JobResult, JobSpec
from parsl_rasda.types import Outcome, TrialId

ORDER = JobSpec(
    study="s",
    trial=TrialId("t0"),
    attempt=2,
    config={},
    directory="unused",
    seed=1,
    metric="loss",
    mode="min",
    epoch=3,
    until=4,
    max_epochs=8,
    schedule=((0, 1),),
    world_size=1,
)
MPICH_KILLED = """user output
=   BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES
=   EXIT CODE: 9
YOUR APPLICATION TERMINATED WITH THE EXIT STRING: Killed (signal 9)
This typically refers to a problem with your application.
Please see the FAQ page for debugging suggestions
"""
MPICH_ABORTED = MPICH_KILLED.replace("CODE: 9", "CODE: 6").replace(
    "Killed (signal 9)", "Terminated (signal 15)"
)


def epoch(number: int) -> EpochReport:
    return EpochReport(
        TrialId("t0"), 2, number, {"loss": 0.5}, 1.0, checkpoint=Checkpoint(f"epoch-{number:06d}", number)
    )


def write_epochs(directory: Path, *reports: EpochReport, tail: str = "") -> None:
    lines = "".join(json.dumps(report.to_json()) + "\n" for report in reports)
    (directory / "epochs.jsonl").write_text(lines + tail)


def test_the_ranks_own_report_wins_over_every_inference(tmp_path: Path) -> None:
    report = JobResult(TrialId("t0"), 2, Outcome.FAILED, 3, "ValueError: no", None, "Traceback", 1.0)
    (tmp_path / "report.json").write_text(json.dumps(report.to_json()))
    assert exit_diagnosis.conclude(tmp_path, ORDER, Outcome.LOST, "exit 1") == report


def test_what_is_lost_while_it_leaves_was_preempted(tmp_path: Path) -> None:
    lost = JobResult(
        TrialId("t0"), 2, Outcome.LOST, 3, "rank 1 died by SIGKILL", Checkpoint("epoch-000003", 3)
    )
    (tmp_path / "report.json").write_text(json.dumps(lost.to_json()))
    found = exit_diagnosis.conclude(tmp_path, ORDER, Outcome.PREEMPTED, "stopped")
    assert found == replace(lost, outcome=Outcome.PREEMPTED, cause="stopped")
    assert exit_diagnosis.conclude(tmp_path, ORDER, Outcome.LOST, "exit 9") == lost


def test_a_report_of_another_attempt_counts_for_nothing(tmp_path: Path) -> None:
    report = JobResult(TrialId("t0"), 1, Outcome.REACHED, 4)
    (tmp_path / "report.json").write_text(json.dumps(report.to_json()))
    assert exit_diagnosis.conclude(tmp_path, ORDER, Outcome.LOST, "gone").outcome is Outcome.LOST


def test_without_a_report_the_last_whole_epoch_gives_the_checkpoint(tmp_path: Path) -> None:
    write_epochs(tmp_path, epoch(4), replace(epoch(5), checkpoint=None), tail='{"trial": "t0", "att')
    found = exit_diagnosis.conclude(tmp_path, ORDER, Outcome.LOST, "gone")
    assert (found.epoch, found.checkpoint, found.cause) == (5, Checkpoint("epoch-000004", 4), "gone")


def test_without_anything_the_attempt_did_nothing(tmp_path: Path) -> None:
    found = exit_diagnosis.conclude(tmp_path / "never made", ORDER, Outcome.LOST, "gone")
    assert (found.epoch, found.checkpoint) == (3, None)


@pytest.mark.parametrize(
    ("returncode", "log", "cause"),
    [
        (9, MPICH_KILLED, "a rank died by SIGKILL (exit 9): user output"),
        (15, MPICH_ABORTED, "a rank died by SIGABRT (exit 15)"),
        (11, "x exited on signal 11 (Segmentation fault)", "a rank died by SIGSEGV (exit 11)"),
        (137, "srun: error: n1: task 0: Killed", "a rank died by SIGKILL (exit 137)"),
        (-15, "", "the launcher died by SIGTERM (exit -15)"),
        (1, "a\nb\nc\nd\n", "the ranks ended without a report (exit 1): b | c | d"),
        (0, "", "the ranks ended without a report (exit 0)"),
        (7, "", "the ranks ended without a report (exit 7)"),
    ],
)
def test_an_exit_is_told_in_words(tmp_path: Path, returncode: int, log: str, cause: str) -> None:
    path = tmp_path / "log.txt"
    path.write_text(log)
    assert exit_diagnosis.cause_of_exit(returncode, path).startswith(cause)


def test_an_exit_without_a_log_is_told_too(tmp_path: Path) -> None:
    assert exit_diagnosis.cause_of_exit(-9, tmp_path / "none") == "the launcher died by SIGKILL (exit -9)"


@pytest.mark.parametrize("code", [1, 9, 137])
@pytest.mark.parametrize(
    "line",
    [
        "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0. Some tasks have been OOM Killed.",
        "srun: error: n0: task 0: Out Of Memory",
    ],
)
def test_a_rank_that_ran_out_of_memory_is_told_so_whatever_the_exit_code(
    tmp_path: Path, code: int, line: str
) -> None:
    (tmp_path / "log.txt").write_text(line + "\n")
    assert exit_diagnosis.cause_of_exit(code, tmp_path / "log.txt") == (
        f"a rank ran out of memory (exit {code}): {line}"
    )


def test_rules_and_zero_bytes_of_a_launcher_are_no_last_words(tmp_path: Path) -> None:
    said = "out of resource\n  Binding policy: NONE\n" + "-" * 60 + "\n\0\n"
    (tmp_path / "log.txt").write_text(said)
    assert exit_diagnosis.cause_of_exit(1, tmp_path / "log.txt").endswith("(exit 1): out of resource")
