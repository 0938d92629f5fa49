"""The thread that owns a backend's state: calls are posted to its inbox and made one after the other.

A second thread, the worker, makes calls that may block for seconds.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

_LOOK_S = 1.0  # how often a waiting thread makes sure that it waits for somebody

logger = logging.getLogger(__name__)


class Actor:
    """The two threads of a backend."""

    def __init__(
        self,
        name: str,
        tick: Callable[[], None] | None = None,
        tick_s: float = float("inf"),
        *,
        on_bug: Callable[[Exception], None] = lambda _: None,
    ) -> None:
        """Start them.

        Args:
            name: Of the first; the second has it too.
            tick: Called in the first once in a while, however much else there is to do.
            tick_s: How often [s].
            on_bug: Called in the first when a task has raised, which none should; the next one follows.
        """
        self._on_bug = on_bug
        self._tick, self._tick_s = tick, tick_s
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix=f"{name}-worker")
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def post(self, task: Callable[[], None]) -> None:
        """Have a task called, after all that were posted before it."""
        self._inbox.put(task)

    def call(self, task: Callable[[], None]) -> None:
        """Return when a task has been called, and all that were posted before it.

        Raises:
            RuntimeError: If the thread has ended: it would never be.
        """
        done = threading.Event()
        self.post(task)
        self.post(done.set)
        while not done.wait(_LOOK_S):
            if not self._thread.is_alive():
                raise RuntimeError(f"the thread {self._thread.name} has ended")

    def run_blocking(self, task: Callable[[], Any], then: Callable[[Future[Any]], None]) -> None:
        """Call a task that may take seconds in the worker, and then ``then`` in the first thread."""
        future = self._worker.submit(task)
        future.add_done_callback(lambda done: self.post(lambda: then(done)))

    def wait_until(self, condition: Callable[[], bool], timeout_s: float) -> None:
        """Wait until a condition holds; it is checked after each task."""
        with self._changed:
            self._changed.wait_for(condition, timeout_s)

    def end_worker(self, task: Callable[[], Any]) -> None:
        """Return when a last task has been called in the worker, and end that."""
        self._worker.submit(task).result()
        self._worker.shutdown()

    def end(self) -> None:
        """End the first thread, after all tasks that were posted before."""
        self._inbox.put(None)
        self._thread.join()

    def _serve(self) -> None:
        tick_at = 0.0
        while True:
            now = time.monotonic()
            if self._tick is not None and now >= tick_at:
                tick_at = now + self._tick_s
                self._run(self._tick)
            try:
                task = self._inbox.get(timeout=None if self._tick is None else max(0.0, tick_at - now))
            except queue.Empty:
                continue
            if task is None:
                return
            self._run(task)

    def _run(self, task: Callable[[], None]) -> None:
        try:
            task()
        except Exception as error:  # a bug; ending the thread would leave the study waiting for ever
            logger.exception("a backend's task failed")
            self._on_bug(error)
        with self._changed:
            self._changed.notify_all()
