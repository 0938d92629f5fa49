"""Parsl's worker pool with workers that are forked from one process that has imported everything.

Parsl starts an interpreter for each worker, 1.2 s of a core and 80 MB; a pilot needs a worker for
every job that fits. Forked from a server that is single-threaded, the next one costs milliseconds
and shares its memory with the others.

The pool keeps what its workers share in a helper process. Without that one it would go on saying that it is
well, but no task would ever start or end: so it ends, too, and is lost like any pilot.
"""

from __future__ import annotations

import importlib.metadata
import multiprocessing
import os
import runpy
import sys
import threading
from collections.abc import Iterable
from multiprocessing import forkserver
from multiprocessing.managers import SyncManager
from multiprocessing.process import BaseProcess

from parsl_rasda.agent import pool_folder
from parsl_rasda.agent.lean_parsl import prepare_program
from parsl_rasda.socket_folder import shorten_paths

_PACKAGE = "parsl.executors.high_throughput"
_POOL = f"{_PACKAGE}.process_worker_pool"
_OURS = ("parsl_rasda.agent.worker_imports", "parsl_rasda.agent.job", "parsl_rasda.agent.die_with_parent")
# All that the pool imports; not itself, which runs as the main program.
_PRELOADED = [*_OURS, "psutil", "zmq", f"{_PACKAGE}.executor", f"{_PACKAGE}.probe"]


def main() -> None:
    """Be Parsl's manager of one node until it ends; the command line is Parsl's."""
    if not sys.flags.safe_path:  # as multiprocessing then starts its server, too: see `user_modules`
        os.execv(sys.executable, [sys.executable, "-P", *sys.argv])
    shorten_paths()
    pool_folder.use()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    forkserver.ensure_running()  # it imports at the same time as this process
    prepare_program(_POOL)
    import parsl.multiprocessing

    # The pool would look through all installed packages and tell the interchange, which nobody asks for them.
    importlib.metadata.distributions = _no_distributions
    _watch_helper(context)
    parsl.multiprocessing.SpawnContext = context  # from where the pool is about to take it
    runpy.run_module(_POOL, run_name="__main__", alter_sys=True)


def _no_distributions(**_: object) -> Iterable[importlib.metadata.Distribution]:
    return ()


def _watch_helper(context: multiprocessing.context.ForkServerContext) -> None:
    """Let the pool end with the helper that it starts."""
    start = context.Manager

    def started() -> SyncManager:
        before = set(multiprocessing.active_children())
        manager = start()
        (helper,) = set(multiprocessing.active_children()) - before
        threading.Thread(target=_end_with, args=(helper,), name="rasda-helper-watch", daemon=True).start()
        return manager

    context.Manager = started  # type: ignore[method-assign]  # Parsl calls it on this very object


def _end_with(helper: BaseProcess) -> None:
    helper.join()
    if threading.main_thread().is_alive():  # else it is the pool that ends it
        sys.stderr.write("the helper of Parsl's worker pool has died, so the pool ends\n")
        os._exit(1)


if __name__ == "__main__":
    main()
