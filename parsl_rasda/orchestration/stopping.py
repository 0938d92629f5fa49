"""When a search has found enough: a decision from what was reported, the same in every replay."""

from __future__ import annotations

import math
from dataclasses import dataclass

from parsl_rasda.types import Mode, TrialId


@dataclass(frozen=True, slots=True)
class StopWhen:
    """What a study declares.

    Attributes:
        no_improvement: Stop after so many trials have ended since the best metric of all was reported.
        target: Stop once a metric is better than this.
    """

    no_improvement: int | None = None
    target: float | None = None


@dataclass(slots=True)
class StopWatch:
    """Watches what trials of a search report.

    Attributes:
        reason: Why the search is to stop, in words; empty while it goes on. Once given it stands.
    """

    rule: StopWhen
    metric: str
    mode: Mode
    reason: str = ""
    _best: float | None = None
    _ended_then: int = 0

    def report(self, trial: TrialId, value: float, ended: int) -> None:
        """Take note of a metric, when so many trials have ended."""
        if (self.rule.target is None and self.rule.no_improvement is None) or not math.isfinite(value):
            return
        if self._best is None or self._is_better(value, self._best):
            self._best, self._ended_then = value, ended
        if self.rule.target is not None and self._is_better(value, self.rule.target):
            than = f"{'below' if self.mode is Mode.MIN else 'above'} {self.rule.target:g}"
            self.reason = self.reason or f"{self.metric} of trial {trial} is {value:.5g}, {than}"

    def end(self, ended: int) -> None:
        """Take note that so many trials have ended."""
        most = self.rule.no_improvement
        if most is not None and self._best is not None and ended - self._ended_then >= most:
            self.reason = self.reason or f"no improvement of {self.metric} in {most} trials"

    def _is_better(self, value: float, than: float) -> bool:
        return value < than if self.mode is Mode.MIN else value > than
