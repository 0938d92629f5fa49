"""The limits of the hosted service of Globus Compute, and how it refuses whoever exceeds them.

Source: docs/limits.rst of globus-compute; the size of a result is checked by the endpoint as well
(`globus_compute_endpoint.engines.helper`), which fails the task.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace


class RefusedError(Exception):
    """An answer other than 2xx."""

    def __init__(self, status: int, code: str, reason: str) -> None:
        super().__init__(status, code, reason)
        self.status, self.code, self.reason = status, code, reason


@dataclass(frozen=True)
class Limits:
    """What a client may ask for.

    Attributes:
        request_bytes: Of a request.
        result_bytes: Of the result of a task.
        requests: In each `window_s`.
        window_s: In which requests are counted [s].
        result_window_s: How long a result waits to be fetched [s].
    """

    request_bytes: int = 10 * 1024 * 1024
    result_bytes: int = 10 * 1024 * 1024
    requests: int = 20
    window_s: float = 10.0
    result_window_s: float = 1800.0


@dataclass
class Gate:
    """Lets requests in, and counts those that it let in and those that it refused."""

    limits: Limits
    served: int = 0
    too_many: int = 0
    too_large: int = 0
    most: int = 0  # requests served in any window
    _recent: deque[float] = field(default_factory=deque)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def change(self, changes: Mapping[str, float]) -> dict[str, float]:
        """Set some limits and begin to count anew; returns what they were."""
        before = asdict(self.limits)
        with self._lock:
            self.limits = replace(self.limits, **changes)
            self._recent.clear()
        return {name: before[name] for name in changes}

    def counted(self) -> dict[str, int]:
        """Return how many requests were served or refused, and the most served in any window."""
        return {n: getattr(self, n) for n in ("served", "too_many", "too_large", "most")}

    def weigh(self, size_bytes: int) -> None:
        """Refuse a request that is too large."""
        if size_bytes > self.limits.request_bytes:
            self.too_large += 1
            words = f"{size_bytes} of {self.limits.request_bytes} bytes"
            raise RefusedError(413, "PAYLOAD_TOO_LARGE", words)

    def count(self) -> None:
        """Refuse a client that asks too often."""
        with self._lock:
            now = time.monotonic()
            while self._recent and self._recent[0] < now - self.limits.window_s:
                self._recent.popleft()
            if len(self._recent) >= self.limits.requests:
                self.too_many += 1
                words = f"{self.limits.requests} in {self.limits.window_s:g} s"
                raise RefusedError(429, "TOO_MANY_REQUESTS", words)
            self._recent.append(now)
            self.served += 1
            self.most = max(self.most, len(self._recent))
