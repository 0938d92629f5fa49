"""Parsl's interchange, which ends when the controller does.

Parsl starts it as ``interchange.py`` from PATH and lets it run on for ever when the controller is
killed; the pilot's manager then never notices that its study is dead. Ctrl-C in a terminal reaches
it, too, and so does the SIGTERM of a batch system that ends the controller's job: either would end it
before the controller has let its jobs save. It ends when its controller tells it to, or is gone.
"""

from __future__ import annotations

import os
import runpy
import signal
import threading

from parsl_rasda.agent.lean_parsl import prepare_program

INTERCHANGE_DIED = "Parsl's interchange on the controller's machine died"

_PROGRAM = "parsl.executors.high_throughput.interchange"
_POLL_S = 0.5


def main() -> None:
    """Run the interchange in this process until it ends, or its parent does."""
    parent = os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # in every thread: `_end_with` reads it
    threading.Thread(target=_end_with, args=(parent,), name="rasda-tether", daemon=True).start()
    prepare_program(_PROGRAM)
    runpy.run_module(_PROGRAM, run_name="__main__")


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        received = signal.sigtimedwait({signal.SIGTERM}, _POLL_S)
        if received is not None and received.si_pid == parent:  # Parsl's shutdown
            os._exit(0)
    os._exit(1)


if __name__ == "__main__":
    main()
