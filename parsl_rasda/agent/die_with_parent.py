"""Imported by a process that must not outlive the one that started it: it dies with its parent.

For the server that workers are forked from: if Parsl's manager is killed, so is the server; its
workers then have another parent, which is how a job notices (`job`).
"""

from __future__ import annotations

import ctypes
import signal
import sys

_PR_SET_PDEATHSIG = 1

if sys.platform == "linux":
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
