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
class _Entry:
    """A search in the queue."""

    search: str
    executors: frozenset[str]


@dataclass(slots=True)
class ExecutorQueue:
    """The queue of one program's searches, in the order they came.

    A search has its turn when nobody before it uses one of its executors. The first one always
    has, and nobody takes executors one by one, so that no two can wait for each other.
    """

    _entries: list[_Entry] = field(default_factory=list)
    _moved: threading.Condition = field(default_factory=threading.Condition)

    @contextmanager
    def turn(
        self, search: str, executors: Collection[str], on_wait: Callable[[], None] = lambda: None
    ) -> Iterator[None]:
        """Wait for the turn of a search, in its own thread, and have it while the block lasts.

        Args:
            search: Its name, for the log.
            executors: Labels of all that it will use.
            on_wait: Called again and again while it waits, and once more when its turn has come; it
                leaves the queue if this raises.
        """
        mine = _Entry(search, frozenset(executors))
        with self._moved:
            self._entries.append(mine)
        try:
            self._wait(mine, on_wait)
            yield
        finally:
            with self._moved:
                self._entries.remove(mine)
                self._moved.notify_all()

    def _wait(self, mine: _Entry, on_wait: Callable[[], None]) -> None:
        with self._moved:
            if ahead := self._ahead(mine):
                labels, names = ",".join(sorted(mine.executors)), ",".join(p.search for p in ahead)
                logger.info("waits for its turn search=%s executors=%s behind=%s", mine.search, labels, names)
            while self._ahead(mine):
                on_wait()
                self._moved.wait(_POLL_S)
        on_wait()

    def _ahead(self, mine: _Entry) -> list[_Entry]:
        before = self._entries[: self._entries.index(mine)]
        return [entry for entry in before if entry.executors & mine.executors]


_all: WeakKeyDictionary[Any, ExecutorQueue] = WeakKeyDictionary()
_lock = threading.Lock()


def queue_of(kernel: Any) -> ExecutorQueue:
    """Return the queue of a ``parsl.DataFlowKernel``, the same for each of its searches."""
    with _lock:
        return _all.setdefault(kernel, ExecutorQueue())
