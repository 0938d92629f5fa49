"""The parent of a rank that a launcher has started: see `exit_status` for what it is good for."""

from __future__ import annotations

import os
import signal

from parsl_rasda.prctl import adopt_orphans, die_with_parent
from parsl_rasda.protocol import JobSpec
from parsl_rasda.runtime.process.exit_status import shown_status
from parsl_rasda.runtime.process.forkserver import client
from parsl_rasda.runtime.process.forkserver.process_tree import end_children


def continue_in_child(spec: JobSpec) -> None:
    """Fork, and return in the child, which is to be the rank. This process never returns.

    It passes signals on to the rank, ends what that has left, and ends as the rank has ended. For a forked
    rank its client and its supervisor do this.
    """
    adopt_orphans()  # daemons of the rank
    parent, awaited = os.getpid(), {*client.SIGNALS, signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    rank = os.fork()
    if rank == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        die_with_parent(parent)
        return
    while True:
        number = signal.sigwait(awaited)
        if number != signal.SIGCHLD:
            os.kill(rank, number)
            continue
        pid, status = os.waitpid(rank, os.WNOHANG)
        if pid:
            end_children()
            client.leave_as(shown_status(spec, os.environ, os.waitstatus_to_exitcode(status)))
