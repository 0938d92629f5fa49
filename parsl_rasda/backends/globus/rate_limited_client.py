"""The SDK's client, asking Globus Compute no more often than it allows: 20 requests in 10 s for each user.

The SDK paces the submissions of one executor; a study has one executor a site, and makes other requests,
too. Here all requests of this process wait in one line, whichever site they are for; tasks that wait
meanwhile travel together. Processes of one user share the window by a file beside the SDK's own, as far as
they see that folder. Imported where the SDK is needed: it takes a third of a second.
"""

from __future__ import annotations

import fcntl
import functools
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from globus_compute_sdk import Client

logger = logging.getLogger(__name__)

MOST, WINDOW_S = 9, 5.1  # in any 10 s, at most twice as many


class Pacer:
    """Lets a number of requests through in any window of time; others wait for their turn."""

    def __init__(self, most: int, window_s: float, clock: Any = time, file: Path | None = None) -> None:
        """Begin with what the file says, or with an empty window.

        Args:
            most: How many.
            window_s: In how long [s].
            clock: Has ``time`` and ``sleep``.
            file: Shared with other processes; one that cannot be used is left alone from then on.
        """
        self._most, self._window_s, self._clock, self._file = most, window_s, clock, file
        self._lately: list[float] = []  # when requests were made [Unix time, s]
        self._line = threading.Lock()

    def wait(self) -> None:
        """Return when it is our turn."""
        with self._line:
            while (wait_s := self._take_turn()) > 0:
                self._clock.sleep(wait_s)

    def _take_turn(self) -> float:
        """Note a request and return 0, or return how long to wait before it may be our turn [s]."""
        if self._file is not None:
            try:
                return self._take_shared_turn(self._file)
            except OSError as error:
                logger.warning("requests of other processes are not seen: %s", error)
                self._file = None
        wait_s, self._lately = self._turn(self._lately)
        return wait_s

    def _take_shared_turn(self, file: Path) -> float:
        with os.fdopen(os.open(file, os.O_RDWR | os.O_CREAT, 0o600), "r+", encoding="utf-8") as opened:
            fcntl.flock(opened, fcntl.LOCK_EX)
            wait_s, self._lately = self._turn(_times(opened.read()))
            opened.seek(0)
            opened.truncate()
            opened.write(json.dumps(self._lately))
            return wait_s

    def _turn(self, lately: list[float]) -> tuple[float, list[float]]:
        """Return how long to wait, and when requests were made, with this one if it need not wait."""
        now = self._clock.time()
        # A clock that was set back must not keep anybody waiting for long.
        lately = sorted(at for at in lately if now - self._window_s < at <= now)
        if len(lately) < self._most:
            return 0.0, [*lately, now]
        return max(lately[-self._most] + self._window_s - now, 1e-3), lately


def _times(text: str) -> list[float]:
    try:
        return [float(at) for at in json.loads(text or "[]")]
    except (ValueError, TypeError):  # half a file of a process that was killed
        return []


def _shared_file() -> Path | None:
    """Return a file in the SDK's own folder, which belongs to one login, if there is that folder."""
    folder = Path(os.environ.get("GLOBUS_COMPUTE_USER_DIR") or Path.home() / ".globus_compute")
    return folder / "parsl_rasda-requests.json" if folder.is_dir() else None


PACER = Pacer(MOST, WINDOW_S, file=_shared_file())


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
