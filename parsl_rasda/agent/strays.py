"""Ends what a stage leaves in a worker and nobody would find: orphans whose environment has no mark.

Marked processes are found by their mark when the run ends (`orphan_reaper`). What a launch leaves, its
`warden` ends.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

import psutil

from parsl_rasda.agent.orphan_reaper import JOB_VARIABLE, RUN_VARIABLE
from parsl_rasda.prctl import adopt_orphans

_GONE_WITHIN_S = 5.0
_POLL_S = 0.01
_EXEC_S = 0.05


@contextmanager
def ending_strays() -> Iterator[None]:
    """When the block ends, kill the children that it has left to this process, unless they bear a mark.

    Nothing happens where this process itself has none: in a worker of somebody else's.
    """
    if not _has_mark(os.environ):
        yield
        return
    adopt_orphans()
    before = set(psutil.Process().children())
    try:
        yield
    finally:
        give_up = time.monotonic() + _GONE_WITHIN_S
        while (strays := _strays(before)) and time.monotonic() < give_up:
            for stray in strays:
                with suppress(psutil.Error):
                    stray.kill()
            psutil.wait_procs(strays, timeout=_POLL_S)  # they may have left some in turn


def _strays(before: set[psutil.Process]) -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if child not in before and _is_stray(child)]


def _is_stray(process: psutil.Process) -> bool:
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        environment = process.environ()
        if not environment:  # it may be just being replaced by exec, and show none for a moment
            time.sleep(_EXEC_S)
            environment = process.environ()
        return not _has_mark(environment)
    except psutil.Error:  # it has ended, or is another user's
        return False


def _has_mark(environment: Mapping[str, str]) -> bool:
    return RUN_VARIABLE in environment or JOB_VARIABLE in environment
