"""A run as one line that is updated in place: for notebooks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from parsl_rasda.display.search_progress import SearchProgress, SearchSnapshot
from parsl_rasda.orchestration.events import Event, Instruction
from parsl_rasda.orchestration.machine import Machine
from parsl_rasda.orchestration.progress import NoProgress
from parsl_rasda.orchestration.usage import Usage
from parsl_rasda.plain_text import printable
from parsl_rasda.reporting.format import number
from parsl_rasda.types import TrialState

_EVERY_S = 0.5


class LineView(NoProgress):
    """Shows how a search stands, whenever it has changed and half a second has passed."""

    def __init__(self, show: Callable[[str], None]) -> None:
        """Show nothing yet.

        Args:
            show: Replaces what it showed before; called from several threads, one at a time.
        """
        self._show = show
        self._lock = threading.Lock()
        self._shown_at = 0.0
        self._last: SearchProgress | None = None

    def search(self, stage: str, machine: Machine, usage: Usage, *, alone: bool) -> _Follower:
        """Return an observer that keeps the line up to date."""
        del alone  # its line has its name in any case
        self._last = SearchProgress(stage, machine, usage)
        return _Follower(self, self._last)

    def update(self, progress: SearchProgress, *, at_once: bool = False) -> None:
        """Show how a search stands, unless that was done just now."""
        with self._lock:
            now = time.monotonic()
            if at_once or now - self._shown_at >= _EVERY_S:
                self._shown_at = now
                self._show(line_of(progress.snapshot()))

    def close(self) -> None:
        """Show how it ended."""
        if self._last is not None:
            self.update(self._last, at_once=True)


@dataclass(frozen=True, slots=True)
class _Follower:
    view: LineView
    progress: SearchProgress

    def add(self, event: Event, instructions: tuple[Instruction, ...]) -> None:
        self.progress.add(event, instructions)
        self.view.update(self.progress)


def line_of(found: SearchSnapshot) -> str:
    """Return how a search stands, on one line."""
    ended, running = found.ended, found.states[TrialState.RUNNING]
    parts = [
        f"{found.stage}: {ended} of {found.total} trials have ended, {running} running",
        f"{found.busy} of {found.gpus} {found.slot_kind} busy" if found.gpus else "no pilot",
    ]
    if found.best is not None:
        best = found.best
        parts.append(f"best {found.metric} {number(best.metric)} (trial {best.trial}, {best.epoch} epochs)")
    return printable("; ".join(parts))
