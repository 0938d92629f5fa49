"""A thread that reads ahead, and ends with whoever wanted to read."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class _Buffer(Generic[T]):
    """What has been read and not yet taken: bounded, and closed from either side."""

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._ended = self._unwanted = False
        self._error: BaseException | None = None

    def put(self, item: T) -> bool:
        """Wait for room and add an item. Returns whether more are wanted."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._items) < self._depth or self._unwanted)
            self._items.append(item)
            self._changed.notify()
            return not self._unwanted

    def end(self, error: BaseException | None = None) -> None:
        """Say that nothing more will come, and why."""
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify()

    def take(self) -> Iterator[T]:
        """Yield items as they come; raises the error that ended them, after all that came before it."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._items or self._ended)
                if not self._items:
                    break
                item = self._items.popleft()
                self._changed.notify()
            yield item
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Say that nothing more is wanted."""
        with self._changed:
            self._unwanted = True
            self._changed.notify()


def read_ahead(items: Iterator[T], depth: int) -> Generator[T, None, None]:
    """Yield the items, computed by a thread that is at most ``depth`` of them ahead.

    The thread starts with the first item asked for. It has ended when this generator has: after the last
    item, at an error (raised here, in its turn), and when the generator is closed or forgotten.
    """
    buffer: _Buffer[T] = _Buffer(depth)
    thread = threading.Thread(target=_fill, args=(items, buffer), name="rasda-read-ahead", daemon=True)
    thread.start()
    try:
        yield from buffer.take()
    finally:
        buffer.stop()
        thread.join()


def _fill(items: Iterator[T], buffer: _Buffer[T]) -> None:
    try:
        for item in items:
            if not buffer.put(item):
                return
    except BaseException as error:  # noqa: BLE001 # it is raised again where the item was wanted
        buffer.end(error)
    else:
        buffer.end()
