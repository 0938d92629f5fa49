"""Whose turn it is on the executors of a Parsl program: their slots belong to one search at a time.

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

_LOOK_S = 0.2

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class _Place:
    """The place of a search in the line."""

    search: str
    executors: frozenset[str]


@dataclass(slots=True)
class Turns:
    """The line of one program's searches, in the order they came.

    A search has its turn when nobody before it uses one of its executors. The first in line always
    has, and nobody takes executors one by one, so that no two can wait for each other.
    """

    _line: list[_Place] = field(default_factory=list)
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
                leaves the line if this raises.
        """
        mine = _Place(search, frozenset(executors))
        with self._moved:
            self._line.append(mine)
        try:
            self._wait(mine, on_wait)
            yield
        finally:
            with self._moved:
                self._line.remove(mine)
                self._moved.notify_all()

    def _wait(self, mine: _Place, on_wait: Callable[[], None]) -> None:
        with self._moved:
            if ahead := self._ahead(mine):
                labels, names = ",".join(sorted(mine.executors)), ",".join(p.search for p in ahead)
                logger.info("waits for its turn search=%s executors=%s behind=%s", mine.search, labels, names)
            while self._ahead(mine):
                on_wait()
                self._moved.wait(_LOOK_S)
        on_wait()

    def _ahead(self, mine: _Place) -> list[_Place]:
        before = self._line[: self._line.index(mine)]
        return [place for place in before if place.executors & mine.executors]


_all: WeakKeyDictionary[Any, Turns] = WeakKeyDictionary()
_lock = threading.Lock()


def turns_of(kernel: Any) -> Turns:
    """Return the line of a ``parsl.DataFlowKernel``, the same for each of its searches."""
    with _lock:
        return _all.setdefault(kernel, Turns())
