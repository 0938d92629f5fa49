"""One thread that owns a runner's books: whatever happens is put into its inbox, and done in turn.

A second thread does what may take seconds, one after the other.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

logger = logging.getLogger(__name__)


class Actor:
    """The two threads of a runner."""

    def __init__(
        self, name: str, tick: Callable[[], None] | None = None, tick_s: float = float("inf")
    ) -> None:
        """Start them.

        Args:
            name: Of the first; the second has it too.
            tick: Done in the first once in a while, however much else there is to do.
            tick_s: How often [s].
        """
        self._tick, self._tick_s = tick, tick_s
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._beside = ThreadPoolExecutor(1, thread_name_prefix=f"{name}-beside")
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def do(self, task: Callable[[], None]) -> None:
        """Have a task done, after all that came before it."""
        self._inbox.put(task)

    def do_now(self, task: Callable[[], None]) -> None:
        """Wait until a task has been done, and all that came before it."""
        done = threading.Event()
        self.do(task)
        self.do(done.set)
        done.wait()

    def block(self, task: Callable[[], Any], then: Callable[[Future[Any]], None]) -> None:
        """Run a task that may take seconds in the second thread, and then ``then`` in the first."""
        future = self._beside.submit(task)
        future.add_done_callback(lambda done: self.do(lambda: then(done)))

    def wait_until(self, is_so: Callable[[], bool], timeout_s: float) -> None:
        """Wait until something is so; it is looked at after each task."""
        with self._changed:
            self._changed.wait_for(is_so, timeout_s)

    def end_beside(self, task: Callable[[], Any]) -> None:
        """Wait until a last task has been done in the second thread, and end that."""
        self._beside.submit(task).result()
        self._beside.shutdown()

    def end(self) -> None:
        """End the first thread, once it has done what it was told to."""
        self._inbox.put(None)
        self._thread.join()

    def _work(self) -> None:
        tick_at = 0.0
        while True:
            now = time.monotonic()
            if self._tick is not None and now >= tick_at:
                tick_at = now + self._tick_s
                self._act(self._tick)
            try:
                task = self._inbox.get(timeout=None if self._tick is None else max(0.0, tick_at - now))
            except queue.Empty:
                continue
            if task is None:
                return
            self._act(task)

    def _act(self, task: Callable[[], None]) -> None:
        try:
            task()
        except Exception:  # a bug; ending the thread would leave the study waiting for ever
            logger.exception("could not act on an event")
        with self._changed:
            self._changed.notify_all()
