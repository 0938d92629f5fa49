"""An attempt that stood still and returns after its successor: real ranks, on a real disk."""

from __future__ import annotations

import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from backend_tools import eventually

from parsl_rasda.agent import endpoint_tasks, orphan_reaper
from parsl_rasda.protocol import JobSpec, read_epochs, read_report
from parsl_rasda.types import JobId, Outcome, TrialId


def order(folder: Path, attempt: int, **fields: Any) -> JobSpec:
    return JobSpec(
        study="s",
        trial=TrialId("0000"),
        attempt=attempt,
        config={"lr": 0.01},
        directory=str(folder / "trials" / "0000" / f"attempt-{attempt}"),
        seed=1,
        metric="val_loss",
        mode="min",
        until=6,
        max_epochs=6,
        schedule=((0, 1),),
        world_size=1,
        python="workflows.emulated.train:train",
        slots=("here:0",),
        accelerator="none",
        **{"epoch": 0, "inputs": {"epoch_s": 0.5}, **fields},
    )


def run(folder: Path, job: JobSpec) -> dict[str, Any]:
    argv = [sys.executable, "-m", "parsl_rasda.runtime", f"{job.directory}/order.json"]
    launch = {"argv": argv, "environment": {}, "files": {}}
    sender = {"folder": str(folder), "mark": folder.name, "term": 1}
    (state,) = endpoint_tasks.run(job.to_json(), launch, mark_of(job), sender, sys.path, grace_s=120.0)[
        "jobs"
    ]
    found: dict[str, Any] = state
    return found


def mark_of(job: JobSpec) -> str:
    return f"{job.directory}/{job.attempt}"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_a_stale_attempt_that_returns_after_its_successor_changes_nothing_on_disk(tmp_path: Path) -> None:
    stale = order(tmp_path, 1)
    directory, successor = Path(stale.directory), tmp_path / "trials" / "0000" / "attempt-2"
    with ThreadPoolExecutor(1) as tasks:
        first = tasks.submit(run, tmp_path, stale)
        eventually(lambda: any(epoch.checkpoint for epoch in read_epochs(directory, stale.job)))
        frozen = [process.pid for process in orphan_reaper.marked(orphan_reaper.JOB_VARIABLE, mark_of(stale))]
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        try:
            asked = {
                "directory": str(directory),
                "job": "0000.1",
                "epoch": 0,
                "mark": "on a node that is away",
            }
            answer = endpoint_tasks.poll([{**asked, "stop": None, "abandon": None}], silence_s=-1.0)
            (state,) = answer["jobs"]
            assert state["report"]["outcome"] == Outcome.LOST
            kept = Path(state["report"]["checkpoint"])
            known = state["report"]["checkpoint_epoch"] or state["report"]["epoch"]
            second = run(tmp_path, order(tmp_path, 2, epoch=known, resume_from=str(kept)))
            assert second["report"]["outcome"] == Outcome.REACHED
            before = contents(successor)
        finally:
            for pid in frozen:
                os.kill(pid, signal.SIGCONT)
        assert first.result(60)["report"]["outcome"] == Outcome.LOST, "what was said of it stands"
    report = read_report(directory, JobId(TrialId("0000"), 1))
    assert report is not None
    assert report.outcome is Outcome.LOST
    assert (kept / "header.json").exists()
    assert contents(successor) == before
    assert second["report"]["checkpoint"] == str(successor / "epoch-000006")
    assert [epoch["epoch"] for epoch in second["epochs"]] == list(range(known + 1, 7))
