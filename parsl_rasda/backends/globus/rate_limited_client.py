"""The SDK's client, asking Globus Compute no more often than it allows: 20 requests in 10 s for each user.

The SDK paces the submissions of one executor; a study has one executor a site, and makes other requests,
too. Here all requests of this process wait in one line, whichever site they are for; tasks that wait
meanwhile travel together. Imported where the SDK is needed: it takes a third of a second.
"""

from __future__ import annotations

import functools
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from globus_compute_sdk import Client

MOST, WINDOW_S = 9, 5.1  # in any 10 s, at most twice as many


class Pacer:
    """Lets a number of requests through in any window of time; others wait for their turn."""

    def __init__(self, most: int, window_s: float, clock: Any = time) -> None:
        """Begin with an empty window.

        Args:
            most: How many.
            window_s: In how long [s].
            clock: Has ``monotonic`` and ``sleep``.
        """
        self._window_s, self._clock = window_s, clock
        self._lately: deque[float] = deque(maxlen=most)
        self._line = threading.Lock()

    def wait(self) -> None:
        """Return when it is our turn."""
        with self._line:
            if len(self._lately) == self._lately.maxlen:
                wait_s = self._lately[0] + self._window_s - self._clock.monotonic()
                if wait_s > 0:
                    self._clock.sleep(wait_s)
            self._lately.append(self._clock.monotonic())


PACER = Pacer(MOST, WINDOW_S)


def _paced(ask: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(ask)
    def ask_in_turn(*arguments: Any, **named: Any) -> Any:
        PACER.wait()
        return ask(*arguments, **named)

    return ask_in_turn


class RateLimitedClient(Client):  # type: ignore[misc]  # the SDK is untyped
    """Waits for its turn before each request that an executor, or `client`, makes."""

    batch_run = _paced(Client.batch_run)
    get_batch_result = _paced(Client.get_batch_result)
    get_endpoint_status = _paced(Client.get_endpoint_status)
    get_result_amqp_url = _paced(Client.get_result_amqp_url)
    get_task = _paced(Client.get_task)
    register_function = _paced(Client.register_function)
