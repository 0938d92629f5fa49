"""Finds and ends processes by a mark in their environment, however they were orphaned.

Every process of a run carries `RUN_VARIABLE`, every process of a launch also `JOB_VARIABLE`: the
marks are inherited through shells, launchers and daemons, where process groups and parents are not
(hydra gives each rank a session of its own; a killed ``mpiexec`` of Open MPI leaves its ranks to
init). A run directory remembers its last run, so that the next controller ends what a killed one
left behind. Linux only; other systems find nothing.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from parsl_rasda.errors import RunDirectoryError

RUN_VARIABLE = "PARSL_RASDA_RUN"
JOB_VARIABLE = "PARSL_RASDA_JOB"
RECORD = "controller.json"

_GONE_WITHIN_S = 5.0  # after SIGKILL; a process in an uninterruptible wait may need longer
_POLL_S = 0.01
_EMPTY_SCANS = 2  # a process that is just being replaced by exec shows no environment for a moment

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process that no later one can be taken for: its pid, and its start in clock ticks."""

    pid: int
    start: int


@dataclass(frozen=True, slots=True)
class RunRecord:
    """Which controller a run directory belongs to, and the mark of everything it started."""

    mark: str
    host: str
    pid: int
    start: int


def claim(directory: Path) -> str:
    """Return a fresh mark for a run in ``directory``, after ending what the last one left there.

    Raises:
        RunDirectoryError: If a controller on this host is still at work there.
    """
    path = directory / RECORD
    here = platform.node()
    last = _last_record(path)
    if last is not None and last.host == here:
        if _start_of(last.pid) == last.start:
            raise RunDirectoryError(
                str(directory), f"in use by process {last.pid} on {here}", "Wait for it, or end it first."
            )
        ended = end_marked(RUN_VARIABLE, last.mark, grace_s=1.0)
        if ended:
            logger.info("ended leftovers directory=%s processes=%d", directory, ended)
    record = RunRecord(uuid.uuid4().hex, here, os.getpid(), _start_of(os.getpid()) or 0)
    directory.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps(asdict(record)))
    beside.replace(path)
    return record.mark


def release(directory: Path) -> None:
    """Give a directory up whose run has ended and left nothing."""
    (directory / RECORD).unlink(missing_ok=True)


def marked(variable: str, value: str | Callable[[str], bool]) -> tuple[ProcessId, ...]:
    """Return this user's living processes with that variable, without the caller's own.

    Args:
        variable: Its name.
        value: The value, or what says of one whether it is meant.
    """
    name = f"{variable}=".encode()

    def is_meant(entry: bytes) -> bool:
        if not entry.startswith(name):
            return False
        found = entry.removeprefix(name).decode(errors="replace")
        return value(found) if callable(value) else found == value

    return tuple(
        p for p in _processes() if p.pid != os.getpid() and any(map(is_meant, _environment_of(p.pid)))
    )


def end_marked(
    variable: str,
    value: str | Callable[[str], bool],
    *,
    grace_s: float,
    first: signal.Signals = signal.SIGTERM,
) -> int:
    """End every process with that variable: by a signal, and by KILL after ``grace_s`` [s].

    Returns when they are gone; new ones that they start meanwhile are ended too.

    Args:
        variable: Its name.
        value: The value, or what says of one whether it is meant.
        grace_s: As above.
        first: The signal that asks.

    Returns:
        How many processes were signalled.
    """
    signalled: set[ProcessId] = set()
    kill_from = time.monotonic() + grace_s
    give_up = kill_from + _GONE_WITHIN_S
    empty_scans = 0
    while empty_scans < _EMPTY_SCANS and time.monotonic() < give_up:
        found = marked(variable, value)
        empty_scans = 0 if found else empty_scans + 1
        is_over = time.monotonic() >= kill_from
        for process in found:
            if is_over or process not in signalled:
                _send(process, signal.SIGKILL if is_over else first)
        signalled.update(found)
        time.sleep(_POLL_S)
    return len(signalled)


def age_s(pid: int) -> float:
    """Return how long a process has lived [s], or 0 where that is not known."""
    try:
        up_s = float(Path("/proc/uptime").read_text().split()[0])
    except OSError:
        return 0.0
    start = _start_of(pid)
    return 0.0 if start is None else max(0.0, up_s - start / os.sysconf("SC_CLK_TCK"))


def _last_record(path: Path) -> RunRecord | None:
    try:
        return RunRecord(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None  # the first run here; or the last one died while it wrote, before it started anything


def _send(process: ProcessId, number: signal.Signals) -> None:
    if _start_of(process.pid) == process.start:
        try:
            os.kill(process.pid, number)
        except (ProcessLookupError, PermissionError):
            return


def _processes() -> Iterator[ProcessId]:
    proc = Path("/proc")
    for entry in proc.iterdir() if proc.is_dir() else ():
        if entry.name.isdigit():
            start = _start_of(int(entry.name))
            if start is not None:
                yield ProcessId(int(entry.name), start)


def _start_of(pid: int) -> int | None:
    """Return when a process started [clock ticks since boot], or None if it is dead or a zombie."""
    try:
        # The name in parentheses may itself hold spaces and parentheses.
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, UnicodeDecodeError):
        return None
    return None if after_name[0] in "ZX" else int(after_name[19])


def _environment_of(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # dead, or another user's
        return []
