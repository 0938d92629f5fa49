"""The limits of the hosted service: what is too large, too often asked, or fetched too late."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from backend_tools import eventually

from parsl_rasda.orchestration.events import EpochReported
from parsl_rasda.protocol import JobSpec, read_epochs
from tests.integration.globus.folder import DEADLINE_S, LOCAL, Folder, verdict

pytestmark = [pytest.mark.globus, pytest.mark.slow]

BIG = """
name: big
seed: 5
stages:
  prepare:
    python: preparing:prepare
    site: fjord
    with: {megabytes: 11}
  tune:
    needs: {data: prepare}
    tune:
      metric: val_loss
      num_samples: 2
      scheduler: {max_t: 1, max_workers: 1}
      search_space: {lr: {float: [1.0e-4, 1.0e-1], log: true}}
      training: {python: "workflows.emulated.train:train"}
"""
PREPARING = """
def prepare(directory, megabytes):
    return "x" * int(megabytes * 1_000_000)
"""


@pytest.mark.usefixtures("alone")  # the endpoints are up
def test_an_order_that_is_too_large_is_refused_before_it_is_sent(folder: Folder) -> None:
    # A study file may have a million characters: each of these travels as twelve bytes or more.
    large = f"seed: 5, weights: [&part '{chr(0x1D6FC) * 60_000}'{', *part' * 15}]}}"
    # The second trial still waits when the pilot of alps, which the test before may have ended, is up again.
    folder.write_study(epoch_s=10.0, trials=2, **{"seed: 5}": large, "max_t: 4": "max_t: 1"})
    (folder.path / "local.yaml").write_text(LOCAL.replace("gpus_per_node: 2", "gpus_per_node: 1"))
    refused = folder.bed.requests()["too_large"]
    summary = folder.summary(folder.run("alps", "local"))
    assert summary["trials"]["completed"] == 2, summary
    assert "is 13.4 MB, and Globus Compute takes 10 MB" in folder.causes()["alps"]
    assert folder.bed.requests()["too_large"] == refused


def test_an_order_that_the_service_finds_too_large_is_refused_alike(
    folder: Folder, alone: dict[str, Any]
) -> None:
    folder.write_study(epoch_s=1.5, **{"seed: 5}": "seed: 5, weights: " + "x" * 50_000 + "}"})
    refused = folder.bed.requests()["too_large"]
    with folder.bed.limits(request_bytes=40_000):
        summary = folder.summary(folder.run("alps", "local"))
    assert folder.bed.requests()["too_large"] > refused
    assert verdict(summary) == alone
    assert all(trial["losses"] == 0 for trial in summary["trial_list"])
    said = "What was sent to site 'alps' is too large, and Globus Compute takes 10 MB at most"
    assert said in folder.causes()["alps"]
    assert not folder.attempts("alps")
    folder.check_books()


@pytest.mark.usefixtures("alone")  # the endpoints are up
def test_a_stage_that_returns_more_than_the_limit_fails_in_words(folder: Folder) -> None:
    (folder.path / "preparing.py").write_text(PREPARING)
    (folder.path / "study.yaml").write_text(BIG)
    process = folder.run("alps", "fjord")
    _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 3, err
    words = "What a task at site 'fjord' returns is 11.0 MB, and Globus Compute takes 10 MB at most"
    assert f"Stage 'prepare' failed: {words}" in " ".join(err.split())


def test_a_study_of_many_short_trials_keeps_to_the_rate(folder: Folder) -> None:
    folder.write_study(epoch_s=0.05, trials=24, **{"max_t: 4": "max_t: 1"})
    for site in folder.bed.endpoints:
        folder.write_site(site, gpus_per_node=4)
    refused = folder.bed.requests()["too_many"]
    with folder.bed.limits(requests=20):
        summary = folder.summary(folder.run("alps", "fjord"))
    assert folder.bed.requests()["too_many"] == refused
    assert summary["trials"]["completed"] == 24, summary
    assert all(trial["losses"] == 0 for trial in summary["trial_list"])
    assert folder.has_epochs("alps")
    assert folder.has_epochs("fjord")
    folder.check_books()


def test_a_service_that_refuses_requests_for_a_while_costs_no_trial(
    folder: Folder, alone: dict[str, Any]
) -> None:
    folder.write_study(epoch_s=1.0)
    process = folder.run("alps", "fjord")
    folder.wait_until(lambda: folder.has_epochs("alps") and folder.has_epochs("fjord"), process)
    refused = folder.bed.requests()["too_many"]
    with folder.bed.limits(requests=0):
        folder.wait_until(lambda: folder.bed.requests()["too_many"] > refused + 6, process)
    summary = folder.summary(process)
    assert verdict(summary) == alone
    assert all(trial["losses"] == 0 for trial in summary["trial_list"])
    folder.check_books()


def test_results_that_nobody_fetched_in_time_are_read_from_the_sites_disk(
    folder: Folder, alone: dict[str, Any]
) -> None:
    folder.write_study(epoch_s=1.0)
    waiting = folder.bed.waiting()  # for ever: tasks of user endpoints that other tests have killed
    process = folder.run("alps", "fjord")
    folder.wait_until(lambda: folder.has_epochs("alps") and folder.has_epochs("fjord"), process)
    process.kill()
    process.communicate()
    with folder.bed.limits(result_window_s=4.0):
        sites = folder.bed.endpoints
        running = [a for site in sites for a in folder.attempts(site) if (a / "claim").exists()]
        eventually(lambda: all((a / "report.json").exists() for a in running), deadline_s=DEADLINE_S)
        eventually(lambda: folder.bed.waiting() <= waiting and not folder.bed.kept(), deadline_s=DEADLINE_S)
        known = epochs_known(folder)
        summary = folder.summary(folder.start("resume", "run", "--json"))
    assert verdict(summary) == alone
    assert all(trial["losses"] == 0 for trial in summary["trial_list"])
    trained = Counter(
        (o.trial, e.epoch) for o in orders(folder) for e in read_epochs(Path(o.directory), o.job)
    )
    assert known < set(trained), "some were on the disk alone"
    assert set(trained.values()) == {1}, "what was there is not trained again"
    assert epochs_known(folder) == set(trained)
    folder.check_books()


def orders(folder: Folder) -> list[JobSpec]:
    return [JobSpec.load(a / "order.json") for site in folder.bed.endpoints for a in folder.attempts(site)]


def epochs_known(folder: Folder) -> set[tuple[str, int]]:
    """Return the epochs of trials that the journal has; each is there once."""
    found = [(e.job.trial, e.epoch) for r in folder.records() if isinstance(e := r.event, EpochReported)]
    assert len(set(found)) == len(found)
    return set(found)
