"""What a trial logs within an epoch, thinned so that any number of steps stays a few hundred points."""

from __future__ import annotations

from collections.abc import Mapping

from parsl_rasda.protocol import Steps

MOST = 200  # points of an epoch


class StepLog:
    """Collects metrics of one epoch after another."""

    def __init__(self) -> None:
        self._points: list[tuple[float | None, Mapping[str, float]]] = []
        self._every, self._seen = 1, 0

    def add(self, share: float | None, metrics: Mapping[str, float]) -> None:
        """Note metrics, after so much of the epoch; None if that is not known."""
        if self._seen % self._every == 0:
            self._points.append((share, metrics))
        self._seen += 1
        if len(self._points) > MOST:
            self._points = self._points[::2]
            self._every *= 2

    def take(self, epoch: int) -> Steps:
        """Return what was noted in an epoch that began after so many, and begin anew."""
        count = len(self._points) + 1
        shares = (i / count if share is None else share for i, (share, _) in enumerate(self._points, start=1))
        found = tuple(
            (epoch + share, metrics) for share, (_, metrics) in zip(shares, self._points, strict=True)
        )
        self._points, self._every, self._seen = [], 1, 0
        return found
