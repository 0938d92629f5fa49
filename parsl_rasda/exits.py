"""How an attempt ended: the one place where what was seen of an end becomes an outcome, a cause and a blame.

Agents and backends report facts: what they saw end, whether the attempt was told to leave, what the
launcher and the ranks left behind. They judge nothing. `classify_exit` is pure and total.
"""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from parsl_rasda.protocol import JobResult
from parsl_rasda.types import Blame, Fault, Outcome, Phase

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
    STORAGE = "storage"  # the agent could not write what a launch needs
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


class _Rule(NamedTuple):
    """What an end means of which the ranks left no report.

    Attributes:
        outcome: Of an attempt that was not told to leave.
        outcome_if_told: Of one that was.
        blame: Whose fault it was, if nothing more is known.
    """

    outcome: Outcome
    outcome_if_told: Outcome
    blame: Blame


_RULES: dict[EndedBy, _Rule] = {
    EndedBy.LAUNCH_EXIT: _Rule(Outcome.LOST, Outcome.LOST, Blame.UNSURE),
    EndedBy.LAUNCH_ERROR: _Rule(Outcome.LOST, Outcome.LOST, Blame.SITE),
    EndedBy.STORAGE: _Rule(Outcome.LOST, Outcome.PREEMPTED, Blame.SITE),
    EndedBy.RANKS_UNRESPONSIVE: _Rule(Outcome.PREEMPTED, Outcome.PREEMPTED, Blame.UNSURE),
    EndedBy.RANKS_STALLED: _Rule(Outcome.LOST, Outcome.LOST, Blame.UNSURE),
    EndedBy.CONTROLLER: _Rule(Outcome.PREEMPTED, Outcome.PREEMPTED, Blame.CONTROLLER),
    EndedBy.CONTROLLER_SILENT: _Rule(Outcome.PREEMPTED, Outcome.PREEMPTED, Blame.CONTROLLER),
    EndedBy.CONTROLLER_CLOSED: _Rule(Outcome.PREEMPTED, Outcome.PREEMPTED, Blame.CONTROLLER),
    EndedBy.MANAGER_LOST: _Rule(Outcome.PREEMPTED, Outcome.PREEMPTED, Blame.PILOT),
    EndedBy.WORKER_LOST: _Rule(Outcome.LOST, Outcome.LOST, Blame.PILOT),
    EndedBy.TASK_SILENT: _Rule(Outcome.LOST, Outcome.PREEMPTED, Blame.UNSURE),
    EndedBy.TASK_UNCLAIMED: _Rule(Outcome.LOST, Outcome.PREEMPTED, Blame.PILOT),
    EndedBy.NOT_SENT: _Rule(Outcome.PREEMPTED, Outcome.PREEMPTED, Blame.PILOT),
    EndedBy.PILOT_LOST: _Rule(Outcome.LOST, Outcome.LOST, Blame.PILOT),
    EndedBy.PILOT_ENDED: _Rule(Outcome.PREEMPTED, Outcome.PREEMPTED, Blame.PILOT),
    EndedBy.PILOT_TAKEN_BACK: _Rule(Outcome.PREEMPTED, Outcome.PREEMPTED, Blame.PILOT),
    EndedBy.PILOT_AT_WALLTIME: _Rule(Outcome.PREEMPTED, Outcome.PREEMPTED, Blame.PILOT),
    EndedBy.PILOT_RELEASED: _Rule(Outcome.PREEMPTED, Outcome.PREEMPTED, Blame.PILOT),
    EndedBy.PILOT_LEASED: _Rule(Outcome.PREEMPTED, Outcome.PREEMPTED, Blame.PILOT),
    EndedBy.SITE_UNFIT: _Rule(Outcome.PREEMPTED, Outcome.PREEMPTED, Blame.SITE),
    EndedBy.ENDPOINT_LOST: _Rule(Outcome.LOST, Outcome.PREEMPTED, Blame.SITE),
}
_FAULT_BLAMES: dict[Fault, Blame] = {
    Fault.STORAGE: Blame.SITE,
    Fault.CHECKPOINT: Blame.SITE,
    Fault.DEVICE: Blame.SLOT,
    Fault.PEERS_LOST: Blame.UNSURE,
}


@dataclass(frozen=True, slots=True)
class Sign:
    """A text that tells whose fault an end was.

    Attributes:
        phase: How far the ranks had got where that text is written, if it tells.
    """

    pattern: re.Pattern[str]
    blame: Blame
    phase: Phase | None = None


def _sign(pattern: str, blame: Blame, phase: Phase | None = None) -> Sign:
    return Sign(re.compile(pattern), blame, phase)


# The first that is found counts. Of a launch without a report, those that blame the trial do not count.
SIGNS: tuple[Sign, ...] = (
    # cudaErrorECCUncorrectable, hipErrorECCNotCorrectable; "NVRM: Xid" of NVIDIA's driver.
    _sign(r"uncorrectable ECC|\bECC error|\bXid\b|uncorrectable NVLink", Blame.SLOT),
    # cudaErrorDevicesUnavailable: "CUDA-capable device(s) is/are busy or unavailable", "all ... devices are".
    _sign(r"busy or unavailable", Blame.SLOT),
    # cudaErrorNoDevice; torch.cuda._lazy_init, torch/csrc/cuda: no, or fewer, GPUs than the site file says.
    _sign(
        r"no (CUDA|ROCm)-capable device is detected|No (CUDA|HIP|XPU) (GPUs|devices) are available"
        r"|Found no NVIDIA driver|GPU is lost|fallen off the bus",
        Blame.SLOT,
    ),
    # Python's OSError: ENOSPC, EDQUOT, EIO, EROFS, ESTALE, EREMOTEIO, ENOTCONN; HDF5 writes "errno =".
    _sign(r"\[Errno (28|122|5|30|116|121|107)\]|errno = (28|122|5|30|116|121)\b", Blame.SITE),
    _sign(r"No space left on device|Disk quota exceeded|Stale (NFS )?file handle", Blame.SITE),
    # What ranks say of a site whose interpreter lacks the product.
    _sign(r"No module named '?parsl_rasda\b", Blame.SITE, Phase.NO_RANK),
    # runtime.attempt.launch_context: other ranks came up than were ordered.
    _sign(r"ranks started by the launcher", Blame.SITE, Phase.MET),
    # runtime.engine.setup_errors: the backend is not there, or says why no group can be made.
    _sign(r"\bGroupSetupError\b", Blame.SITE, Phase.MET),
    # The same: slots are parts of a GPU, over which NCCL spreads nothing. A narrower launch works.
    _sign(r"ranks of one trial on MIG instances", Blame.SITE, Phase.MET),
    # torch.distributed: TCPStore, gloo's full mesh and NCCL's bootstrap, which never came up.
    _sign(
        r"DistNetworkError|DistStoreError|client socket has (failed|timed out)|waiting for clients"
        r"|server socket has failed to listen|connectFullMesh failed|no socket interface found"
        r"|Unable to (find|resolve) .*interface",
        Blame.SITE,
        Phase.MET,
    ),
    # torch: CUDA, HIP, NCCL, RCCL, cuBLAS, cuDNN, gloo. A bad GPU and a bad kernel say the same.
    _sign(
        r"\b(CUDA|HIP|NCCL|RCCL|nccl|cuFFT|XPU|CUFFT) (internal )?error|\b(CUBLAS|CUDNN|HIPBLAS)_STATUS_",
        Blame.UNSURE,
    ),
    _sign(
        r"Connection (closed|reset) by peer|ProcessGroup\w+.*timed? ?out|collective operation timeout",
        Blame.UNSURE,
    ),
)
# torch, CUDACachingAllocator.cpp: "CUDA out of memory. ... Process 7 has 3.00 GiB memory in use."
_OUT_OF_MEMORY = re.compile(r"\b(CUDA|HIP|XPU) out of memory|OutOfMemoryError")
_MEMORY_OF_OTHERS = re.compile(r"(?:Process \d+ has|Other processes have) ([\d.]+) (GiB|TiB) memory in use")
_CONTEXTS_GIB = 1.0  # what the driver needs for one process or two


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
        phase: How far its ranks got, as far as anybody heard, if they left no report.
        fault: What kind of thing went wrong, if whoever saw the end knows.
        missing_input: A path that the job needs and that is not there, or nothing.
    """

    ended_by: EndedBy
    words: str = ""
    was_told: bool = False
    report: JobResult | None = None
    returncode: int = 0
    log_tail: tuple[str, ...] = ()
    phase: Phase | None = None
    fault: Fault | None = None
    missing_input: str = ""


@dataclass(frozen=True, slots=True)
class JobExit:
    """How an attempt ended.

    Attributes:
        blame: Whose fault it was, or None where nothing went wrong.
        phase: How far the ranks got, if that tells something; of the site's faults, that of its launcher.
    """

    outcome: Outcome
    cause: str
    blame: Blame | None = None
    phase: Phase | None = None


def classify_exit(seen: ExitObservations) -> JobExit:
    """Return how an attempt ended. The ranks' own report stands, with two exceptions.

    Ranks that are lost while they leave anyway do not count as a loss. Ranks whose worker died saw only
    their channel close and say that they were preempted: unless they were told to leave, they were lost.
    """
    rule = _RULES[seen.ended_by]
    outcome = rule.outcome_if_told if seen.was_told else rule.outcome
    cause = _words_of_exit(seen) if seen.ended_by is EndedBy.LAUNCH_EXIT else seen.words
    own = seen.report
    if own is None:
        blame, phase = _blame_without_report(seen)
        return JobExit(outcome, cause, blame, phase)
    is_overruled = (own.outcome is Outcome.LOST and outcome is Outcome.PREEMPTED) or (
        own.outcome is Outcome.PREEMPTED and seen.ended_by is EndedBy.WORKER_LOST and not seen.was_told
    )
    if is_overruled:
        return JobExit(outcome, cause, rule.blame, own.phase)
    return _exit_of_report(own, seen)


def _exit_of_report(own: JobResult, seen: ExitObservations) -> JobExit:
    """Return the exit that the ranks report; one that they call a failure need not be their trial's."""
    if own.outcome is Outcome.REACHED:
        return JobExit(own.outcome, own.cause, None, own.phase)
    if own.outcome is Outcome.PREEMPTED:
        by_launch = seen.ended_by in {EndedBy.LAUNCH_EXIT, EndedBy.RANKS_UNRESPONSIVE}
        return JobExit(
            own.outcome, own.cause, Blame.PILOT if by_launch else _RULES[seen.ended_by].blame, own.phase
        )
    blame, phase = _blame_of_report(own)
    cause = own.cause
    if blame is Blame.TRIAL and seen.missing_input and "FileNotFoundError" in f"{own.exception} {own.cause}":
        blame, cause = Blame.NODE, f"input {seen.missing_input} is not there: {own.cause}"
    return JobExit(Outcome.FAILED if blame is Blame.TRIAL else Outcome.LOST, cause, blame, phase)


def _blame_of_report(own: JobResult) -> tuple[Blame, Phase | None]:
    text = f"{own.exception}: {own.cause}"
    if _OUT_OF_MEMORY.search(text):
        return (Blame.SLOT if _is_held_by_others(text) else Blame.TRIAL), own.phase
    found = next((sign for sign in SIGNS if sign.pattern.search(text)), None)
    if found is not None:
        return found.blame, found.phase if found.blame is Blame.SITE else own.phase
    if own.fault in _FAULT_BLAMES:
        blame = _FAULT_BLAMES[own.fault]
        return blame, None if blame is Blame.SITE else own.phase
    return (Blame.TRIAL if own.outcome is Outcome.FAILED else Blame.UNSURE), own.phase


def _blame_without_report(seen: ExitObservations) -> tuple[Blame, Phase | None]:
    by_launch = seen.ended_by is EndedBy.LAUNCH_EXIT and seen.phase is Phase.NO_RANK
    if seen.ended_by is EndedBy.LAUNCH_ERROR or by_launch:
        return Blame.SITE, Phase.NO_RANK
    if seen.fault in _FAULT_BLAMES:
        return _FAULT_BLAMES[seen.fault], None
    text = "\n".join(seen.log_tail)
    found = next((sign for sign in SIGNS if sign.pattern.search(text)), None)
    if seen.ended_by is EndedBy.LAUNCH_EXIT and found is not None and found.blame is Blame.SLOT:
        return found.blame, seen.phase
    blame = _RULES[seen.ended_by].blame
    return blame, None if blame is Blame.SITE else seen.phase


def _is_held_by_others(text: str) -> bool:
    """Whether other processes hold more of the GPU than their contexts need."""
    held = sum(float(n) * (1024 if unit == "TiB" else 1) for n, unit in _MEMORY_OF_OTHERS.findall(text))
    return held >= _CONTEXTS_GIB


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
