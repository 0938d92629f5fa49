"""Exchanges between ranks beside what a rank computes: on a thread, or on a stream of a GPU."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import torch


class Beside(Protocol):
    """Runs what it is given in that order, beside the thread that gives it."""

    def start(self, exchange: Callable[[], None]) -> None:
        """Run an exchange after those that were given before."""
        ...

    def wait(self) -> None:
        """Let this thread, or its stream, go on when all is done; raise what an exchange raised."""
        ...


class OnThread:
    """For a CPU: whoever waits for another rank holds up his own thread."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="exchange")
        self._given: list[Future[None]] = []

    def start(self, exchange: Callable[[], None]) -> None:
        """Run an exchange on the thread."""
        self._given.append(self._thread.submit(exchange))

    def wait(self) -> None:
        """Block until all is done."""
        given, self._given = self._given, []
        for exchange in given:
            exchange.result()


class OnStream:
    """For a GPU: an exchange is queued, with its waits, on a stream of its own. No call blocks."""

    def __init__(self, device: torch.device) -> None:
        self._module = torch.get_device_module(device)
        self._stream = self._module.Stream(device)

    def start(self, exchange: Callable[[], None]) -> None:
        """Queue an exchange behind all that the current stream does until now."""
        self._stream.wait_stream(self._module.current_stream())
        with self._module.stream(self._stream):
            exchange()

    def wait(self) -> None:
        """Let the current stream wait."""
        self._module.current_stream().wait_stream(self._stream)
