"""What a search has spent of its budget, and until when the rest of it lasts.

Pure: it is told the events that the machine handles, and reads no clock. What counts is what `status` shows:
time under a controller, and the time for which pilots are held, busy or not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from parsl_rasda.orchestration.events import Event, PilotEnded, PilotStarted, StudyStarted
from parsl_rasda.types import Budget, PilotId

_HOUR_S = 3600.0
_BEGINS = "budget: "  # every reason of its


@dataclass(slots=True)
class BudgetWatch:
    """Adds up what a search spends.

    Attributes:
        limits: What it may spend, as its last start said.
        is_limited: Whether there is a limit at all.
        reason: Why trials were given up that the method would have trained, in words; empty if none was.
        ends_at: When the first limit is reached if its pilots stay as they are [s]; infinite without a limit.
    """

    limits: Budget = field(default_factory=Budget)
    is_limited: bool = False
    reason: str = ""
    ends_at: float = math.inf
    _first: str = ""  # the limit that is reached first, in words
    _started_at: float | None = None
    _last_at: float = 0.0
    _wall_s: float = 0.0  # under earlier controllers
    _gpu_s: float = 0.0  # of pilots that are gone, likewise
    _node_s: float = 0.0
    _pilots: dict[PilotId, PilotStarted] = field(default_factory=dict)

    def note(self, event: Event) -> None:
        """Take note of an event before it is handled."""
        if type(event) is StudyStarted:
            self.close(self._last_at)
            self._started_at, self.limits, self.reason = event.at, event.budget or Budget(), ""
            self.is_limited = event.budget is not None
            self._foresee()
        elif type(event) is PilotStarted:
            self._pilots[event.pilot] = event
            self._foresee()
        elif type(event) is PilotEnded:
            self._give_back(event.pilot, event.at)
            self._foresee()
        self._last_at = max(self._last_at, event.at)

    def close(self, at: float) -> None:
        """Note that the search has ended, and its pilots with it."""
        if self._started_at is not None:
            self._wall_s += max(0.0, at - self._started_at)
            self._started_at = None
        for pilot in tuple(self._pilots):
            self._give_back(pilot, at)

    def has_room(self, now: float, seconds: float = 0.0) -> bool:
        """Whether what takes so long [s] ends before a limit is reached."""
        return now < self.ends_at and now + seconds <= self.ends_at

    def allows(self, budget: Budget, now: float) -> bool:
        """Whether another budget leaves anything to a search that this one has ended."""
        limits = (
            (budget.wall_time_s, self._wall_s),
            (budget.until, now),
            (budget.gpu_hours, self._gpu_s / _HOUR_S),
            (budget.node_hours, self._node_s / _HOUR_S),
        )
        return budget != self.limits and all(limit is None or spent < limit for limit, spent in limits)

    def give_up(self, *, spent: bool) -> str:
        """Return why a trial is given up; the first reason is that of the search."""
        rest = "is spent" if spent else "does not last to the next rung"
        words = f"{_BEGINS}{self._first} {rest}"
        self.reason = self.reason or words
        return words

    def spent(self, now: float | None = None) -> dict[str, float]:
        """Return what was spent of each limit there is: seconds under a controller, GPU-hours, node-hours."""
        at = self._last_at if now is None else now
        wall_s = self._wall_s + (max(0.0, at - self._started_at) if self._started_at is not None else 0.0)
        held = [(max(0.0, at - p.at), p) for p in self._pilots.values()]
        gpu_s = self._gpu_s + sum(s * _gpus(p) for s, p in held)
        node_s = self._node_s + sum(s * len(p.nodes) for s, p in held)
        return {"wall_time_s": wall_s, "gpu_hours": gpu_s / _HOUR_S, "node_hours": node_s / _HOUR_S}

    def _give_back(self, pilot: PilotId, at: float) -> None:
        start = self._pilots.pop(pilot, None)
        if start is not None:
            seconds = max(0.0, at - start.at)
            self._gpu_s += seconds * _gpus(start)
            self._node_s += seconds * len(start.nodes)

    def _foresee(self) -> None:
        limits, ends = self.limits, [(math.inf, "")]
        if limits.until is not None:
            ends.append((limits.until, "the time until which it may run"))
        if limits.wall_time_s is not None and self._started_at is not None:
            words = f"wall_time of {limits.wall_time_s:g} s"
            ends.append((self._started_at + limits.wall_time_s - self._wall_s, words))
        pilots = self._pilots.values()
        gpus = [(p.at, _gpus(p)) for p in pilots]
        nodes = [(p.at, len(p.nodes)) for p in pilots]
        for limit, gone_s, held, name in (
            (limits.gpu_hours, self._gpu_s, gpus, "gpu_hours"),
            (limits.node_hours, self._node_s, nodes, "node_hours"),
        ):
            if limit is not None:
                ends.append((_reached_at(limit * _HOUR_S - gone_s, held), f"{limit:g} {name}"))
        self.ends_at, self._first = min(ends)


def is_of_budget(reason: str) -> bool:
    """Whether a trial has ended for this reason because the budget did not last for it."""
    return reason.startswith(_BEGINS)


def _gpus(pilot: PilotStarted) -> int:
    return sum(len(node.gpus) for node in pilot.nodes)


def _reached_at(left_s: float, held: list[tuple[float, int]]) -> float:
    """Return when so much more is held [s], by parts that are held since a time [s]."""
    rate = sum(number for _, number in held)
    if left_s <= 0 and not rate:
        return -math.inf
    if not rate:
        return math.inf
    first = min(at for at, _ in held)  # small numbers are exact: Unix times are large
    return first + (left_s + sum(number * (at - first) for at, number in held)) / rate
