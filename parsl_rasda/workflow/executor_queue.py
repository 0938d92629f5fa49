"""The queue of searches for the executors of a Parsl program, whose slots belong to one search at a time.

A search has a ledger of its own. Two of them on one executor would hold the same GPUs at once, so
the second waits for the first; searches on different executors do not meet.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

_POLL_S = 0.2

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """The place of a search in a queue, from `join` to `leave` or the end of its turn.

    Attributes:
        search: Its name, for the log.
        executors: Labels of all that it will use.
    """

    search: str
    executors: frozenset[str]
    _queue: ExecutorQueue

    @contextmanager
    def turn(self, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Wait for the turn of the search, in its own thread, and have it while the block lasts.

        Args:
            on_wait: Called again and again while it waits, and once more when its turn has come; it
                leaves the queue if this raises.
        """
        self.join()
        try:
            self._queue.wait(self, on_wait)
            yield
        finally:
            self.leave()

    def join(self) -> None:
        """Queue up, unless it has."""
        self._queue.join(self)

    def leave(self) -> None:
        """Leave the queue, unless it has."""
        self._queue.leave(self)


@dataclass(slots=True)
class ExecutorQueue:
    """The queue of one program's searches, in the order they came.

    A search has its turn when nobody before it uses one of its executors. The first one always
    has, and nobody takes executors one by one, so that no two can wait for each other.
    """

    _places: list[Place] = field(default_factory=list)
    _moved: threading.Condition = field(default_factory=threading.Condition)

    def place(self, search: str, executors: Collection[str]) -> Place:
        """Return a place for a search that will use these executors; it has not queued up yet."""
        return Place(search, frozenset(executors), self)

    def join(self, place: Place) -> None:
        """Put a place at the end, if it is not there."""
        with self._moved:
            if place not in self._places:
                self._places.append(place)

    def leave(self, place: Place) -> None:
        """Take a place out, if it is there."""
        with self._moved:
            if place in self._places:
                self._places.remove(place)
                self._moved.notify_all()

    def wait(self, place: Place, on_wait: Callable[[], None]) -> None:
        """Return when it is a place's turn."""
        with self._moved:
            if ahead := self._ahead(place):
                labels, names = ",".join(sorted(place.executors)), ",".join(p.search for p in ahead)
                logger.info(
                    "waits for its turn search=%s executors=%s behind=%s", place.search, labels, names
                )
            while self._ahead(place):
                on_wait()
                self._moved.wait(_POLL_S)
        on_wait()

    def _ahead(self, mine: Place) -> list[Place]:
        before = self._places[: self._places.index(mine)]
        return [place for place in before if place.executors & mine.executors]


_all: WeakKeyDictionary[Any, ExecutorQueue] = WeakKeyDictionary()
_lock = threading.Lock()


def queue_of(kernel: Any) -> ExecutorQueue:
    """Return the queue of a ``parsl.DataFlowKernel``, the same for each of its searches."""
    with _lock:
        return _all.setdefault(kernel, ExecutorQueue())
