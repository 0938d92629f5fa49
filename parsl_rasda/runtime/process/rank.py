"""One rank of one job, from its start to its end.

Exit status 0: it left as it was told to. Any other is a loss or a failure, and ``report.json`` has the cause.
"""

from __future__ import annotations

import importlib
import math
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from parsl_rasda.errors import InvalidSettingError, TrainingError
from parsl_rasda.plain_text import LONGEST_TRACE, cleaned, words_of
from parsl_rasda.prctl import die_with_parent
from parsl_rasda.protocol import DEADLINE_MARGIN_S, JobSpec
from parsl_rasda.runtime.attempt.attempt import FINAL_REPORT_S, FORKED, Attempt, PreemptRequested
from parsl_rasda.runtime.attempt.channel import ControlChannel, claim_stdin, claim_stdout, watch_for_stop
from parsl_rasda.runtime.attempt.launch_context import LaunchContext, launch_context
from parsl_rasda.runtime.checkpoints.shared import StoreError
from parsl_rasda.runtime.engine.group import PeersLostError
from parsl_rasda.runtime.engine.seeding import seed_start
from parsl_rasda.runtime.process.binding import bind
from parsl_rasda.runtime.process.forkserver.client import STOP_SIGNALS
from parsl_rasda.runtime.process.rank_parent import continue_in_child
from parsl_rasda.runtime.trial import Trial
from parsl_rasda.types import Outcome

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

SINGLE = LaunchContext(rank=0, size=1, device_index=0, environment={}, slot="", one_node=True)
WAKE_S = 0.05


def main(argv: Sequence[str]) -> NoReturn:
    """Be one rank of the job in the file ``argv[0]``, and leave the process."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    control = claim_stdout()
    is_forked = FORKED in os.environ  # then its supervisor ends it, and its client stands under the launcher
    if not is_forked:
        die_with_parent(os.getppid())
    spec = JobSpec.load(Path(argv[0]))
    try:
        context = launch_context(spec, os.environ)
    except InvalidSettingError as error:
        _leave(Attempt(spec, SINGLE), Outcome.FAILED, cause_of(error), trace_of(), together=True)
    os.environ.update(context.environment)
    if context.size == spec.world_size:  # else it stands for several slots
        bind(context.gpu)
    attempt = Attempt(spec, context)
    if spec.accelerator == "none" and not attempt.is_main:
        _hold_slot(attempt)
    if context.size > 1 and not is_forked:
        continue_in_child(spec)
    _listen(attempt, control)
    outcome, cause, trace, together = _run(attempt)
    attempt.interruptible = False
    _leave(attempt, outcome, cause, trace, together=together)


def _listen(attempt: Attempt, control: int) -> None:
    """Treat signals, the deadline and the controller's messages as requests to leave."""
    main_thread = threading.main_thread().ident or 0

    def on_signal(number: int, _frame: FrameType | None) -> None:
        attempt.preempt(signal.Signals(number).name)
        if attempt.interruptible:
            attempt.interruptible, attempt.is_unwinding = False, True
            raise PreemptRequested(agreed=False)

    def preempt(cause: str) -> None:
        attempt.preempt(cause)
        signal.pthread_kill(main_thread, signal.SIGUSR1)

    _keep_awake(attempt, main_thread)
    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGUSR1, on_signal)
    _separate_children()
    spec = attempt.spec
    if spec.interactive and attempt.is_main:
        attempt.channel = ControlChannel(claim_stdin(), control, lease_s=spec.lease_s, on_preempt=preempt)
    elif attempt.is_main:
        watch_for_stop(attempt.directory, preempt)
    if spec.deadline is not None:
        _watch_deadline(spec.deadline, preempt)


def _keep_awake(attempt: Attempt, main_thread: int) -> None:
    """Wake the main thread, after a stop signal, until it has seen the signal.

    A signal does not interrupt a sleep if it comes between Python's last check for signals and the system
    call.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.detach(), warn_on_full_buffer=False)

    def wake() -> None:
        for name in _stop_signals(reader):
            attempt.preempt(name)  # first, or the signal that wakes would be taken for the cause
            while not (attempt.is_prepared or attempt.is_unwinding or attempt.outcome):
                signal.pthread_kill(main_thread, signal.SIGUSR1)
                time.sleep(WAKE_S)

    threading.Thread(target=wake, name="wake", daemon=True).start()


def _stop_signals(reader: socket.socket) -> Iterator[str]:
    """Yield the names of the signals that ask the rank to leave.

    Other signals that Python handles arrive here too, such as the SIGCHLD of a process that reads ahead.
    """
    while True:
        number = reader.recv(1)[0]
        if number in STOP_SIGNALS:
            yield signal.Signals(number).name


def _separate_children() -> None:
    """In a process that the training function forks, restore the default signals.

    `multiprocessing` ends the processes of a pool by SIGTERM, perhaps as soon as they exist: stop signals are
    blocked until a child has left the rank's handlers. It ignores SIGUSR1: a batch system may send it to
    every process of a job, but only the rank has to act on it, and needs its helpers for the current step.
    """
    masks = threading.local()

    def block() -> None:
        masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)

    def restore() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, masks.before)

    def reset() -> None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        restore()

    os.register_at_fork(before=block, after_in_parent=restore, after_in_child=reset)


def _watch_deadline(deadline: float, preempt: Callable[[str], None]) -> None:
    patience = max(0.0, deadline - DEADLINE_MARGIN_S - time.time())
    timer = threading.Timer(patience, preempt, ["the deadline is near"])
    timer.daemon = True
    timer.start()


def _run(attempt: Attempt) -> tuple[Outcome, str, str, bool]:
    """Return outcome, cause, traceback, and whether the other ranks end by themselves."""
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # earlier ones raise here
        if attempt.spec.command:
            from parsl_rasda.runtime.process.command import run_command

            run_command(attempt)
        else:
            _train(attempt)
    except PreemptRequested as request:
        return _shared(attempt, Outcome.PREEMPTED, together=request.agreed)
    except (PeersLostError, StoreError) as error:
        return Outcome.LOST, attempt.lost_origin or cleaned(str(error)), trace_of(), False
    except BaseException as error:  # noqa: BLE001 - whatever the user's code raises is reported
        if attempt.lost_origin:
            return Outcome.LOST, attempt.lost_origin, trace_of(), False
        return Outcome.FAILED, cause_of(error), trace_of(), False
    return _shared(attempt, attempt.outcome or Outcome.REACHED, together=True)


def _shared(attempt: Attempt, outcome: Outcome, *, together: bool) -> tuple[Outcome, str, str, bool]:
    """Share the last checkpoint, and return what `_run` returns."""
    attempt.interruptible = False
    try:
        attempt.share()
    except StoreError as error:
        if outcome is not Outcome.PREEMPTED:  # a preempted trial resumes from an older one
            return Outcome.LOST, str(error), "", False
    return outcome, attempt.preempt_cause or "", "", together


def _train(attempt: Attempt) -> None:
    seed_start(attempt.spec.seed)
    function = training_function(attempt.spec.python or "")
    seed_start(attempt.spec.seed)  # again: what its module has drawn may depend on what was loaded before
    function(Trial(attempt))
    if attempt.outcome is None:
        raise TrainingError(
            f"The training function returned after {attempt.epoch} of {attempt.until} epochs.",
            "Let `for epoch in trial.epochs()` end by itself.",
        )


def training_function(name: str) -> Callable[[Trial], None]:
    """Return the function called ``module:function``.

    Raises:
        TrainingError: If the module has no such function.
    """
    module_name, _, function_name = name.partition(":")
    function = getattr(importlib.import_module(module_name), function_name, None)
    if not callable(function):
        raise TrainingError(
            f"`training.python` is {name!r}, but there is no such function.", "Write module:function."
        )
    checked: Callable[[Trial], None] = function
    return checked


def cause_of(error: BaseException) -> str:
    """Return what went wrong in one line, with the line of the user's own code."""
    frames = traceback.extract_tb(error.__traceback__)
    runtime = str(Path(__file__).parents[1])
    own = [f for f in frames if not f.filename.startswith((runtime, sys.prefix, sys.base_prefix, "<"))]
    place = (own or frames)[-1:]
    where = f" ({Path(place[0].filename).name}:{place[0].lineno})" if place else ""
    return " ".join(words_of(error).split()) + where


def trace_of() -> str:
    """Return the traceback of the error that is handled, whatever it holds, and not all of one of 20 MB."""
    try:
        return cleaned(trace_of(), LONGEST_TRACE)
    except Exception as failure:  # noqa: BLE001 - of the user's own ``__str__``
        return f"(its traceback cannot be had: {type(failure).__name__})"


def _leave(attempt: Attempt, outcome: Outcome, cause: str, trace: str, *, together: bool) -> NoReturn:
    """Report the end, and leave the process such that the launcher ends the other ranks if need be."""
    failed = outcome in {Outcome.FAILED, Outcome.LOST}
    if trace:
        sys.stderr.write(trace)
    if failed or attempt.is_main:
        attempt.close(outcome, cause, trace)
    elif not together:
        _await_report(attempt, FINAL_REPORT_S)  # rank 0 was told to leave too, and dies with this one
    for helper in _helpers():
        helper.kill()  # those that read ahead ignore SIGTERM
    sys.stderr.flush()
    is_first = attempt.context.size > 1 and not together  # then the rank's parent ends the launch
    os._exit(1 if failed or is_first else 0)


def _helpers() -> list[BaseProcess]:
    """Return the processes that read ahead. After os._exit they would notice the end only later."""
    if "multiprocessing" not in sys.modules:
        return []
    import multiprocessing

    return multiprocessing.active_children()


def _hold_slot(attempt: Attempt) -> NoReturn:
    """Where slots are only logical, one process acts; the others wait for its end."""
    _await_report(attempt, math.inf)
    os._exit(0)


def _await_report(attempt: Attempt, patience_s: float) -> None:
    end = time.monotonic() + patience_s
    while not (attempt.directory / "report.json").exists() and time.monotonic() < end:
        time.sleep(0.02)
