"""One rank of one job, from its start to its end.

Exit status 0: it left as it was told to. Any other is a loss or a failure, and ``report.json`` has the cause.
"""

from __future__ import annotations

import contextlib
import faulthandler
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from parsl_rasda.energy import EnergyMeter
from parsl_rasda.errors import InvalidSettingError, TrainingError
from parsl_rasda.prctl import die_with_parent
from parsl_rasda.protocol import DEADLINE_MARGIN_S, STACKS_SIGNAL, STARTED, JobSpec
from parsl_rasda.runtime.attempt.attempt import FINAL_REPORT_S, FORKED, Attempt, PreemptRequested
from parsl_rasda.runtime.attempt.channel import (
    STDERR,
    ControlChannel,
    OwnDescriptor,
    claim_stdin,
    claim_stdout,
    watch_for_stop,
)
from parsl_rasda.runtime.attempt.launch_context import LaunchContext, launch_context
from parsl_rasda.runtime.checkpoints.shared import StoreError
from parsl_rasda.runtime.engine.seeding import seed_start
from parsl_rasda.runtime.process.binding import bind
from parsl_rasda.runtime.process.end import End, end_by
from parsl_rasda.runtime.process.forkserver.client import STOP_SIGNALS
from parsl_rasda.runtime.process.rank_parent import continue_in_child
from parsl_rasda.runtime.trial import Trial
from parsl_rasda.socket_folder import discard, shorten_paths
from parsl_rasda.types import Outcome, Phase
from parsl_rasda.user_modules import add_user_folders, import_user_module

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

SINGLE = LaunchContext(rank=0, size=1, device_index=0, environment={}, slot="", one_node=True)
WAKE_S = 0.05
LOST_S = 60.0  # to save and end, once nobody may be left who would end a rank that hangs


def main(argv: Sequence[str]) -> NoReturn:
    """Be one rank of the job in the file ``argv[0]``, and leave the process."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    control = claim_stdout()
    is_forked = FORKED in os.environ  # then its supervisor ends it, and its client stands under the launcher
    if not is_forked:
        die_with_parent(os.getppid())
    spec = JobSpec.load(Path(argv[0]))
    with contextlib.suppress(OSError):  # a disk that is full is noticed by whoever needs it
        (Path(spec.directory) / STARTED).touch()
    try:
        context = launch_context(spec, os.environ)
    except InvalidSettingError as error:
        attempt = Attempt(spec, SINGLE)
        _leave(attempt, replace(end_by(attempt, error), together=True))
    meter = EnergyMeter.of_rank(spec, context.rank)  # while the mask is the pilot's
    os.environ.update(context.environment)
    if context.size == spec.world_size:  # else it stands for several slots
        bind(context.gpu)
    attempt = Attempt(spec, context)
    attempt.control, attempt.meter = control, meter
    attempt.enter(Phase.MET)
    if spec.accelerator == "none" and not attempt.is_main:
        _hold_slot(attempt)
    if context.size > 1 and not is_forked:
        continue_in_child(spec)
    _listen(attempt, control)
    shorten_paths()
    end = _run(attempt)
    attempt.interruptible = False
    _leave(attempt, end)


def _listen(attempt: Attempt, control: OwnDescriptor) -> None:
    """Treat signals, the deadline and the controller's messages as requests to leave."""
    main_thread = threading.main_thread().ident or 0

    def on_signal(number: int, _frame: FrameType | None) -> None:
        attempt.preempt(signal.Signals(number).name)
        if attempt.interruptible:
            attempt.interruptible, attempt.is_unwinding = False, True
            raise PreemptRequested(agreed=False)

    def preempt(cause: str) -> None:
        attempt.preempt(cause)
        if attempt.wakeup is None or attempt.wakeup.is_ours():  # else it leaves when it asks by itself
            signal.pthread_kill(main_thread, signal.SIGUSR1)

    def lost(cause: str) -> None:
        preempt(cause)
        _after(LOST_S, lambda: os.kill(os.getpid(), signal.SIGKILL))

    _keep_awake(attempt, main_thread)
    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGUSR1, on_signal)
    faulthandler.register(STACKS_SIGNAL, file=STDERR, all_threads=True)
    _separate_children()
    spec = attempt.spec
    if spec.interactive and attempt.is_main:
        attempt.channel = ControlChannel(
            claim_stdin(), control, lease_s=spec.lease_s, on_preempt=preempt, on_lost=lost
        )
    elif attempt.is_main:
        watch_for_stop(attempt.directory, preempt)
    if spec.deadline is not None:
        patience_s = spec.deadline - DEADLINE_MARGIN_S - time.time()
        _after(patience_s, lambda: preempt("the deadline is near"))


def _keep_awake(attempt: Attempt, main_thread: int) -> None:
    """Wake the main thread, after a stop signal, until it has seen the signal.

    A signal does not interrupt a sleep if it comes between Python's last check for signals and the system
    call.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    attempt.wakeup = OwnDescriptor(writer.detach())
    signal.set_wakeup_fd(attempt.wakeup.number, warn_on_full_buffer=False)

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
    with contextlib.suppress(OSError):  # until the training function closes it
        while number := reader.recv(1):
            if number[0] in STOP_SIGNALS:
                yield signal.Signals(number[0]).name


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


def _after(patience_s: float, act: Callable[[], None]) -> None:
    timer = threading.Timer(max(0.0, patience_s), act)
    timer.daemon = True
    timer.start()


def _run(attempt: Attempt) -> End:
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # earlier ones raise here
        if attempt.spec.command:
            from parsl_rasda.runtime.process.command import run_command

            run_command(attempt)
        else:
            _train(attempt)
    except PreemptRequested as request:
        return _shared(attempt, Outcome.PREEMPTED, together=request.agreed)
    except BaseException as error:  # noqa: BLE001 - whatever the user's code raises is reported
        return end_by(attempt, error)
    return _shared(attempt, attempt.outcome or Outcome.REACHED, together=True)


def _shared(attempt: Attempt, outcome: Outcome, *, together: bool) -> End:
    """Share the last checkpoint, and return what `_run` returns."""
    attempt.interruptible = False
    try:
        attempt.share()
    except StoreError as error:
        if outcome is not Outcome.PREEMPTED:  # a preempted trial resumes from an older one
            return end_by(attempt, error)
    return End(outcome, attempt.preempt_cause or "", together=together)


def _train(attempt: Attempt) -> None:
    seed_start(attempt.spec.seed)
    add_user_folders(attempt.spec.search_path, here=True)
    function = training_function(attempt.spec.python or "")
    if attempt.context.size == 1:
        attempt.enter(Phase.FIRST_STEP)  # several ranks must meet first
    seed_start(attempt.spec.seed)  # again: what its module has drawn may depend on what was loaded before
    trial = Trial(attempt)
    function(trial)
    if attempt.outcome is None:
        trial.finish()


def training_function(name: str) -> Callable[[Trial], None]:
    """Return the function called ``module:function``.

    Raises:
        TrainingError: If the module has no such function.
    """
    module_name, _, function_name = name.partition(":")
    function = getattr(import_user_module(module_name), function_name, None)
    if not callable(function):
        raise TrainingError(
            f"`training.python` is {name!r}, but there is no such function.", "Write module:function."
        )
    checked: Callable[[Trial], None] = function
    return checked


def _leave(attempt: Attempt, end: End) -> NoReturn:
    """Report the end, and leave the process such that the launcher ends the other ranks if need be."""
    failed = end.outcome in {Outcome.FAILED, Outcome.LOST}
    if attempt.meter is not None:
        attempt.meter.tell()  # first, for the report ends the launch
    with contextlib.suppress(Exception):  # the log is full, or the training function has closed it
        sys.stderr.write(end.traceback)
        sys.stderr.flush()
    if failed or attempt.is_main:
        attempt.close(end.outcome, end.cause, end.traceback, fault=end.fault, exception=end.exception)
    elif not end.together:
        _await_report(attempt, FINAL_REPORT_S)  # rank 0 was told to leave too, and dies with this one
    for helper in _helpers():
        helper.kill()  # those that read ahead ignore SIGTERM
    discard()
    is_first = attempt.context.size > 1 and not end.together  # then the rank's parent ends the launch
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
