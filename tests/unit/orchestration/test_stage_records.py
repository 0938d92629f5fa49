"""Results of stages are found again where they were kept."""

from __future__ import annotations

from pathlib import Path

from parsl_rasda.orchestration.stage_records import keep_result, kept_call, kept_names


def test_results_of_calls_are_kept_below_folders_that_are_not_there_yet(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "stages" / "simulate"
    keep_result(folder, "first/0001", "a key", {"result": 1})
    keep_result(folder, "0002", "another", {"result": 2})
    assert kept_call(folder, "first/0001") == {"key": "a key", "result": 1}
    assert kept_names(folder) == {"a key": "first/0001", "another": "0002"}
    assert kept_call(folder, "0003") is None
