"""The processes below this one."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

REAP_S = 1.0


def children() -> list[int]:
    """Return the children of this process, which has one thread; none where the kernel does not tell.

    This file costs one read. psutil would look at every process of the node, at each wake-up of a server.
    """
    try:
        text = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text(encoding="utf-8")
    except OSError:
        return []
    return [int(pid) for pid in text.split()]


def end_children() -> None:
    """Kill the children of this process, and theirs as they become orphans that it has adopted."""
    end = time.monotonic() + REAP_S
    while time.monotonic() < end:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        for child in children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        time.sleep(0.005)
