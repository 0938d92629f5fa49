"""What goes between controller and ranks: old JSON is read, and a later version's words are passed over."""

from __future__ import annotations

import json
from pathlib import Path

from parsl_rasda.protocol import EpochReport, JobResult, JobSpec, read_report
from parsl_rasda.types import Fault, JobId, Outcome, Phase, TrialId, schedule_entry

RESULT = JobResult(
    TrialId("0001"),
    2,
    Outcome.LOST,
    3,
    "the disk is full",
    phase=Phase.TRAINING,
    fault=Fault.STORAGE,
    exception="StorageError",
)


def test_a_result_is_read_as_it_was_written() -> None:
    assert JobResult.from_json(json.loads(json.dumps(RESULT.to_json()))) == RESULT


def test_a_result_of_the_version_before_is_read() -> None:
    old = RESULT.to_json()
    for name in ("phase", "fault", "exception"):
        del old[name]
    found = JobResult.from_json(old)
    assert (found.cause, found.phase, found.fault, found.exception) == (RESULT.cause, None, None, "")


def test_a_fault_that_a_later_version_knows_is_none(tmp_path: Path) -> None:
    later = RESULT.to_json() | {"fault": "cosmic_rays", "phase": "dreaming"}
    (tmp_path / "report.json").write_text(json.dumps(later))
    found = read_report(tmp_path, JobId(TrialId("0001"), 2))
    assert found is not None
    assert (found.phase, found.fault) == (None, None)


def ordered(schedule: tuple[tuple[int, ...], ...]) -> JobSpec:
    names = {"study": "s", "directory": "/d", "metric": "loss", "mode": "min", "config": {}}
    counts = {"attempt": 1, "seed": 1, "epoch": 1, "until": 2, "max_epochs": 4, "world_size": 1}
    return JobSpec(trial=TrialId("0001"), schedule=schedule, **names, **counts)


def test_a_schedule_of_the_version_before_has_as_many_batches_as_replicas() -> None:
    order = ordered(((0, 4),))
    old = json.loads(json.dumps(order.to_json())) | {"schedule": [[0, 2], [1, 4]]}
    found = JobSpec.from_json(old)
    assert (found.replicas, found.batches) == (4, 4)
    assert json.loads(json.dumps(found.to_json())) == old, "and is written as it was"


def test_batches_are_in_a_schedule_where_they_differ() -> None:
    order = ordered((schedule_entry(0, 4, 1),))
    assert order.schedule == ((0, 4, 1),)
    found = JobSpec.from_json(json.loads(json.dumps(order.to_json())))
    assert found == order
    assert (found.replicas, found.batches) == (4, 1)


def test_an_epoch_of_the_version_before_counts_no_samples() -> None:
    report = EpochReport(TrialId("0001"), 2, 3, {"loss": 1.0}, 2.0, samples=448)
    assert EpochReport.from_json(json.loads(json.dumps(report.to_json()))) == report
    old = report.to_json()
    del old["samples"]
    assert EpochReport.from_json(old).samples is None
