"""Studies over two sites behind Globus Compute endpoints, as their user has them; and what befalls them."""

from __future__ import annotations

import time
from typing import Any

import pytest
import yaml
from backend_tools import eventually

from parsl_rasda.orchestration.events import SiteDegraded, StartJob
from tests.integration.globus.bed import REPOSITORY
from tests.integration.globus.folder import DEADLINE_S, LOCAL, Folder, verdict

pytestmark = [pytest.mark.globus, pytest.mark.slow]

STAGES = """
name: staged
seed: 5
stages:
  prepare:
    python: preparing:prepare
    site: fjord
  tune:
    needs: {data: prepare}
    with: {epoch_s: {alps: 0.8, fjord: 0.6}}
    tune:
      metric: val_loss
      num_samples: 8
      scheduler: {variant: synchronous, max_t: 2, max_workers: 1}
      search_space: {lr: {float: [1.0e-4, 1.0e-1], log: true}}
      training: {python: "workflows.emulated.train:train"}
"""

STUCK_AT = "with: {stuck: {alps: true, local: false}, epoch_s:"
STUCK = """
import time
from workflows.emulated.train import loss
def train(trial):
    for epoch in trial.epochs():
        time.sleep(0.2 if trial.inputs["stuck"] else 2.0)
        if epoch and trial.inputs["stuck"]:
            time.sleep(600)
        trial.report(val_loss=loss(trial.config, epoch + 1, seed=5))
"""

PREPARING = """
from pathlib import Path
import time
def prepare(directory):
    begun, path = Path(directory).parent / "begun", Path(directory) / "data.txt"
    if not begun.exists():
        begun.touch()
        time.sleep(600)
    path.write_text("prepared")
    return path
"""


def test_two_sites_share_one_ranking_and_both_do_work(folder: Folder, alone: dict[str, Any]) -> None:
    folder.write_study(epoch_s=3.0)
    summary = folder.summary(folder.run("alps", "fjord", settings=(folder.shared,)))
    assert verdict(summary) == alone, "the same survivors as on one site"
    assert folder.has_epochs("alps")
    assert folder.has_epochs("fjord")
    folder.check_books()


@pytest.mark.usefixtures("alone")  # the endpoints are up
def test_a_stage_whose_endpoint_and_pilot_are_killed_fails_in_words_and_resume_runs_it_again(
    folder: Folder,
) -> None:
    (folder.path / "preparing.py").write_text(PREPARING)
    (folder.path / "study.yaml").write_text(STAGES)
    process = folder.run("alps", "fjord")
    folder.wait_until(lambda: list(folder.path.glob("disk-fjord/*/stages/prepare/begun")), process)
    assert folder.bed.kill_user_endpoint("fjord")
    assert folder.bed.kill_pilot("fjord")
    _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 3, err
    words = " ".join(err.split())
    cause = words.partition(f"Stage 'prepare' failed: endpoint {folder.bed.endpoints['fjord']}: ")[2]
    died, away = "its task there has been silent for", "it has not answered for"  # as fast as a pilot starts
    assert cause.startswith((died, away)), words
    assert "Search tune runs no trial on alps: `data`, if stage prepare returns a path, is on" in words
    summary = folder.summary(folder.start("resume", "run", "--json"))
    assert summary["trials"]["completed"] + summary["trials"]["stopped"] == 8, summary
    (written,) = folder.path.glob("disk-fjord/*/stages/prepare/0000/data.txt")
    assert written.read_text() == "prepared"
    assert not folder.attempts("alps"), "what was prepared is on the disk of fjord"
    seconds = folder.seconds("fjord")
    assert seconds
    assert min(seconds) < 0.75, "as fast as its own input says"
    folder.check_books()


def test_a_local_site_and_an_endpoint_share_one_ranking(folder: Folder, alone: dict[str, Any]) -> None:
    folder.write_study(epoch_s=3.0)
    summary = folder.summary(folder.run("local", "fjord", settings=(folder.shared,)))
    assert verdict(summary) == alone
    assert folder.has_epochs("fjord")
    assert any((folder.path / "run" / "trials").glob("*/attempt-*/epochs.jsonl"))
    folder.check_books()


def test_a_controller_that_is_killed_leaves_nothing_that_resume_would_count_twice(
    folder: Folder, alone: dict[str, Any]
) -> None:
    folder.write_study(epoch_s=1.0)
    process = folder.run("alps", "fjord")
    folder.wait_until(lambda: folder.has_epochs("alps") and folder.has_epochs("fjord"), process)
    process.kill()
    process.communicate()
    summary = folder.summary(folder.start("resume", "run", "--json"))
    assert verdict(summary) == alone
    assert all(t["losses"] == 0 for t in summary["trial_list"])
    assert "controller died; taken up again" in " ".join(folder.status().replace(":", "").split())
    folder.check_books()


def test_a_broker_that_is_away_for_half_a_minute_costs_no_result(
    folder: Folder, alone: dict[str, Any]
) -> None:
    folder.write_study(epoch_s=3.0)
    process = folder.run("alps", "fjord")
    folder.wait_until(lambda: folder.has_epochs("alps"), process)
    folder.bed.stop_broker()
    back_at = time.monotonic() + 30.0
    try:
        running = [a for a in folder.attempts("alps") if (a / "claim").exists()]
        eventually(
            lambda: all((a / "report.json").exists() for a in running), deadline_s=30.0
        )  # what runs, runs on
        eventually(lambda: time.monotonic() > back_at, deadline_s=60.0)
    finally:
        folder.bed.start_broker(wait=True)
    assert verdict(folder.summary(process)) == alone
    assert "for now" in folder.status(), "it tells what stood still, and why"
    folder.check_books()


def test_sites_that_cannot_work_say_why_and_another_one_carries_on(
    folder: Folder, alone: dict[str, Any]
) -> None:
    nobody = "00000000-0000-4000-8000-000000000000"
    folder.write_site("fjord", endpoint_id=nobody)
    old = folder.path / "old-python"
    old.mkdir()
    (old / "sitecustomize.py").write_text('import platform\nplatform.python_version = lambda: "3.10.4"\n')
    options = yaml.safe_load((folder.path / "alps.yaml").read_text())["user_endpoint_config"]
    options["worker_init"] += f" PYTHONPATH={old}:{REPOSITORY}"
    folder.write_site("alps", user_endpoint_config=options)
    folder.write_study(epoch_s=2.0)
    process = folder.run("alps", "fjord", "local")
    assert verdict(folder.summary(process)) == alone
    assert "site alps runs Python 3.10.4, the controller 3.11" in folder.causes()["alps"]
    assert f"no endpoint {nobody}" in folder.causes()["fjord"]


def test_a_killed_user_endpoint_costs_no_result(folder: Folder, alone: dict[str, Any]) -> None:
    process = folder.run("alps", "fjord")
    folder.wait_until(lambda: folder.has_epochs("fjord"), process)
    assert folder.bed.kill_user_endpoint("fjord")
    assert verdict(folder.summary(process)) == alone
    status = " ".join(folder.status().split())
    assert "site fjord" in status or "pilot fjord" in status, status
    folder.check_books()


def test_the_trials_of_a_lost_site_restart_elsewhere_from_their_last_reachable_checkpoint(
    folder: Folder, alone: dict[str, Any]
) -> None:
    """Two studies lose the same endpoint, on which each has a pilot of its own.

    One keeps checkpoints on its sites, the other shares them.
    """
    (folder.path / "stuck.py").write_text(STUCK)
    (folder.path / "local.yaml").write_text(LOCAL.replace("gpus_per_node: 2", "gpus_per_node: 1"))
    folder.write_study(
        epoch_s=0.0, **{"workflows.emulated.train:train": "stuck:train", "with: {epoch_s:": STUCK_AT}
    )
    runs = {"own": (), "shared": (folder.shared,)}
    options = yaml.safe_load((folder.path / "alps.yaml").read_text())["user_endpoint_config"]
    processes = {}
    for into, settings in runs.items():
        site = folder.bed.site_file(
            "alps", folder.path / "disk-alps", user_endpoint_config={**options, "study": into}
        )
        (folder.path / f"{into}.yaml").write_text(site)
        processes[into] = folder.run(into, "local", into=into, settings=settings)
    for into, process in processes.items():
        folder.wait_until(lambda into=into: deep(folder, into), process)  # type: ignore[misc]
    folder.bed.kill_endpoint("alps")
    try:
        for into, process in processes.items():
            assert verdict(folder.summary(process)) == alone, into
        status = " ".join(folder.status("own").split())
        alps = f"endpoint {folder.bed.endpoints['alps']}"
        assert f"{alps} is offline" in status or f"{alps} has not answered" in status, status
    finally:
        folder.bed.start_endpoint("alps")
    own, shared = (moved(folder, into) for into in runs)
    assert all(start.epoch == 0 and start.resume_from is None for start in own), own
    assert all(start.epoch > 0 and str(start.resume_from).startswith("file://") for start in shared), shared
    for into in runs:
        folder.check_books(into)


def deep(folder: Folder, into: str) -> list[StartJob]:
    """Return the starts beyond the first rung on the site that will be lost."""
    return [start for start in folder.started(into) if start.placement.site == "alps" and start.epoch]


def moved(folder: Folder, into: str) -> list[StartJob]:
    """Return how the trials went on elsewhere that had come to a rung when they lost their site."""
    last = {start.job.trial: start.job.attempt for start in deep(folder, into)}
    elsewhere = [start for start in folder.started(into) if start.placement.site != "alps"]
    found = [
        next(s for s in elsewhere if s.job.trial == trial and s.job.attempt > attempt)
        for trial, attempt in last.items()
    ]
    assert found
    return found


def test_an_endpoint_that_is_down_at_the_start_joins_when_it_comes_up(
    folder: Folder, alone: dict[str, Any]
) -> None:
    folder.bed.kill_endpoint("alps")
    try:
        eventually(lambda: "alps" not in folder.bed.online())
        folder.write_study(epoch_s=4.0)
        folder.write_site("fjord", gpus_per_node=1)
        process = folder.run("alps", "fjord", settings=(folder.shared,))
        folder.wait_until(lambda: "alps" in folder.causes(), process)
        folder.wait_until(lambda: folder.has_epochs("fjord"), process)  # the other site carries on
        alps = folder.bed.endpoints["alps"]
        assert folder.causes()["alps"] == f"endpoint {alps} is offline; start it there"
    finally:
        folder.bed.start_endpoint("alps")
    assert verdict(folder.summary(process)) == alone
    assert folder.has_epochs("alps")
    folder.check_books()


def test_a_second_study_on_the_endpoint_waits_until_the_first_has_ended(
    folder: Folder, alone: dict[str, Any]
) -> None:
    folder.write_study(epoch_s=1.0)
    first = folder.run("alps", into="first")
    folder.wait_until(lambda: folder.has_epochs("alps"), first)
    second = folder.run("alps", into="second")
    folder.wait_until(
        lambda: any(isinstance(record.event, SiteDegraded) for record in folder.records("second")), second
    )
    assert "waiting for a pilot of alps, since" in " ".join(folder.status("second").split())
    assert verdict(folder.summary(first)) == alone
    assert verdict(folder.summary(second)) == alone
    words = " ".join(folder.status("second").split())
    assert "site alps: another study (federated, run " in words
    held: dict[str, list[tuple[float, float]]] = {}
    for attempt in folder.attempts("alps"):
        claimed_at = (attempt / "claim").stat().st_mtime
        ended_at = (attempt / "report.json").stat().st_mtime
        held.setdefault(attempt.parents[2].name, []).append((claimed_at, ended_at))
    one, other = sorted(held.values())
    assert max(ended for _, ended in one) <= min(began for began, _ in other), "no GPU is held twice"
    for into in ("first", "second"):
        folder.check_books(into)
