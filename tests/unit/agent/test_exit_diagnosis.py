from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from parsl_rasda.agent import exit_diagnosis
from parsl_rasda.exits import EndedBy, ExitObservations
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
LOST = ExitObservations(EndedBy.PILOT_LOST, "gone")


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
    assert exit_diagnosis.conclude(tmp_path, ORDER, LOST) == report


def test_what_is_lost_while_it_leaves_was_preempted(tmp_path: Path) -> None:
    lost = JobResult(
        TrialId("t0"), 2, Outcome.LOST, 3, "rank 1 died by SIGKILL", Checkpoint("epoch-000003", 3)
    )
    (tmp_path / "report.json").write_text(json.dumps(lost.to_json()))
    found = exit_diagnosis.conclude(tmp_path, ORDER, ExitObservations(EndedBy.CONTROLLER, "stopped"))
    assert found == replace(lost, outcome=Outcome.PREEMPTED, cause="stopped")
    assert exit_diagnosis.conclude(tmp_path, ORDER, LOST) == lost


def test_a_report_of_another_attempt_counts_for_nothing(tmp_path: Path) -> None:
    report = JobResult(TrialId("t0"), 1, Outcome.REACHED, 4)
    (tmp_path / "report.json").write_text(json.dumps(report.to_json()))
    assert exit_diagnosis.conclude(tmp_path, ORDER, LOST).outcome is Outcome.LOST


def test_without_a_report_the_last_whole_epoch_gives_the_checkpoint(tmp_path: Path) -> None:
    write_epochs(tmp_path, epoch(4), replace(epoch(5), checkpoint=None), tail='{"trial": "t0", "att')
    found = exit_diagnosis.conclude(tmp_path, ORDER, LOST)
    assert (found.epoch, found.checkpoint, found.cause) == (5, Checkpoint("epoch-000004", 4), "gone")


def test_without_anything_the_attempt_did_nothing(tmp_path: Path) -> None:
    found = exit_diagnosis.conclude(tmp_path / "never made", ORDER, LOST)
    assert (found.epoch, found.checkpoint) == (3, None)


def test_the_end_of_the_log_is_observed_without_zero_bytes(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("x" * 5000 + "\n  out of resource\n\0\n")
    seen = exit_diagnosis.observe_launch(1, tmp_path / "log.txt")
    assert (seen.ended_by, seen.returncode) == (EndedBy.LAUNCH_EXIT, 1)
    assert seen.log_tail[1:] == ("out of resource", "")
    assert exit_diagnosis.observe_launch(-9, tmp_path / "none").log_tail == ()
