"""The parent of a rank: what it does when the rank ends in a way that others would not notice.

Launchers let the other ranks run on when one merely exits, and those would wait for it in their next
collective, half an hour under NCCL. Only a death by signal ends the launch at once, everywhere; and only
whoever sees it first can tell why: ranks that a launcher then ends believe that they were called back.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path

from parsl_rasda.protocol import JobSpec, report_of_epochs
from parsl_rasda.runtime.process.attempt import write_once
from parsl_rasda.runtime.process.forkserver import client
from parsl_rasda.runtime.process.forkserver.process_tree import die_with
from parsl_rasda.runtime.process.launch_context import launched
from parsl_rasda.types import Outcome


def continue_guarded(order: JobSpec) -> None:
    """Return in a child, which is to be the rank; this process stays before it and never returns.

    It passes signals down and ends as the rank ended. A rank that is forked has a client in its stead.
    """
    me, awaited = os.getpid(), {*client.SIGNALS, signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    rank = os.fork()
    if rank == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        die_with(me)
        return
    while True:
        number = signal.sigwait(awaited)
        if number != signal.SIGCHLD:
            os.kill(rank, number)
            continue
        pid, status = os.waitpid(rank, os.WNOHANG)
        if pid:
            client.leave_as(shown_end(order, os.environ, os.waitstatus_to_exitcode(status)))


def shown_end(order: JobSpec, environ: Mapping[str, str], status: int) -> int:
    """Return how the launcher shall see a rank end, after reporting an end that it did not report itself.

    Args:
        order: What the rank was to do.
        environ: The rank's environment.
        status: As in `subprocess`: negative for a death by signal.
    """
    if order.world_size == 1 or status == 0:
        return status
    how = f"ended by itself, with exit status {status}"
    if status < 0:
        how = f"died by {signal.Signals(-status).name}"
    directory, cause = Path(order.directory), f"rank {launched(environ)[0]} {how}"
    report = report_of_epochs(directory, order, Outcome.LOST, cause)
    write_once(directory / "report.json", json.dumps(report.to_json(), indent=1))
    return status if status < 0 else -signal.SIGKILL
