"""What goes between controller and ranks: old JSON is read, and a later version's words are passed over."""

from __future__ import annotations

import json
from pathlib import Path

from parsl_rasda.protocol import JobResult, read_report
from parsl_rasda.types import Fault, JobId, Outcome, Phase, TrialId

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
