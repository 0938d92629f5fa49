"""A thread that reads ahead, and ends with its consumer."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class _BoundedQueue(Generic[T]):
    """Items that were read and not yet taken. Its size is bounded, and both sides can close it."""

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._has_ended = self._is_closed = False
        self._error: BaseException | None = None

    def put(self, item: T) -> bool:
        """Wait for space, add an item, and return whether the consumer wants more."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._items) < self._depth or self._is_closed)
            self._items.append(item)
            self._changed.notify()
            return not self._is_closed

    def end(self, error: BaseException | None = None) -> None:
        """Tell the consumer that no more items come, and why."""
        with self._changed:
            self._has_ended, self._error = True, error
            self._changed.notify()

    def take(self) -> Iterator[T]:
        """Yield the items as they come, then raise the error that ended them, if any."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._items or self._has_ended)
                if not self._items:
                    break
                item = self._items.popleft()
                self._changed.notify()
            yield item
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Tell the producer that no more items are wanted."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()


def read_ahead(items: Iterator[T], depth: int) -> Generator[T, None, None]:
    """Yield the items, computed by a thread that is at most ``depth`` items ahead.

    The thread starts when the first item is asked for. It has ended when this generator has: after the last
    item, after an error (which is raised here, in its turn), and when the generator is closed or dropped.
    """
    queue: _BoundedQueue[T] = _BoundedQueue(depth)
    thread = threading.Thread(target=_fill, args=(items, queue), name="rasda-read-ahead", daemon=True)
    thread.start()
    try:
        yield from queue.take()
    finally:
        queue.close()
        thread.join()


def _fill(items: Iterator[T], queue: _BoundedQueue[T]) -> None:
    try:
        for item in items:
            if not queue.put(item):
                return
    except BaseException as error:  # noqa: BLE001 - `take` raises it
        queue.end(error)
    else:
        queue.end()
