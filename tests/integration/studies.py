"""A study on logical slots by the command line: what it came to, and what it has left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

from backend_tools import eventually
from command_line import DEADLINE_S, finish, start

SITE = """
provider: {type: LocalProvider}
accelerator: none
mpi_launcher: process
gpus_per_node: 4
"""


def run_study(folder: Path, study: str, into: str) -> tuple[int, str, str]:
    return finish(start(folder, "run", study, "--site", "logical.yaml", "--dir", into, "--json"))


def wait_for_records(journal: Path, count: int, process: subprocess.Popen[str]) -> bool:
    """Wait until the journal has so many lines; False if the study ended before."""

    def has_come() -> bool:
        return (journal.exists() and lines_of(journal) >= count) or process.poll() is not None

    eventually(has_come, deadline_s=DEADLINE_S)
    return process.poll() is None


def lines_of(journal: Path) -> int:
    return journal.read_bytes().count(b"\n")


def processes_of(folder: Path) -> list[int]:
    """Return processes whose command line or environment names the folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                text = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if str(folder).encode() in text and state not in "ZX":
                found.append(int(entry.name))
    return found


def kill_all(folder: Path, *words: bytes) -> None:
    """Kill the processes whose command line has one of the words, all in the same moment."""
    for pid in processes_of(folder):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            if any(word in command for word in words):
                os.kill(pid, signal.SIGKILL)


def wait_until_none_is_left(folder: Path) -> None:
    eventually(lambda: not processes_of(folder), deadline_s=5.0)


def verdict(summary: dict[str, Any]) -> dict[str, Any]:
    """Return what must not depend on what the machine was doing: survivors, best, metric."""
    trials = {t["trial"]: (t["state"], t["epoch"], t["metric"]) for t in summary["trial_list"]}
    best = summary["best"]
    return {"trials": trials, "best": (best["trial"], best["metric"], best["epoch"], best["config"])}
