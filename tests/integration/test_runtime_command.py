"""Scripts that cannot be changed are trained by their command line."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from backend_tools import eventually
from rank_launch import (
    ENVIRONMENT,
    HERE,
    epochs_of,
    finished,
    mpi_command,
    rank_command,
    report_of,
    written_order,
)

from parsl_rasda.runtime.process.command import filled
from parsl_rasda.study.commands import unknown_placeholders
from parsl_rasda.study.loading import load_study
from parsl_rasda.types import Outcome

ROOT = Path(__file__).parents[2]

COMMAND = (
    sys.executable, str(HERE / "script.py"), "--lr", "{lr}", "--epochs", "{until}", "--resume={checkpoint}",
    "--save", "{out}", "--out", "{report}",
)  # fmt: skip


def script_order(directory, *more, **changes):
    return written_order(
        directory, python=None, command=(*COMMAND, *more), **{"config": {"lr": 0.5}, **changes}
    )


def test_a_script_trains_to_each_rung_and_resumes_from_its_own_files(tmp_path) -> None:
    first = script_order(tmp_path / "first", until=2)
    assert finished(rank_command(first))[0] == 0
    (report,) = epochs_of(first)
    assert (report.epoch, report.metrics) == (2, {"val_loss": 0.25})
    assert report_of(first).outcome is Outcome.REACHED

    second = script_order(tmp_path / "second", epoch=2, until=5, resume_from=report.checkpoint.path)
    assert finished(rank_command(second))[0] == 0
    assert epochs_of(second)[0].metrics == {"val_loss": 0.1}
    assert json.loads((tmp_path / "second/rank-0.json").read_text())["start"] == 2


def test_a_script_may_tell_what_an_epoch_took_without_its_start(tmp_path) -> None:
    words = (
        "import json, sys; json.dump({'val_loss': 1.0, **json.loads(sys.argv[2])}, open(sys.argv[1], 'w'))"
    )
    for name, told in (("silent", {}), ("told", {"epoch_s": 0.25})):
        command = (sys.executable, "-c", words.replace("{", "{{").replace("}", "}}"), "{report}", "{told}")
        order = written_order(tmp_path / name, python=None, command=command, until=2, config={"told": told})
        assert finished(rank_command(order))[0] == 0
        (report,) = epochs_of(order)
        assert (report.metrics, report.includes_startup) == ({"val_loss": 1.0}, not told)
        assert (report.seconds == 0.25) is bool(told)


def test_a_script_whose_checkpoint_is_gone_is_not_even_started(tmp_path) -> None:
    gone = str(tmp_path / "first/epoch-000002")
    order = script_order(tmp_path / "second", epoch=2, until=5, resume_from=gone)
    assert finished(rank_command(order))[0] == 1
    assert (report_of(order).outcome, report_of(order).unreadable) == (Outcome.LOST, gone)
    assert not (tmp_path / "second/rank-0.json").exists()


@pytest.mark.mpi
def test_a_script_is_told_its_rank_as_torchrun_would(tmp_path) -> None:
    order = script_order(tmp_path, world_size=2)
    assert finished(mpi_command(order))[0] == 0
    one, two = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    assert [one["RANK"], one["WORLD_SIZE"], one["LOCAL_RANK"]] == ["0", "2", "0"]
    assert [two["RANK"], two["WORLD_SIZE"], two["LOCAL_RANK"]] == ["1", "2", "1"]
    assert one["LOCAL_WORLD_SIZE"] == two["LOCAL_WORLD_SIZE"] == "2"
    assert one["MASTER_PORT"] == two["MASTER_PORT"]
    kernel_gives_from = int(
        Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="utf-8").split()[0]
    )
    assert int(one["MASTER_PORT"]) < kernel_gives_from, "nobody gets it in the meantime"
    assert len(epochs_of(order)) == 1


@pytest.mark.mpi
def test_a_script_that_fails_on_one_rank_ends_the_launch_with_its_last_words(tmp_path) -> None:
    order = script_order(tmp_path, "--fail=crash", world_size=2)
    assert finished(mpi_command(order), {"CRASHING_RANK": "1"})[0] != 0
    report = report_of(order)
    assert report.outcome is Outcome.FAILED
    assert "The command ended with exit status 1: RuntimeError: no such data set" in report.cause


def test_a_script_killed_from_outside_is_lost_and_not_failed(tmp_path) -> None:
    order = script_order(tmp_path, "--fail=killed")
    assert finished(rank_command(order))[0] == 1
    assert report_of(order).outcome is Outcome.LOST
    assert "SIGKILL" in report_of(order).cause


def test_a_script_that_saves_when_told_to_leave_has_lost_nothing(tmp_path) -> None:
    order = script_order(tmp_path, "--fail=slow", until=3)
    launch = subprocess.Popen(rank_command(order), env=ENVIRONMENT, stdin=subprocess.DEVNULL)
    eventually((tmp_path / "sleeping").exists, "the script trains")
    launch.send_signal(signal.SIGTERM)
    assert launch.wait(30) == 0
    report = report_of(order)
    assert (report.outcome, report.epoch) == (Outcome.PREEMPTED, 1)
    assert report.checkpoint.path == str(tmp_path / "epoch-000001")


def test_a_deadline_reaches_the_script_too(tmp_path) -> None:
    order = script_order(tmp_path, "--fail=slow", until=3, deadline=time.time() + 11)
    assert finished(rank_command(order))[0] == 0
    assert report_of(order).cause == "the deadline is near"


def test_words_are_filled_in_as_validate_reads_them(tmp_path) -> None:
    command = (
        *(
            sys.executable,
            "-c",
            "import json, sys; json.dump(sys.argv[1:], open(sys.argv[1], 'w'))",
            "{out}/a",
        ),
        *("{lr:.3e}", "{{lr}}", "{index}", "{shards}", "{nothing}", "{lr!r:>8}"),
    )
    order = written_order(
        tmp_path,
        python=None,
        command=command,
        config={"lr": 0.01234},
        inputs={"index": "index.json", "shards": [1, {"a": "b"}], "nothing": None, "until": "never"},
    )
    words = filled(order, out=tmp_path, report=tmp_path / "r")
    assert subprocess.run(words, check=False).returncode == 0
    assert json.loads((tmp_path / "a").read_text())[1:] == [
        *("1.234e-02", "{lr}", "index.json", '[1, {"a": "b"}]', "null", " 0.01234"),
    ]
    plain = (*command, "{until}")
    assert filled(replace(order, command=plain), out=tmp_path, report=tmp_path)[-1] == "3", "ours come first"
    assert not list(unknown_placeholders(plain, ("lr", "index", "shards", "nothing", "out", "until")))


@pytest.mark.mpi
def test_a_plain_ddp_script_trains_on_two_ranks_and_resumes_on_one(tmp_path) -> None:
    folder = ROOT / "workflows" / "ddp_script"
    study = load_study(folder / "study.yaml")
    (stage,) = study.stages.values()
    command = tuple(sys.executable if word == "python" else word for word in stage.tune.training.command)
    script = {"python": None, "command": command, "config": {"lr": 0.05, "momentum": 0.5}}
    legs = []
    for world_size, epoch, until in ((2, 0, 2), (1, 2, 3)):
        order = written_order(
            tmp_path / str(until),
            world_size=world_size,
            epoch=epoch,
            until=until,
            resume_from=report_of(legs[-1]).checkpoint.path if legs else None,
            **script,
        )
        launch = mpi_command(order) if world_size > 1 else rank_command(order)
        path = f"{folder}:{ROOT}"  # as every launch of this study has it
        status, errors = finished(launch, {"MASTER_ADDR": "127.0.0.1", "PYTHONPATH": path})
        assert status == 0, errors
        legs.append(order)
    losses = [dict(epochs_of(order)[-1].metrics)["val_loss"] for order in legs]
    state = torch.load(tmp_path / "3" / "epoch-000003" / "state.pt", weights_only=True)
    assert state["epoch"] == 3
    assert losses[1] < losses[0] < 1.0, "doing nothing has about 1.4"


@pytest.mark.parametrize(
    ("command", "cause"),
    [
        (
            ("true", "{momentum}"),
            "TrainingError: `training.command` names {momentum}, which this trial does not have.",
        ),
        (
            ("true", "{lr:d}"),
            "TrainingError: `training.command` cannot be filled in: Unknown format code 'd'",
        ),
        (("true",), "TrainingError: The command succeeded but wrote no command-report.json."),
        (
            ("sh", "-c", "echo [] > '{report}'"),
            "TrainingError: The command's report cannot be read",
        ),
        (("sh", "-c", "echo '{{}}' > '{report}'"), "TrainingError: The command reported []."),
        (("no-such-program",), "FileNotFoundError: [Errno 2] No such file or directory: 'no-such-program'"),
    ],
)
def test_a_command_that_cannot_work_says_why(tmp_path, command, cause) -> None:
    order = written_order(tmp_path, python=None, command=command)
    assert finished(rank_command(order))[0] == 1
    assert report_of(order).outcome is Outcome.FAILED
    assert report_of(order).cause.startswith(cause)
