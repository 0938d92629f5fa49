"""What Linux does for parents and children beyond POSIX; elsewhere these calls do nothing."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

# Loaded before any fork: loading a library in a forked child of a threaded process may deadlock.
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def die_with_parent(parent: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Get a signal when the *thread* that started this process ends; exit if the parent ended before that.

    Args:
        parent: The pid of the parent, read before this process was started.
        number: The signal.
    """
    if _LIBC is not None:
        _LIBC.prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os._exit(1)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends."""
    if _LIBC is not None:
        _LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1)
