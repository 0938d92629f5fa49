"""Who a process is: its pid alone is used again, its pid and its start never are."""

from __future__ import annotations

import os
from dataclasses import dataclass

import psutil

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process of this host that no later one can be taken for.

    Attributes:
        start: When it started [clock ticks since boot]: the same however often the clock is set.
    """

    pid: int
    start: int

    @property
    def is_alive(self) -> bool:
        """Whether it still runs; a zombie does not."""
        return identify(self.pid) == self


def identify(pid: int) -> ProcessId | None:
    """Return who has a pid now, or None if nobody does, or a zombie."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        booted = psutil.boot_time()  # first: psutil before 7 keeps the last one that was asked for
        return ProcessId(pid, round((process.create_time() - booted) * _TICKS_PER_S))
    except psutil.Error:
        return None
