"""What `cancel` ends: the controller, its job, and the job that came after it."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from typer.testing import CliRunner

from parsl_rasda.backends.parsl.controller_job import ControllerJob
from parsl_rasda.cli.main import app
from parsl_rasda.errors import RunDirectoryError
from parsl_rasda.orchestration.replay import save_run
from parsl_rasda.orchestration.run_directory import RunDirectory
from parsl_rasda.study import StudySpec
from parsl_rasda.workflow.submission import CancelledRun, cancel_run

STAGES = {"simulate": {"command": "true"}}


class Slurm:
    """Commands that stand for a cluster's; `stands` is what squeue says, None if nothing answers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "bin"
        self.folder.mkdir()
        self.stands(None)

    def stands(self, job: str | None) -> None:
        answers = {"squeue": job, "sinfo": None if job is None else "gpu", "scancel": ""}
        for name, answer in answers.items():
            does = f"echo '{answer}'" if answer is not None else "exit 1"
            (self.folder / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {self.folder}/calls\n{does}\n')
            (self.folder / name).chmod(0o755)

    @property
    def cancelled(self) -> list[str]:
        calls = (self.folder / "calls").read_text().splitlines()
        return [call for call in calls if call.startswith("scancel")]


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    found = Slurm(tmp_path)
    monkeypatch.setenv("PATH", f"{found.folder}:/usr/bin:/bin")
    return found


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    found = RunDirectory(tmp_path / "run")
    with found.controlled():
        save_run(found, StudySpec.model_validate({"name": "steps", "stages": STAGES}), ())
    return found


def submitted(run: RunDirectory, job: str, clusters: str = "") -> None:
    folder = run.path / "submitted"
    folder.mkdir(exist_ok=True)
    asked = ControllerJob(job, "SlurmProvider", is_inside=False, log="log", margin_s=1.0, clusters=clusters)
    (folder / "job.json").write_text(json.dumps(asdict(asked)))


def controlled(run: RunDirectory, last_job: str | None = None) -> threading.Thread:
    """Run a study until told to end; queue another job then."""
    begun = threading.Event()

    def control() -> None:
        with run.controlled():
            begun.set()
            while not run.is_told_to_end:
                time.sleep(0.01)
            if last_job is not None:
                submitted(run, last_job)

    thread = threading.Thread(target=control)
    thread.start()
    assert begun.wait(30.0)
    return thread


@pytest.mark.parametrize(
    ("state", "ends"), [("RUNNING", False), ("COMPLETING", False), ("PENDING", True), ("SUSPENDED", True)]
)
def test_a_job_that_waits_is_cancelled_after_its_controller_and_one_that_runs_ends_by_itself(
    run: RunDirectory, slurm: Slurm, state: str, ends: bool
) -> None:
    submitted(run, "6")
    slurm.stands(f"7|{state}|None|N/A")
    controller = controlled(run, last_job="7")
    assert cancel_run(run.path) == CancelledRun(was_active=True)
    controller.join()
    assert slurm.cancelled == (["scancel 7"] if ends else []), "not the job before it"


@pytest.mark.parametrize("state", ["RUNNING", "PENDING"])
def test_a_job_without_a_controller_is_cancelled_on_its_own_clusters(
    run: RunDirectory, slurm: Slurm, state: str
) -> None:
    submitted(run, "7", "gpus")
    slurm.stands(f"7|{state}|None|N/A")
    assert cancel_run(run.path) == CancelledRun(was_active=True)
    assert slurm.cancelled == ["scancel --clusters=gpus 7"]
    calls = (slurm.folder / "calls").read_text().splitlines()
    assert all("--clusters=gpus" in call for call in calls)


@pytest.mark.parametrize("lives", [True, False])
def test_a_batch_system_that_cannot_be_asked_is_told_and_is_not_a_job_that_has_ended(
    run: RunDirectory, slurm: Slurm, lives: bool
) -> None:
    submitted(run, "7")
    if lives:
        controlled(run)
    assert cancel_run(run.path) == CancelledRun(was_active=lives, unasked="scancel 7")
    assert slurm.cancelled == ["scancel 7"], "it may be that only the question failed"
    said = CliRunner().invoke(app, ["cancel", str(run.path)])
    assert "could not be asked" in said.output
    assert "`scancel 7`" in said.output
    assert "no job of its controller is queued" not in said.output


def test_a_job_that_has_ended_is_nothing_to_end(run: RunDirectory, slurm: Slurm) -> None:
    submitted(run, "7")
    slurm.stands("")
    assert cancel_run(run.path) == CancelledRun(was_active=False)
    assert slurm.cancelled == []


def test_nobody_is_said_to_be_told_where_there_is_no_run(tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(RunDirectoryError, match="is not a run directory"):
        cancel_run(tmp_path / "nothing", said.append)
    assert said == []
