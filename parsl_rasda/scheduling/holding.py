"""The stopping rule on rungs that hold trials, paused: first comers, or all at the top of a ladder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from parsl_rasda.scheduling.base import Action, Decision
from parsl_rasda.scheduling.rung_scheduler import Contender
from parsl_rasda.scheduling.rungs import Rungs
from parsl_rasda.scheduling.stopping import StoppingScheduler
from parsl_rasda.types import Mode, TrialId


@dataclass(slots=True)
class _Room:
    """Where the first comers of a rung wait.

    Attributes:
        heading: How many are training towards this rung, or are about to.
        is_open: Its first comers were judged: who comes now is judged at once.
        held: Those who wait, by age.
    """

    heading: int = 0
    is_open: bool = False
    held: dict[int, Contender] = field(default_factory=dict)


class HoldingStoppingScheduler(StoppingScheduler):
    """Let the first comers of a rung wait until `min_compared` results are there, then judge them together.

    Of the ``n`` results that are there by then the best ``max(1, n // eta)`` go on, as at a synchronous rung;
    later trials are judged by the stopping rule. If nobody can come any more, those who wait are judged among
    themselves. Those at the top rung of a ladder that may grow wait for it to do so, and are done if nobody
    comes any more who could make it; see `ladder.Ladder`.

    Source:
        Successive halving (Jamieson and Talwalkar 2016, arXiv:1502.07943) of the first comers. Optuna's
        `MedianPruner` (``n_min_trials``) lets them pass and its `SuccessiveHalvingPruner`
        (``bootstrap_count``) ends them, since neither can pause a trial.
    """

    def __init__(self, rungs: Rungs, mode: Mode = Mode.MIN, metric: str = "metric") -> None:
        super().__init__(rungs, mode, metric)
        self._rooms = tuple(_Room() for _ in rungs.milestones)
        self._going: dict[TrialId, str] = {}  # why each of them goes on
        self._stopping: dict[TrialId, str] = {}  # why each of them stops; empty: it is done
        self._closed = False

    def close(self) -> None:
        """Say that no further trial will be added: those who wait may be the last of their rung."""
        self._closed = True
        self._open_rungs()

    def resume_next(self) -> Decision | None:
        """Let the next of those who waited go on, best first."""
        for trial in self._going:
            return self._advance(self._contenders[trial], self._going.pop(trial))
        return None

    def dismiss(self) -> tuple[Decision, ...]:
        """Return a `STOP` for each of those who waited and were not among the best."""
        return tuple(self._answer(self._contenders[trial]) for trial in tuple(self._stopping))

    def _judge(self, contender: Contender, reached: int, metric: float) -> Decision:
        self._rooms[contender.rung].heading -= 1
        reached = min(reached, self._ladder.top)
        room = self._rooms[reached]
        if room.is_open or reached == self._last or not math.isfinite(metric):
            if super()._judge(contender, reached, metric).action is Action.CONTINUE:
                self._rooms[contender.rung].heading += 1
        else:
            contender.rung = reached
            self._costs[reached].add(contender.cost)
            room.held[contender.age] = contender
            if self._ladder.holds(reached):
                self._ladder.arrive(contender.age, contender.curve)
            self._pause(contender, f"waits for others to be compared with at epoch {contender.epoch}")
        self._open_rungs()
        return self._answer(contender)

    def _answer(self, contender: Contender) -> Decision:
        """Return what was decided about a contender who is at a rung, or that it waits."""
        trial = contender.trial
        if trial in self._going:
            return self._advance(contender, self._going.pop(trial))
        if trial in self._stopping:
            reason = self._stopping.pop(trial)
            return self._stop(contender, reason) if reason else self._finish(contender)
        return contender.last

    def _open_rungs(self) -> None:
        """Judge those who wait where there are enough, or nobody can come any more."""
        coming = 0
        for rung, room in enumerate(self._rooms):
            coming += room.heading
            is_last_word = self._closed and not coming
            if self._ladder.holds(rung):
                if is_last_word:
                    self._stopping |= {contender.trial: "" for contender in room.held.values()}
                    room.held.clear()
                return
            enough = self._costs[rung].count >= self.rungs.min_compared
            if room.held and (enough or is_last_word):
                self._open(rung, room)
            coming += len(room.held)

    def _open(self, rung: int, room: _Room) -> None:
        ranked = sorted(room.held.values(), key=lambda contender: contender.key)
        results = self._costs[rung].count
        quota = max(1, results // self.rungs.reduction_factor)
        for rank, contender in enumerate(ranked, 1):
            decided = self._going if rank <= quota else self._stopping
            decided[contender.trial] = f"rank {rank} of {results}, best {quota} go on"
        self._rooms[rung + 1].heading += min(quota, len(ranked))
        room.is_open, room.held = True, {}

    def _add_rungs(self) -> None:
        super()._add_rungs()
        self._rooms += tuple(_Room() for _ in range(len(self.milestones) - len(self._rooms)))

    def _judge_again(self, completed: Sequence[Contender]) -> tuple[Decision, ...]:
        for contender in completed:
            self._rooms[contender.rung].heading += 1
        super()._judge_again(completed)
        return tuple(self._answer(contender) for contender in completed)

    def _admit(self, contender: Contender) -> None:
        self._closed = False  # a larger budget: `close` will be said again
        self._come_back(contender)

    def _come_back(self, contender: Contender) -> None:
        self._rooms[0].heading += 1

    def _take_out(self, contender: Contender) -> None:
        if self._going.pop(contender.trial, None) is None:
            self._stopping.pop(contender.trial, None)
            self._rooms[contender.rung].held.pop(contender.age, None)
            self._rooms[contender.rung + 1].heading += 1

    def _withdraw(self, contender: Contender) -> None:
        room = self._rooms[contender.rung]
        if self._going.pop(contender.trial, None) is not None:
            self._rooms[contender.rung + 1].heading -= 1
        elif self._stopping.pop(contender.trial, None) is None and room.held.pop(contender.age, None) is None:
            room.heading -= 1
        self._open_rungs()
