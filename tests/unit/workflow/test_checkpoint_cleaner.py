"""What is removed while a search goes on, and what happens when that fails."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from parsl_rasda.checkpoint_files import remove_attempts, remove_checkpoint
from parsl_rasda.runtime.checkpoints.seal import is_whole, sealed
from parsl_rasda.study import GlobusSiteSpec, ParslSiteSpec
from parsl_rasda.types import JobId, SiteName, TrialId
from parsl_rasda.workflow.checkpoint_cleaner import CheckpointCleaner

HERE, FAR = SiteName("here"), SiteName("far")
SITES = {
    HERE: ParslSiteSpec.model_validate({"provider": {"type": "LocalProvider"}}),
    FAR: GlobusSiteSpec.model_validate(
        {"endpoint_id": "0" * 8 + "-0000-4000-8000-" + "0" * 12, "work_dir": "/far", "gpus_per_node": 1}
    ),
}


def checkpoint(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "__0_0.distcp").write_bytes(b"tensors")
    (folder / "header.json").write_text(sealed(folder, {"epoch": 1}))
    assert is_whole(folder)
    return folder


@pytest.fixture
def trials(tmp_path: Path) -> dict[tuple[str, int], Path]:
    names = [(trial, attempt) for trial in ("0000", "0001") for attempt in (1, 2, 3)]
    made = {n: checkpoint(tmp_path / n[0] / f"attempt-{n[1]}" / "epoch-000001") for n in names}
    for path in made.values():
        (path.parent / "report.json").touch()
    return made


def cleaner(folder: Path, url: str | None = None) -> CheckpointCleaner:
    return CheckpointCleaner(SITES, lambda t, s: folder / t, lambda t: f"{url}/{t}" if url else None)


def last(trial: str, attempt: int) -> JobId:
    return JobId(TrialId(trial), attempt)


def test_a_trial_loses_its_checkpoints_up_to_its_last_attempt_and_nothing_else(tmp_path, trials) -> None:
    with cleaner(tmp_path) as it:
        it.discard(last("0000", 2))
    assert [name for name, path in trials.items() if path.exists()] == [
        ("0000", 3),  # of a trial that was started afresh meanwhile
        ("0001", 1),
        ("0001", 2),
        ("0001", 3),
    ]
    assert len(list(tmp_path.glob("*/*/report.json"))) == 6


def test_shared_copies_go_too(tmp_path: Path) -> None:
    copies = [checkpoint(tmp_path / "shared" / "0000" / f"attempt-{n}" / "epoch-000001") for n in (1, 2)]
    with cleaner(tmp_path / "trials", f"file://{tmp_path}/shared") as it:
        it.discard(last("0000", 1))
    assert [copy.exists() for copy in copies] == [False, True]


def test_on_another_disk_the_next_jobs_remove_them(tmp_path: Path) -> None:
    with cleaner(tmp_path) as it:
        for number in range(1200):
            it.discard(last(f"{number:04d}", 1))
        asked = [it.for_job(FAR) for _ in range(3)]
        assert it.for_job(HERE) == ()
    assert [len(ones) for ones in asked] == [1000, 200, 0]
    assert asked[0][0] == last("0000", 1)


def test_what_cannot_be_removed_is_logged_once_and_stops_nothing(tmp_path, trials, caplog) -> None:
    for trial in ("0000", "0001"):
        odd = tmp_path / trial / "attempt-1" / "epoch-000002"
        odd.symlink_to(tmp_path)  # which nobody removes
    with caplog.at_level(logging.DEBUG, "parsl_rasda"), cleaner(tmp_path) as it:
        it.discard(last("0000", 3))
        it.discard(last("0001", 3))
    assert not any(path.exists() for path in trials.values())
    warned = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(warned) == 1
    assert "checkpoints of trial 0000 could not be removed" in warned[0].getMessage()


def test_a_removal_that_a_crash_ends_leaves_nothing_that_could_be_taken_for_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class CrashError(BaseException):
        pass

    real, count = os.unlink, [0]

    def unlink(*arguments, **named):
        count[0] += 1
        if count[0] > allowed:
            raise CrashError
        real(*arguments, **named)

    for allowed in range(4):
        path = checkpoint(tmp_path / str(allowed) / "attempt-1" / "epoch-000001")
        with monkeypatch.context() as patch:
            count[0] = 0
            patch.setattr(os, "unlink", unlink)
            try:
                remove_checkpoint(path)
            except CrashError:
                assert allowed < 2
        assert is_whole(path) == (allowed == 0)
        assert remove_attempts(tmp_path / str(allowed), 1) is None
        assert not path.exists()
