"""Ranks and agents on a file system that is full: it is the site's fault, and they say so."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from rank_launch import ENVIRONMENT, rank_command, written_order

from parsl_rasda.agent import job as agent_job
from parsl_rasda.launch.base import LaunchCommand
from parsl_rasda.protocol import JobResult, JobSpec
from parsl_rasda.types import Blame, Fault, Outcome


class Disk:
    """A small file system of its own."""

    def __init__(self, path: Path, size: str) -> None:
        self.path = path
        path.mkdir()
        subprocess.run(("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path), check=True)

    def fill(self, left: int = 0) -> None:
        """Take all but so many bytes."""
        with (self.path / "filler").open("ab", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                file.truncate(file.tell() - left)

    def make_read_only(self) -> None:
        subprocess.run(("mount", "-o", "remount,ro", self.path), check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    try:
        it = Disk(tmp_path / "disk", "256k")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting needs root")
    yield it
    subprocess.run(("umount", "-l", it.path), check=True)


def ended(order: JobSpec, environment: dict[str, str] | None = None) -> JobResult:
    """Run an attempt by the agent, without a controller."""
    command = LaunchCommand(tuple(rank_command(order)), {**ENVIRONMENT, **(environment or {})})
    answer = agent_job.run_job(order.to_json(), asdict(command), f"test/{order.directory}", None)
    return JobResult.from_json(answer["report"])


def order_on(disk: Disk, **changes: Any) -> JobSpec:
    return written_order(disk.path / "t0" / "attempt-1", **changes)


WORDS = "No space left on device (0 B of 256 KiB"


def test_a_checkpoint_that_finds_no_room_is_no_fault_of_the_trial(disk: Disk) -> None:
    order = order_on(disk)
    disk.fill(left=40 * 1024)  # less than a checkpoint
    report = ended(order)
    assert (report.outcome, report.fault, report.blame) == (Outcome.LOST, Fault.STORAGE, Blame.SITE)
    # The checkpoint is written while training goes on: the epoch's line may be the first to find no room.
    assert re.search(r"(epoch-000001|epochs\.jsonl): No space left on device \(", report.cause), report.cause
    assert not list(disk.path.rglob("*.tmp")), "what was begun makes room for the report"


@pytest.mark.parametrize("act", ["report", "print", "save"])
def test_whatever_finds_the_disk_full_says_so(disk: Disk, act: str) -> None:
    sleeper = {"python": "rank_functions:fill_the_disk", "accelerator": "none"}
    config = {"filler": str(disk.path / "filler"), "then": act}
    report = ended(order_on(disk, **sleeper, config=config))
    assert (report.outcome, report.fault) == (Outcome.LOST, Fault.STORAGE)
    assert WORDS in report.cause or act == "save"
    assert report.exception == {"save": "RuntimeError", "report": "StorageError", "print": "OSError"}[act]


def test_a_launch_that_cannot_even_be_written_down_says_so(disk: Disk) -> None:
    order = order_on(disk)
    disk.fill()
    (Path(order.directory) / "order.json").unlink()
    disk.fill()
    report = ended(order)
    assert (report.outcome, report.fault, report.blame) == (Outcome.LOST, Fault.STORAGE, Blame.SITE)
    assert WORDS in report.cause


def test_a_file_system_that_became_read_only_is_named(disk: Disk) -> None:
    order = order_on(disk)
    disk.make_read_only()
    report = ended(replace(order, attempt=2))
    assert (report.outcome, report.fault) == (Outcome.LOST, Fault.STORAGE)
    assert "Read-only file system" in report.cause


def test_the_file_system_of_a_command_is_the_sites_too(disk: Disk) -> None:
    script = f"cat /dev/zero > {disk.path}/filler"
    order = order_on(disk, python=None, command=("sh", "-c", script), accelerator="none")
    report = ended(order)
    assert (report.outcome, report.fault) == (Outcome.LOST, Fault.STORAGE)
