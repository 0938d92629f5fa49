"""Rank processes under a real launcher: how they start, talk, fail and leave."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from backend_tools import eventually
from rank_launch import (
    ENVIRONMENT,
    Conversation,
    epochs_of,
    finished,
    is_alive,
    metrics_of,
    mpi_command,
    rank_command,
    report_of,
    written_order,
)

from parsl_rasda.runtime.checkpoints.checkpoint import read_header, read_tensors
from parsl_rasda.runtime.checkpoints.shared import fetch
from parsl_rasda.types import Outcome

SLEEPER = {"python": "rank_functions:sleep", "accelerator": "none", "config": {}}
mpi = pytest.mark.mpi


def pids_of(order):
    return [int(p.read_text()) for p in Path(order.directory).glob("scratch/pid-*")]


def assert_same_state(left, right) -> None:
    one, two = (read_tensors(Path(report_of(order).checkpoint.path)) for order in (left, right))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


# ---------------------------------------------------------------------------------- without torch


def test_an_emulated_trial_starts_fast_and_never_imports_torch(tmp_path) -> None:
    order = written_order(tmp_path, world_size=256, **SLEEPER)
    began = time.monotonic()
    status, errors = finished(rank_command(order))
    took_s = time.monotonic() - began
    assert (status, report_of(order).outcome) == (0, Outcome.REACHED), errors
    assert [m["saw_torch"] for m in metrics_of(order)] == [0.0, 0.0, 0.0]
    assert took_s < 1.5, "a torch import alone takes longer"
    assert len(epochs_of(order)[0].slots) == 256
    assert read_header(Path(report_of(order).checkpoint.path))["epoch"] == 3


@mpi
def test_one_rank_acts_for_all_where_slots_are_only_logical(tmp_path) -> None:
    order = written_order(tmp_path, world_size=3, **SLEEPER)
    assert finished(mpi_command(order))[0] == 0
    assert [r.epoch for r in epochs_of(order)] == [1, 2, 3]


def test_a_signal_ends_a_sleeping_trial_at_once(tmp_path) -> None:
    order = written_order(tmp_path, interactive=True, **{**SLEEPER, "config": {"epoch_s": 600}})
    with Conversation(rank_command(order)) as controller:
        controller.hear("ready")
        controller.process.send_signal(signal.SIGUSR1)
        bye = controller.hear("bye")
        assert (bye["outcome"], bye["cause"], bye["epoch"]) == ("preempted", "SIGUSR1", 0)
        assert controller.ended() == 0


def test_the_controller_can_call_a_sleeping_trial_back(tmp_path) -> None:
    order = written_order(tmp_path, interactive=True, **{**SLEEPER, "config": {"epoch_s": 600}})
    with Conversation(rank_command(order)) as controller:
        controller.hear("ready")
        controller.say(op="preempt")
        assert controller.hear("bye")["cause"] == "the controller asked for it"


def test_a_rank_that_hangs_ends_itself_when_its_controller_is_gone(tmp_path) -> None:
    hangs = {**SLEEPER, "python": "rank_functions:hang"}
    with Conversation(rank_command(written_order(tmp_path, interactive=True, **hangs))) as controller:
        controller.hear("ready")
        controller.process.stdin.close()
        assert controller.ended() == -signal.SIGKILL


def test_a_silent_controller_is_taken_for_dead(tmp_path) -> None:
    order = written_order(tmp_path, interactive=True, lease_s=0.5, **SLEEPER)
    with Conversation(rank_command(order)) as controller:
        controller.hear("ready")
        controller.hear("epoch")
        for _ in range(10):  # beats keep it waiting
            controller.say(op="beat")
            time.sleep(0.1)
        bye = controller.hear("bye")
        assert (bye["outcome"], bye["epoch"]) == ("preempted", 1)
        assert bye["cause"] == "the controller was silent for 0.5 s"
        assert bye["checkpoint"].endswith("epoch-000001")
        assert bye["at"] - epochs_of(order)[0].at > 1.4


def test_a_controller_that_closes_the_channel_is_taken_for_dead(tmp_path) -> None:
    order = written_order(tmp_path, interactive=True, **{**SLEEPER, "config": {"epoch_s": 600}})
    with Conversation(rank_command(order)) as controller:
        controller.hear("ready")
        controller.process.stdin.close()
        assert controller.hear("bye")["outcome"] == "preempted"


def test_ranks_are_gone_before_the_deadline(tmp_path) -> None:
    order = written_order(
        tmp_path, interactive=True, deadline=time.time() + 12.0, **{**SLEEPER, "config": {"epoch_s": 600}}
    )
    with Conversation(rank_command(order)) as controller:
        controller.hear("ready")
        bye = controller.hear("bye")
    assert (bye["outcome"], bye["cause"]) == ("preempted", "the deadline is near")
    assert bye["at"] < order.deadline - 8


def test_what_a_function_prints_never_reaches_the_channel(tmp_path) -> None:
    order = written_order(tmp_path, interactive=True, **{**SLEEPER, "python": "rank_functions:print_much"})
    with Conversation(rank_command(order)) as controller:
        controller.hear("ready")
        controller.hear("epoch")
        controller.say(op="leave")
        controller.hear("bye")
        assert controller.process.stdout.read() == b""


def test_a_program_that_a_function_starts_takes_no_word_of_the_controller(tmp_path) -> None:
    function = {**SLEEPER, "python": "rank_functions:start_programs"}
    order = written_order(tmp_path, interactive=True, until=1, **function)
    with Conversation(rank_command(order)) as controller:
        controller.hear("ready")
        assert controller.hear("epoch")["metrics"] == {"val_loss": 0.0}
        controller.say(op="go", until=2)
        assert controller.hear("epoch")["epoch"] == 2


@pytest.mark.parametrize("prepares", [False, True])
def test_ending_the_processes_of_a_pool_does_not_end_the_trial(tmp_path, prepares) -> None:
    function = {**SLEEPER, "python": "rank_functions:use_a_pool", "config": {"prepares": prepares}}
    order = written_order(tmp_path, **function)
    status, errors = finished(rank_command(order), patience_s=30)
    assert (status, report_of(order).outcome) == (0, Outcome.REACHED), errors
    assert [m["val_loss"] for m in metrics_of(order)] == [6.0, 6.0, 6.0]


@pytest.mark.parametrize(
    ("function", "cause"),
    [
        ("forget_to_report", "TrainingError: Epoch 0 ended without trial.report(...)."),
        ("return_early", "TrainingError: The training function returned after 0 of 3 epochs."),
        (
            "no_such",
            "TrainingError: `training.python` is 'rank_functions:no_such', but there is no such function.",
        ),
    ],
)
def test_a_function_that_misuses_its_trial_is_told_so(tmp_path, function, cause) -> None:
    order = written_order(tmp_path, **{**SLEEPER, "python": f"rank_functions:{function}"})
    assert finished(rank_command(order))[0] == 1
    report = report_of(order)
    assert report.outcome is Outcome.FAILED
    assert report.cause.startswith(cause)


def test_a_launch_of_the_wrong_width_is_refused(tmp_path) -> None:
    order = written_order(tmp_path, world_size=2)
    status, errors = finished(rank_command(order))
    assert status == 1
    assert report_of(order).outcome is Outcome.FAILED
    assert "ranks started by the launcher: found 1; allowed: 2, as ordered" in report_of(order).cause, errors


# ------------------------------------------------------------------------------- training for real


def test_processes_that_read_ahead_end_with_their_epoch_and_the_trial_goes_on(tmp_path) -> None:
    order = written_order(tmp_path, config={"lr": 0.02, "workers": 1}, until=2)
    status, errors = finished(rank_command(order))
    report = report_of(order)
    assert (status, report.outcome, report.cause, report.epoch) == (0, Outcome.REACHED, "", 2), errors


@mpi
def test_a_rank_that_raises_ends_the_launch_and_says_why(tmp_path) -> None:
    at = {"epoch": 0, "batch": 2, "what": "raise", "rank": 1}
    order = written_order(tmp_path, world_size=2, config={"lr": 0.02, "at": at})
    status, _ = finished(mpi_command(order))
    ended = time.time()
    report = report_of(order)
    assert status != 0
    assert report.outcome is Outcome.FAILED
    assert report.cause.startswith("ValueError: the loss is not a loss (rank_functions.py:")
    assert "Traceback" in report.traceback
    assert ended - float((tmp_path / "scratch/raised").read_text()) < 3.0
    eventually(lambda: not any(map(is_alive, pids_of(order))), "all ranks are gone")


@mpi
def test_a_launch_that_loses_a_rank_is_lost_and_not_failed(tmp_path) -> None:
    at = {"epoch": 0, "batch": 2, "what": "wait for a signal"}
    order = written_order(tmp_path, world_size=2, config={"lr": 0.02, "at": at})
    launch = subprocess.Popen(
        mpi_command(order), env=ENVIRONMENT, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    eventually((tmp_path / "scratch/waiting-1").exists, "rank 1 waits")
    victim, other = (int((tmp_path / f"scratch/pid-{rank}").read_text()) for rank in (1, 0))
    os.kill(victim, signal.SIGKILL)
    assert launch.wait(30) != 0
    eventually(lambda: not is_alive(other), "the other rank is gone")
    if (tmp_path / "report.json").exists():
        assert report_of(order).outcome is Outcome.LOST


@mpi
def test_term_saves_in_the_middle_of_an_epoch_and_nothing_is_lost(tmp_path) -> None:
    config = {"lr": 0.02}
    undisturbed = written_order(tmp_path / "undisturbed", world_size=2, config=config)
    assert finished(mpi_command(undisturbed))[0] == 0

    at = {"epoch": 1, "batch": 4, "what": "wait for a signal"}
    first = written_order(tmp_path / "first", world_size=2, config={**config, "at": at})
    launch = subprocess.Popen(
        mpi_command(first), env=ENVIRONMENT, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    for rank in (0, 1):
        eventually((tmp_path / f"first/scratch/waiting-{rank}").exists, "the ranks wait")
    launch.terminate()
    launch.wait(30)
    report = report_of(first)
    assert (report.outcome, report.epoch, report.cause) == (Outcome.PREEMPTED, 1, "SIGTERM")
    assert report.checkpoint.path.endswith("epoch-000001-step-00000003")

    second = written_order(tmp_path / "second", epoch=1, resume_from=report.checkpoint.path, config=config)
    assert finished(rank_command(second))[0] == 0
    assert metrics_of(first, second) == metrics_of(undisturbed)
    assert_same_state(second, undisturbed)


@mpi
def test_a_stop_file_is_heeded_at_the_next_step_and_the_trial_goes_on_at_another_site(tmp_path) -> None:
    undisturbed = written_order(tmp_path / "undisturbed", world_size=2)
    assert finished(mpi_command(undisturbed))[0] == 0

    url, config = f"file://{tmp_path}/store/t0", {"lr": 0.02, "at": {"epoch": 1, "batch": 4}}
    config["at"]["what"] = "rank 0 waits"
    here = tmp_path / "alps/t0/attempt-1"
    first = written_order(here, world_size=2, config=config, share_at=f"{url}/attempt-1")
    launch = subprocess.Popen(
        mpi_command(first), env=ENVIRONMENT, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    eventually((here / "scratch/waiting-0").exists, "the ranks are in the middle of an epoch")
    (here / "stop").write_text("the pilot is needed elsewhere")
    assert launch.wait(60) == 0
    report = report_of(first)
    assert (report.outcome, report.epoch) == (Outcome.PREEMPTED, 1)
    assert report.cause == "the pilot is needed elsewhere"
    assert report.checkpoint.path == f"{url}/attempt-1/epoch-000001-step-00000003"
    (at_two,) = [e for e in epochs_of(first) if e.epoch == 1]
    assert at_two.checkpoint is None or at_two.checkpoint.path == f"{url}/attempt-1/epoch-000001"

    (tmp_path / "alps").rename(tmp_path / "lost")
    there = {"epoch": 1, "attempt": 2, "resume_from": report.checkpoint.path, "share_at": f"{url}/attempt-2"}
    second = written_order(tmp_path / "fjord/t0/attempt-2", world_size=2, **there)
    status, errors = finished(mpi_command(second))
    assert status == 0, errors
    assert report_of(second).checkpoint.path == f"{url}/attempt-2/epoch-000003"
    assert metrics_of(second) == metrics_of(undisturbed)[1:]
    fetch(report_of(second).checkpoint.path, tmp_path / "fetched")
    one, two = read_tensors(tmp_path / "fetched"), read_tensors(Path(report_of(undisturbed).checkpoint.path))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def cut_header(checkpoint: Path) -> None:
    (checkpoint / "header.json").write_text("{")


def cut_tensors(checkpoint: Path) -> None:
    for file in checkpoint.glob("*.distcp"):
        os.truncate(file, file.stat().st_size - 1)


@pytest.mark.parametrize("is_shared", [False, True])
@pytest.mark.parametrize("damage", [shutil.rmtree, cut_header, cut_tensors])
def test_a_rank_says_that_the_checkpoint_it_is_to_go_on_from_is_gone_or_damaged(
    tmp_path, damage, is_shared
) -> None:
    share_at = f"file://{tmp_path}/store/t0/attempt-1" if is_shared else None
    first = written_order(tmp_path / "alps/t0/attempt-1", until=1, share_at=share_at)
    assert finished(rank_command(first))[0] == 0
    place = report_of(first).checkpoint.path
    damage(Path(place.removeprefix("file://")))
    second = written_order(tmp_path / "fjord/t0/attempt-2", attempt=2, epoch=1, resume_from=place)
    assert finished(rank_command(second))[0] == 1
    report = report_of(second)
    assert (report.outcome, report.unreadable, report.checkpoint) == (Outcome.LOST, place, None)
    assert report.cause.endswith("the trial resumes from an older one, or starts again")
    assert place.removeprefix("file://") in report.cause or "resumed" in report.cause


@mpi
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_ranks_together_say_it_too_whoever_finds_out_first(tmp_path, scheme) -> None:
    place = f"{scheme}{tmp_path}/t0/attempt-1/epoch-000001"
    order = written_order(tmp_path / "t0/attempt-2", attempt=2, world_size=2, epoch=1, resume_from=place)
    assert finished(mpi_command(order))[0] != 0
    assert (report_of(order).outcome, report_of(order).unreadable) == (Outcome.LOST, place)


def test_what_a_function_itself_reads_in_vain_is_its_own_failure(tmp_path) -> None:
    order = written_order(tmp_path, python="rank_functions:load_in_vain")
    assert finished(rank_command(order))[0] == 1
    assert (report_of(order).outcome, report_of(order).unreadable) == (Outcome.FAILED, None)


@mpi
def test_crossing_rungs_in_the_same_processes_is_the_same_as_leaving_and_resuming(tmp_path) -> None:
    stays = written_order(tmp_path / "stays", world_size=2, schedule=((0, 2),), until=1, interactive=True)
    with Conversation(mpi_command(stays)) as controller:
        controller.hear("ready")
        assert controller.hear("epoch")["epoch"] == 1
        controller.say(op="go", until=3, replicas=4)
        controller.hear("epoch")
        controller.say(op="go", until=3, replicas=4)
        last = controller.hear("epoch")
        assert (last["epoch"], last["checkpoint"]) == (3, str(tmp_path / "stays/epoch-000003"))
        controller.say(op="leave")
        assert controller.hear("bye")["outcome"] == "reached"
        assert controller.ended() == 0

    before = written_order(tmp_path / "before", world_size=2, schedule=((0, 2),), until=1)
    assert finished(mpi_command(before))[0] == 0
    after = written_order(
        tmp_path / "after", schedule=((0, 2), (1, 4)), epoch=1, resume_from=report_of(before).checkpoint.path
    )
    assert finished(rank_command(after))[0] == 0
    assert metrics_of(stays) == metrics_of(before, after)
    assert_same_state(stays, after)


@mpi
def test_ranks_on_several_nodes_meet_over_tcp(tmp_path) -> None:
    order = written_order(tmp_path, world_size=2, slots=("n0:0", "n1:0"), until=1)
    status, errors = finished(mpi_command(order), {"MASTER_ADDR": "127.0.0.1"})
    assert status == 0, errors
    assert (tmp_path / "address").read_text().startswith("127.0.0.1 ")
    assert epochs_of(order)[0].slots == ("n0:0", "n1:0")
