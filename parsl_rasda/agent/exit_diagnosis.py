"""How an attempt ended, from what it left in its directory and from how its launch ended.

Used on the pilot, when a launch ends, and by the controller, when a pilot is gone and only the
shared file system is left to ask.
"""

from __future__ import annotations

import re
import signal
from dataclasses import replace
from pathlib import Path

from parsl_rasda.protocol import JobResult, JobSpec, read_report, report_of_epochs
from parsl_rasda.types import Outcome

_LOG_TAIL_BYTES = 4096
_LOG_TAIL_LINES = 3
_SHELL_SIGNAL_BASE = 128  # a shell and srun report a death by signal N as 128 + N
# hydra "Killed (signal 9)", Open MPI "exited on signal 9", srun "Killed" with exit code 137.
_SIGNAL_IN_LOG = re.compile(r"(?:\(signal |exited on signal |terminated by signal )(\d+)")
# hydra names the last rank to die, which it may have ended itself; the code is then the first one's.
_FIRST_CODE_IN_LOG = re.compile(r"=   EXIT CODE: (\d+)")
_CLEAN_UP = {signal.SIGTERM, signal.SIGKILL}
_CRASHES = {signal.SIGILL, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGSEGV}
_LAUNCHER_BANNER = re.compile(r"^(=|-{4,}$|YOUR APPLICATION|This typically|Please see|Binding policy:|$)")
# slurmstepd "Detected 1 oom_kill event", srun "task 0: Out Of Memory", the kernel "oom-kill".
_MEMORY_IN_LOG = re.compile(r"\boom[-_]kill|\bOut Of Memory\b|\bOUT_OF_MEMORY\b")


def conclude(directory: Path, order: JobSpec, outcome: Outcome, cause: str) -> JobResult:
    """Return the ranks' own report, or one made of the epochs they left and the given outcome.

    Where the job was to leave anyway, ranks that were lost on the way out do not count as a loss.
    """
    own = read_report(directory, order.job)
    if own is None:
        return report_of_epochs(directory, order, outcome, cause)
    if (own.outcome, outcome) == (Outcome.LOST, Outcome.PREEMPTED):
        return replace(own, outcome=outcome, cause=cause)
    return own


def cause_of_exit(returncode: int, log: Path) -> str:
    """Return one line that says how a launch without a report ended, and its last words.

    Args:
        returncode: As in `subprocess`: negative for a death by signal.
        log: The attempt's log file.
    """
    tail = _tail(log)
    said = _signal_in(tail)
    number = -returncode if returncode < 0 else said or returncode - _SHELL_SIGNAL_BASE
    words = [line for line in tail if not _LAUNCHER_BANNER.match(line)][-_LOG_TAIL_LINES:]
    last_words = f": {' | '.join(words)}" if words else ""
    if any(_MEMORY_IN_LOG.search(line) for line in tail):
        return f"a rank ran out of memory (exit {returncode}){last_words}"
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"the ranks ended without a report (exit {returncode}){last_words}"
    who = "the launcher" if returncode < 0 else "a rank"
    return f"{who} died by {name} (exit {returncode}){last_words}"


def _signal_in(tail: list[str]) -> int:
    """Return the signal that a launcher names as the cause, or 0."""
    text = "\n".join(tail)
    said, codes = _SIGNAL_IN_LOG.findall(text), _FIRST_CODE_IN_LOG.findall(text)
    last = int(said[-1]) if said else 0
    first = int(codes[0]) if codes else 0
    return first if last in _CLEAN_UP and first in _CRASHES else last


def _tail(log: Path) -> list[str]:
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _LOG_TAIL_BYTES))
            text = file.read().decode(errors="replace").replace("\0", "")
            return [line.strip() for line in text.splitlines()]
    except OSError:
        return []
