"""How an attempt ended: the one place where what was seen of an end becomes an outcome and a cause.

Agents and backends report facts: what they saw end, whether the attempt was told to leave, what the
launcher and the ranks left behind. They judge nothing. `classify_exit` is pure and total.
"""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from enum import StrEnum

from parsl_rasda.protocol import JobResult
from parsl_rasda.types import Outcome

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


class EndedBy(StrEnum):
    """What was seen to end an attempt."""

    LAUNCH_EXIT = "launch exit"  # the launcher ended by itself
    LAUNCH_ERROR = "launch error"  # the launcher could not be started
    RANKS_UNRESPONSIVE = "ranks unresponsive"  # they had reported and did not end
    RANKS_STALLED = "ranks stalled"  # they took no step for far too long
    CONTROLLER = "controller"  # it told the attempt to leave, or did not let it begin
    CONTROLLER_SILENT = "controller silent"  # nothing was heard of it for a lease
    CONTROLLER_CLOSED = "controller closed"  # it left, whatever ran
    MANAGER_LOST = "manager lost"  # Parsl's manager on the node of the launch died
    WORKER_LOST = "worker lost"  # the process that watched over the launch died
    TASK_SILENT = "task silent"  # the process that watched over the launch wrote no heartbeat
    TASK_UNCLAIMED = "task unclaimed"  # no worker took it
    NOT_SENT = "not sent"  # its pilot had gone before it was sent
    PILOT_LOST = "pilot lost"  # nobody took it back
    PILOT_ENDED = "pilot ended"  # an endpoint's: nobody says why
    PILOT_TAKEN_BACK = "pilot taken back"  # by the batch system, or by its owner
    PILOT_AT_WALLTIME = "pilot at walltime"
    PILOT_RELEASED = "pilot released"  # by the controller
    PILOT_LEASED = "pilot leased"  # another study has it
    SITE_UNFIT = "site unfit"  # a module or an input is missing there, or a task is too large
    ENDPOINT_LOST = "endpoint lost"  # it answers no more, or refuses every task


# The outcome without a report of the ranks: of an attempt that was not told to leave, and of one that was.
_OUTCOMES: dict[EndedBy, tuple[Outcome, Outcome]] = {
    EndedBy.LAUNCH_EXIT: (Outcome.LOST, Outcome.LOST),
    EndedBy.LAUNCH_ERROR: (Outcome.LOST, Outcome.LOST),
    EndedBy.RANKS_UNRESPONSIVE: (Outcome.PREEMPTED, Outcome.PREEMPTED),
    EndedBy.RANKS_STALLED: (Outcome.LOST, Outcome.LOST),
    EndedBy.CONTROLLER: (Outcome.PREEMPTED, Outcome.PREEMPTED),
    EndedBy.CONTROLLER_SILENT: (Outcome.PREEMPTED, Outcome.PREEMPTED),
    EndedBy.CONTROLLER_CLOSED: (Outcome.PREEMPTED, Outcome.PREEMPTED),
    EndedBy.MANAGER_LOST: (Outcome.PREEMPTED, Outcome.PREEMPTED),
    EndedBy.WORKER_LOST: (Outcome.LOST, Outcome.LOST),
    EndedBy.TASK_SILENT: (Outcome.LOST, Outcome.PREEMPTED),
    EndedBy.TASK_UNCLAIMED: (Outcome.LOST, Outcome.PREEMPTED),
    EndedBy.NOT_SENT: (Outcome.PREEMPTED, Outcome.PREEMPTED),
    EndedBy.PILOT_LOST: (Outcome.LOST, Outcome.LOST),
    EndedBy.PILOT_ENDED: (Outcome.PREEMPTED, Outcome.PREEMPTED),
    EndedBy.PILOT_TAKEN_BACK: (Outcome.PREEMPTED, Outcome.PREEMPTED),
    EndedBy.PILOT_AT_WALLTIME: (Outcome.PREEMPTED, Outcome.PREEMPTED),
    EndedBy.PILOT_RELEASED: (Outcome.PREEMPTED, Outcome.PREEMPTED),
    EndedBy.PILOT_LEASED: (Outcome.PREEMPTED, Outcome.PREEMPTED),
    EndedBy.SITE_UNFIT: (Outcome.PREEMPTED, Outcome.PREEMPTED),
    EndedBy.ENDPOINT_LOST: (Outcome.LOST, Outcome.PREEMPTED),
}


@dataclass(frozen=True, slots=True)
class ExitObservations:
    """What was seen of an attempt's end.

    Attributes:
        ended_by: What ended it.
        words: The same for people, by whoever saw it; none for `EndedBy.LAUNCH_EXIT`.
        was_told: Whether it had been told to leave.
        report: The ranks' own report, or None.
        returncode: The launcher's, as in `subprocess`: negative for a death by signal.
        log_tail: The last lines of the attempt's log.
    """

    ended_by: EndedBy
    words: str = ""
    was_told: bool = False
    report: JobResult | None = None
    returncode: int = 0
    log_tail: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class JobExit:
    """How an attempt ended."""

    outcome: Outcome
    cause: str


def classify_exit(seen: ExitObservations) -> JobExit:
    """Return how an attempt ended. The ranks' own report stands, with two exceptions.

    Ranks that are lost while they leave anyway do not count as a loss. Ranks whose worker died saw only
    their channel close and say that they were preempted: unless they were told to leave, they were lost.
    """
    outcome = _OUTCOMES[seen.ended_by][seen.was_told]
    cause = _words_of_exit(seen) if seen.ended_by is EndedBy.LAUNCH_EXIT else seen.words
    own = seen.report
    if own is None:
        return JobExit(outcome, cause)
    if own.outcome is Outcome.LOST and outcome is Outcome.PREEMPTED:
        return JobExit(outcome, cause)
    if own.outcome is Outcome.PREEMPTED and seen.ended_by is EndedBy.WORKER_LOST and not seen.was_told:
        return JobExit(outcome, cause)
    return JobExit(own.outcome, own.cause)


def _words_of_exit(seen: ExitObservations) -> str:
    """Return one line that says how a launch ended, and the last lines of its log."""
    code, tail = seen.returncode, seen.log_tail
    number = -code if code < 0 else _signal_in(tail) or code - _SHELL_SIGNAL_BASE
    words = [line for line in tail if not _LAUNCHER_BANNER.match(line)][-_LOG_TAIL_LINES:]
    last_words = f": {' | '.join(words)}" if words else ""
    if any(_MEMORY_IN_LOG.search(line) for line in tail):
        return f"a rank ran out of memory (exit {code}){last_words}"
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"the ranks ended without a report (exit {code}){last_words}"
    who = "the launcher" if code < 0 else "a rank"
    return f"{who} died by {name} (exit {code}){last_words}"


def _signal_in(tail: tuple[str, ...]) -> int:
    """Return the signal that a launcher names as the cause, or 0."""
    text = "\n".join(tail)
    said, codes = _SIGNAL_IN_LOG.findall(text), _FIRST_CODE_IN_LOG.findall(text)
    last = int(said[-1]) if said else 0
    first = int(codes[0]) if codes else 0
    return first if last in _CLEAN_UP and first in _CRASHES else last
