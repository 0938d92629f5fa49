"""Parsl's worker pool with workers that are forked from one process that has imported everything.

Parsl starts an interpreter for each worker, 1.2 s of a core and 80 MB; a pilot needs a worker for
every job that fits. Forked from a server that is single-threaded, the next one costs milliseconds
and shares its memory with the others.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys

import parsl.multiprocessing

from parsl_rasda.agent import pool_folder
from parsl_rasda.socket_folder import shorten_paths

_PACKAGE = "parsl.executors.high_throughput"
_POOL = f"{_PACKAGE}.process_worker_pool"
_OURS = ("parsl_rasda.agent.job", "parsl_rasda.agent.die_with_parent")
# All that the pool imports; not itself, which runs as the main program.
_PRELOADED = ["parsl", "psutil", "zmq", f"{_PACKAGE}.executor", f"{_PACKAGE}.probe", *_OURS]


def main() -> None:
    """Be Parsl's manager of one node until it ends; the command line is Parsl's."""
    if not sys.flags.safe_path:  # as multiprocessing then starts its server, too: see `user_modules`
        os.execv(sys.executable, [sys.executable, "-P", *sys.argv])
    shorten_paths()
    pool_folder.use()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    parsl.multiprocessing.SpawnContext = context  # from where the pool is about to take it
    runpy.run_module(_POOL, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
