"""``python -m parsl_rasda.runtime ORDER.json``: one rank of one job, from its start to its end.

Started by an MPI launcher once per rank, or alone. Exit status 0: left as it was told to; anything
else is a loss or a failure, and ``report.json`` has the cause.
"""

from __future__ import annotations

import ctypes
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
from parsl_rasda.protocol import DEADLINE_MARGIN_S, JobSpec
from parsl_rasda.runtime.checkpoints.shared import StoreError
from parsl_rasda.runtime.engine.group import PeersLostError
from parsl_rasda.runtime.engine.seeding import seed_start
from parsl_rasda.runtime.process.attempt import FORKED, LAST_WORDS_S, Leave, Session
from parsl_rasda.runtime.process.binding import bind
from parsl_rasda.runtime.process.channel import ControlChannel, claim_stdin, claim_stdout, watch_for_stop
from parsl_rasda.runtime.process.forkserver.client import WISHES
from parsl_rasda.runtime.process.launch_context import LaunchContext, launch_context
from parsl_rasda.runtime.process.rank_parent import continue_guarded
from parsl_rasda.runtime.trial import Trial
from parsl_rasda.types import Outcome

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

PR_SET_PDEATHSIG = 1
ALONE = LaunchContext(rank=0, size=1, device_index=0, environment={}, slot="", one_node=True)
NUDGE_S = 0.05


def main(argv: Sequence[str]) -> NoReturn:
    """Be one rank of the job that the order describes, and leave the process."""
    signal.pthread_sigmask(signal.SIG_BLOCK, WISHES)
    control = claim_stdout()
    is_forked = FORKED in os.environ  # then a fork server ends it, and a client stands in for it
    if not is_forked:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    order = JobSpec.load(Path(argv[0]))
    try:
        context = launch_context(order, os.environ)
    except InvalidSettingError as error:
        _leave(Session(order, ALONE), Outcome.FAILED, cause_of(error), traceback.format_exc(), together=True)
    os.environ.update(context.environment)
    if context.size == order.world_size:  # else it stands for several slots
        bind(context.gpu)
    session = Session(order, context)
    if order.accelerator == "none" and not session.is_main:
        _hold_the_slot(session)
    if context.size > 1 and not is_forked:
        continue_guarded(order)
    _listen(session, control)
    outcome, cause, trace, together = _run(session)
    session.interruptible = False
    _leave(session, outcome, cause, trace, together=together)


def _listen(session: Session, control: int) -> None:
    """Take signals, the deadline and the controller's words as wishes to leave."""
    main_thread = threading.main_thread().ident or 0

    def on_signal(number: int, _frame: FrameType | None) -> None:
        session.preempt(signal.Signals(number).name)
        if session.interruptible:
            session.interruptible, session.is_unwinding = False, True
            raise Leave(agreed=False)

    def preempt(cause: str) -> None:
        session.preempt(cause)
        signal.pthread_kill(main_thread, signal.SIGUSR1)

    def nudge() -> None:
        for name in _wishes(awake):
            session.preempt(name)  # else a wake-up call may be taken for the reason
            while not (session.is_prepared or session.is_unwinding or session.outcome):
                signal.pthread_kill(main_thread, signal.SIGUSR1)
                time.sleep(NUDGE_S)

    # A signal that comes between Python's last look and the system call does not interrupt a sleep:
    # whoever sleeps is woken again until it has seen it.
    awake, alarm = socket.socketpair()
    alarm.setblocking(False)
    signal.set_wakeup_fd(alarm.detach(), warn_on_full_buffer=False)
    threading.Thread(target=nudge, name="nudge", daemon=True).start()
    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGUSR1, on_signal)
    os.register_at_fork(after_in_child=_be_a_helper)
    order = session.order
    if order.interactive and session.is_main:
        session.channel = ControlChannel(claim_stdin(), control, lease_s=order.lease_s, on_preempt=preempt)
    elif session.is_main:
        watch_for_stop(session.directory, preempt)
    if order.deadline is not None:
        _watch_deadline(order.deadline, preempt)


def _wishes(awake: socket.socket) -> Iterator[str]:
    """Yield the names of the signals that ask the rank to leave.

    Others that Python handles come here too: torch's SIGCHLD, whenever a process that reads ahead has ended.
    """
    while True:
        number = awake.recv(1)[0]
        if number in WISHES:
            yield signal.Signals(number).name


def _be_a_helper() -> None:
    """Let a process that the training function forks heed its own signals, and not speak for the rank.

    `multiprocessing` ends those of a pool by SIGTERM. Wishes to leave concern the rank alone: where a batch
    system sends them to every process of a job, it needs its helpers for the step it is in.
    """
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def _watch_deadline(deadline: float, preempt: Callable[[str], None]) -> None:
    patience = max(0.0, deadline - DEADLINE_MARGIN_S - time.time())
    timer = threading.Timer(patience, preempt, ["the deadline is near"])
    timer.daemon = True
    timer.start()


def _run(session: Session) -> tuple[Outcome, str, str, bool]:
    """Return outcome, cause, traceback, and whether the other ranks end by themselves."""
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, WISHES)  # those that came before unwind us here
        if session.order.command:
            from parsl_rasda.runtime.process.command import run_command

            run_command(session)
        else:
            _train(session)
    except Leave as leave:
        return _shared(session, Outcome.PREEMPTED, together=leave.agreed)
    except (PeersLostError, StoreError) as error:
        return Outcome.LOST, session.lost_origin or str(error), traceback.format_exc(), False
    except BaseException as error:  # noqa: BLE001 - whatever the user's code raises becomes the report
        if session.lost_origin:
            return Outcome.LOST, session.lost_origin, traceback.format_exc(), False
        return Outcome.FAILED, cause_of(error), traceback.format_exc(), False
    return _shared(session, session.outcome or Outcome.REACHED, together=True)


def _shared(session: Session, outcome: Outcome, *, together: bool) -> tuple[Outcome, str, str, bool]:
    """Return how a job leaves that has nothing left to do but to share its last checkpoint."""
    session.interruptible = False
    try:
        session.share()
    except StoreError as error:
        if outcome is not Outcome.PREEMPTED:  # one that was told to leave goes on from an older one
            return Outcome.LOST, str(error), "", False
    return outcome, session.preempt_cause or "", "", together


def _train(session: Session) -> None:
    seed_start(session.order.seed)
    function = training_function(session.order.python or "")
    seed_start(session.order.seed)  # again: what its module has drawn may depend on what was loaded before
    function(Trial(session))
    if session.outcome is None:
        raise TrainingError(
            f"The training function returned after {session.epoch} of {session.until} epochs.",
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
    """Return what went wrong in one line, with the place in the user's own code."""
    frames = traceback.extract_tb(error.__traceback__)
    here = str(Path(__file__).parent)
    own = [f for f in frames if not f.filename.startswith((here, sys.prefix, sys.base_prefix, "<"))]
    place = (own or frames)[-1:]
    where = f" ({Path(place[0].filename).name}:{place[0].lineno})" if place else ""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}{where}"


def _leave(session: Session, outcome: Outcome, cause: str, trace: str, *, together: bool) -> NoReturn:
    """Write the last words and end: quickly, and so that the launcher ends what is left."""
    failed = outcome in {Outcome.FAILED, Outcome.LOST}
    if trace:
        sys.stderr.write(trace)
    if failed or session.is_main:
        session.close(outcome, cause, trace)
    elif not together:
        _await_report(session, LAST_WORDS_S)  # rank 0 was told to leave too, and dies with this one
    for helper in _helpers():
        helper.kill()  # those that read ahead let SIGTERM pass
    sys.stderr.flush()
    is_alone = session.context.size > 1 and not together  # then whoever stands before it ends the launch
    os._exit(1 if failed or is_alone else 0)


def _helpers() -> list[BaseProcess]:
    """Return the processes that read ahead; os._exit would leave them to find out by themselves."""
    if "multiprocessing" not in sys.modules:
        return []
    import multiprocessing

    return multiprocessing.active_children()


def _hold_the_slot(session: Session) -> NoReturn:
    """Where slots are only logical one process acts; the others of the launch wait for its end."""
    _await_report(session, math.inf)
    os._exit(0)


def _await_report(session: Session, patience_s: float) -> None:
    end = time.monotonic() + patience_s
    while not (session.directory / "report.json").exists() and time.monotonic() < end:
        time.sleep(0.02)


if __name__ == "__main__":
    main(sys.argv[1:])
