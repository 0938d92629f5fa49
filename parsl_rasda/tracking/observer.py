"""Feeds trackers from the journal, each in a thread of its own: whatever becomes of them, the study goes on.

A tracker that fails is asked again, less and less often. What it has not got at the end stays in the journal,
from where `export` brings it.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self, TypeAlias

from parsl_rasda.orchestration.curves import Curve, Curves
from parsl_rasda.orchestration.events import Event, Instruction
from parsl_rasda.orchestration.journal import Record
from parsl_rasda.plain_text import words_of
from parsl_rasda.tracking.base import Tracker
from parsl_rasda.types import TrialId

_PATIENCE_S = 60.0  # at the end of a search, for all trackers together
_FIRST_RETRY_S, _LAST_RETRY_S = 2.0, 300.0

logger = logging.getLogger(__name__)

Told: TypeAlias = tuple[Event, tuple[Instruction, ...]]


class Tracking:
    """An observer that keeps trackers up to date; use as a context manager."""

    def __init__(
        self,
        trackers: Sequence[tuple[str, Callable[[], Tracker]]],
        records: Iterable[Record] = (),
        patience_s: float = _PATIENCE_S,
    ) -> None:
        """Prepare to track.

        Args:
            trackers: Name of each, and what makes it, in its thread.
            records: What has happened so far; each tracker's thread reads them by itself.
            patience_s: How long the end of a search waits for what is not written yet [s].
        """
        self._keepers = [_Keeper(name, make, records) for name, make in trackers]
        self._patience_s = patience_s

    def add(self, event: Event, instructions: tuple[Instruction, ...]) -> None:
        """Take note; whatever there is to do, the trackers' threads do."""
        for keeper in self._keepers:
            keeper.told.put((event, instructions))

    def __enter__(self) -> Self:
        for keeper in self._keepers:
            keeper.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for a while until all is written."""
        deadline = time.monotonic() + (self._patience_s if kind is None else 0.0)
        for keeper in self._keepers:
            keeper.told.put(None)
        for keeper in self._keepers:
            keeper.thread.join(max(0.0, deadline - time.monotonic()))
            if keeper.thread.is_alive() and kind is None:
                logger.warning(
                    "%s is not up to date: it takes too long; `export` can add the rest", keeper.name
                )


@dataclass(slots=True)
class _Keeper:
    """Keeps one tracker up to date.

    Attributes:
        due: Trials that it does not know as they are.
        retry_at: When it is asked again after a failure [s], or 0.
    """

    name: str
    make: Callable[[], Tracker]
    records: Iterable[Record]
    told: queue.SimpleQueue[Told | None] = field(default_factory=queue.SimpleQueue)
    thread: threading.Thread = field(init=False)
    tracker: Tracker | None = None
    curves: Curves = field(default_factory=Curves)
    due: dict[TrialId, Curve] = field(default_factory=dict)
    retry_at: float = 0.0
    wait_s: float = _FIRST_RETRY_S
    complaint: str = ""

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._work, name=f"tracker-{self.name}", daemon=True)

    def _work(self) -> None:
        try:
            for record in self.records:
                self._note((record.event, record.instructions))
            is_over = False
            while not is_over:
                is_over = self._listen()
                if is_over or time.monotonic() >= self.retry_at:
                    self._write()
            if self.tracker is not None:
                self.tracker.close()
            if self.due:
                logger.warning("%s lacks %d trials; `export` can add them", self.name, len(self.due))
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not cost the study anything
            self._complain(error)

    def _listen(self) -> bool:
        """Wait until something has happened or is due again, take it all, and return whether it is over."""
        patience_s = max(0.0, self.retry_at - time.monotonic()) if self.due else None
        try:
            told = self.told.get(timeout=patience_s)
            while told is not None:
                self._note(told)
                told = self.told.get_nowait()
        except queue.Empty:
            return False
        return True

    def _note(self, told: Told) -> None:
        self.due |= {curve.trial: curve for curve in self.curves.touched(*told)}

    def _write(self) -> None:
        """Write what is due, until something fails."""
        try:
            if self.tracker is None:
                self.tracker = self.make()
            for curve in tuple(self.due.values()):
                self.tracker.write(curve)
                del self.due[curve.trial]
                if curve.state is not None:
                    curve.points.clear()  # nobody will ask for them
            self.retry_at, self.wait_s = 0.0, _FIRST_RETRY_S
        except Exception as error:  # noqa: BLE001 - a server, a disk, somebody's library
            self._complain(error)
            self.retry_at = time.monotonic() + self.wait_s
            self.wait_s = min(2 * self.wait_s, _LAST_RETRY_S)

    def _complain(self, error: Exception) -> None:
        words = words_of(error)
        level = logging.DEBUG if words == self.complaint else logging.WARNING
        self.complaint = words
        logger.log(level, "%s cannot be written, the study goes on: %s", self.name, words)
