"""A site whose pilot comes to the end of its walltime while studies train there."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from parsl_rasda.orchestration.events import JobEnded, StartJob
from parsl_rasda.types import Outcome
from tests.integration.globus.folder import LOCAL, Folder, verdict

pytestmark = [pytest.mark.globus, pytest.mark.slow]

TRAIN = """
import time
from pathlib import Path
from workflows.emulated.train import loss
def train(trial):
    is_over = Path(trial.inputs["over"]).exists
    for epoch in trial.epochs():
        time.sleep(0.2 if trial.inputs["drains"] or epoch else 4.0)
        if epoch and trial.inputs["drains"] and not is_over():
            time.sleep(600)
        trial.report(val_loss=loss(trial.config, epoch + 1, seed=5))
"""
WITH = "with: {over: %s, drains: {alps: true, local: false}, epoch_s:"


def test_trials_of_a_site_that_drains_move_if_they_share_checkpoints_and_wait_if_not(
    folder: Folder, alone: dict[str, Any]
) -> None:
    """Each of two studies is on a pilot whose end is near; the batch system ends it later."""
    over = folder.path / "over"
    (folder.path / "draining.py").write_text(TRAIN)
    (folder.path / "local.yaml").write_text(LOCAL.replace("gpus_per_node: 2", "gpus_per_node: 1"))
    options = yaml.safe_load((folder.path / "alps.yaml").read_text())["user_endpoint_config"]
    settings = {"own": (), "shared": (f"tune.checkpoints=file://{folder.path}/store",)}
    for into in settings:
        drains = {**options, "walltime": "00:00:35", "study": into}
        site = folder.bed.site_file("alps", folder.path / "disk-alps", user_endpoint_config=drains)
        (folder.path / f"alps-{into}.yaml").write_text(f"{site}checkpoint_margin: 1.0\n")
    changes = {"workflows.emulated.train:train": "draining:train", "with: {epoch_s:": WITH % over}
    folder.write_study(epoch_s=0.0, **changes)
    own, shared = (
        folder.run(f"alps-{into}", "local", into=into, settings=settings[into]) for into in settings
    )
    assert verdict(folder.summary(shared)) == alone, "while the pilot is still there"
    folder.wait_until(lambda: preempted(folder, "own"), own)
    assert not over.exists()
    over.touch()
    assert folder.bed.kill_pilot("alps")
    summary = folder.summary(own)
    assert verdict(summary) == alone
    assert all(trial["losses"] == 0 for trial in summary["trial_list"])
    moved, stayed = after(folder, "shared"), after(folder, "own")
    assert {start.placement.site for start in moved} == {"local"}
    assert all(str(start.resume_from).startswith("file://") and start.epoch for start in moved), moved
    assert {start.placement.site for start in stayed} == {"alps"}
    assert all(start.resume_from and start.epoch for start in stayed), stayed
    for into in settings:
        folder.check_books(into)


def preempted(folder: Folder, into: str) -> list[JobEnded]:
    ended = [r.event for r in folder.records(into) if isinstance(r.event, JobEnded)]
    return [e for e in ended if e.outcome is Outcome.PREEMPTED and e.cause == "the deadline is near"]


def after(folder: Folder, into: str) -> list[StartJob]:
    """Return how the trials went on that had to leave."""
    left = {(e.job.trial, e.job.attempt + 1) for e in preempted(folder, into)}
    found = [s for s in folder.started(into) if (s.job.trial, s.job.attempt) in left]
    assert found
    return found
