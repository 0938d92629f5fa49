"""Finds and ends processes by a mark in their environment, however they were orphaned.

Every process of a run carries `RUN_VARIABLE`, every process of a launch also `JOB_VARIABLE`: the
marks are inherited through shells, launchers and daemons, where process groups and parents are not
(hydra gives each rank a session of its own; a killed ``mpiexec`` of Open MPI leaves its ranks to
init). A run directory remembers its last run, so the next controller ends what a killed one left behind.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import signal
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from parsl_rasda.agent import warden
from parsl_rasda.atomic_files import replace_file
from parsl_rasda.errors import RunDirectoryError
from parsl_rasda.processes import ProcessId, identify

RUN_VARIABLE = "PARSL_RASDA_RUN"
JOB_VARIABLE = "PARSL_RASDA_JOB"
RECORD = "controller.json"

_GONE_WITHIN_S = 5.0  # after SIGKILL; a process in an uninterruptible wait may need longer
_WARDEN_S = 1.0  # before that end, one that has not ended is killed
_POLL_S = 0.01
_EMPTY_SCANS = 2  # a process that is just being replaced by exec shows no environment for a moment

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunRecord:
    """Which controller a run directory belongs to, and the mark of everything it started."""

    mark: str
    host: str
    pid: int
    start: int


def acquire(directory: Path) -> str:
    """Return a fresh mark for a run in ``directory``, after ending what the last one left there.

    Raises:
        RunDirectoryError: If a controller on this host is still at work there.
    """
    path = directory / RECORD
    here = platform.node()
    last = _last_record(path)
    if last is not None and last.host == here:
        if ProcessId(last.pid, last.start).is_alive:
            raise RunDirectoryError(
                str(directory), f"in use by process {last.pid} on {here}", "Wait for it, or end it first."
            )
        ended = end_marked(RUN_VARIABLE, last.mark, grace_s=1.0)
        if ended:
            logger.info("ended orphans directory=%s processes=%d", directory, ended)
    me = identify(os.getpid())
    record = RunRecord(uuid.uuid4().hex, here, os.getpid(), me.start if me else 0)
    directory.mkdir(parents=True, exist_ok=True)
    replace_file(path, json.dumps(asdict(record)))
    return record.mark


def release(directory: Path) -> None:
    """Give a directory up whose run has ended and left nothing."""
    (directory / RECORD).unlink(missing_ok=True)


def marked(variable: str, value: str | Callable[[str], bool]) -> tuple[ProcessId, ...]:
    """Return this user's living processes with that variable, without the caller's own.

    Args:
        variable: Its name.
        value: Its value, or a test of the value.
    """
    matches = value if callable(value) else value.__eq__
    others = (pid for pid in psutil.pids() if pid != os.getpid())
    found = (identify(pid) for pid in others if (text := _read_variable(pid, variable)) and matches(text))
    return tuple(process for process in found if process is not None)


def end_marked(
    variable: str,
    value: str | Callable[[str], bool],
    *,
    grace_s: float,
    first: signal.Signals = signal.SIGTERM,
) -> int:
    """End every process with that variable: by a signal, and by KILL after ``grace_s`` [s].

    Returns when they are gone; new ones that they start meanwhile are ended too. A `warden` ends when its
    launcher does; instead of KILL it gets a signal of its own, and takes along what has no mark.

    Args:
        variable: Its name.
        value: Its value, or a test of the value.
        grace_s: As above.
        first: The first signal.

    Returns:
        How many processes were signalled.
    """
    signalled: set[ProcessId] = set()
    kill_from = time.monotonic() + grace_s
    give_up = kill_from + _GONE_WITHIN_S
    empty_scans = 0
    while time.monotonic() < give_up:
        found = marked(variable, value)
        # One that dies has no environment any more, and is still there for a moment.
        are_gone = not found and not any(process.is_alive for process in signalled)
        empty_scans = empty_scans + 1 if are_gone else 0
        if empty_scans == _EMPTY_SCANS:
            break
        now = time.monotonic()
        is_over = now >= kill_from
        for process in found:
            is_warden = _is_warden(process.pid)
            if is_over:
                _send(process, warden.KILL if is_warden and now < give_up - _WARDEN_S else signal.SIGKILL)
            elif not is_warden and process not in signalled:
                _send(process, first)
        signalled.update(found)
        time.sleep(_POLL_S)
    return len(signalled)


def age_s(pid: int) -> float:
    """Return how long a process has lived [s], or 0 where that is not known."""
    try:
        return max(0.0, time.time() - float(psutil.Process(pid).create_time()))
    except psutil.Error:
        return 0.0


def _is_warden(pid: int) -> bool:
    try:
        return warden.__file__ in psutil.Process(pid).cmdline()
    except psutil.Error:
        return False


def _last_record(path: Path) -> RunRecord | None:
    try:
        return RunRecord(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None  # the first run here; or the last one died while it wrote, before it started anything


def _send(process: ProcessId, number: signal.Signals) -> None:
    if process.is_alive:
        try:
            os.kill(process.pid, number)
        except (ProcessLookupError, PermissionError):
            return


def _read_variable(pid: int, name: str) -> str:
    """Return a variable of a process, or nothing."""
    try:  # each launch looks at all processes twice, and a Path would take as long again
        with open(f"/proc/{pid}/environ", "rb", buffering=0) as file:  # noqa: PTH123
            environment = file.read()
    except OSError:  # dead, or another user's
        return ""
    _, found, rest = (b"\0" + environment).partition(f"\0{name}=".encode())
    return os.fsdecode(rest.partition(b"\0")[0]) if found else ""
