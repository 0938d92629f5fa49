"""The promotion rule: a trial pauses at its rung until it is among the best there.

Never stops a trial early that could still go on, at the price of keeping paused checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from sortedcontainers import SortedList

from parsl_rasda.scheduling.base import Decision
from parsl_rasda.scheduling.rung_scheduler import Contender, ExtensibleScheduler
from parsl_rasda.scheduling.rungs import Rungs
from parsl_rasda.types import Mode


@dataclass(slots=True)
class _Rung:
    """Results at one milestone, as (cost, age), and the trials behind them.

    Attributes:
        results: Everyone who was recorded here.
        paused: Those of them who wait here.
        trials: The paused themselves, by age.
        heading: How many are training towards this milestone.
    """

    results: SortedList = field(default_factory=SortedList)
    paused: SortedList = field(default_factory=SortedList)
    trials: dict[int, Contender] = field(default_factory=dict)
    heading: int = 0

    def within(self, quota: int) -> int:
        """Return how many of the paused are among the best ``quota`` of this rung."""
        if quota <= 0 or not self.paused:
            return 0
        if quota >= len(self.results):
            return len(self.paused)
        return int(self.paused.bisect_right(self.results[quota - 1]))

    def wait(self, contender: Contender) -> None:
        self.paused.add(contender.key)
        self.trials[contender.age] = contender

    def release(self, key: tuple[float, int]) -> Contender:
        self.paused.remove(key)
        return self.trials.pop(key[1])


class PromotionScheduler(ExtensibleScheduler):
    """Let a trial go on once it is among the best ``n // eta`` of the ``n`` results of its rung.

    A reporting trial that is among them goes on at once; else it pauses, and `resume_next` looks
    for a promotable trial from the top rung down.

    Before `min_compared` results are there nobody goes on, unless no more can come; nor from the top rung of
    a ladder that may grow (`ladder.Ladder`): they are done if nobody comes any more who could make it.

    Source:
        Li et al. 2020 (arXiv:1810.05934), Algorithm 2.
    """

    def __init__(self, rungs: Rungs, mode: Mode = Mode.MIN, metric: str = "metric") -> None:
        super().__init__(rungs, mode, metric)
        self._rungs = tuple(_Rung() for _ in rungs.milestones)
        self._closed = False

    def close(self) -> None:
        """Say that no further trial will be added; from now on trials can be dismissed."""
        self._closed = True

    def resume_next(self) -> Decision | None:
        """Return the next stretch of the best promotable trial of the highest rung that has one."""
        for rung in reversed(self._rungs):
            if rung.within(self._quota(rung)):
                contender = rung.release(rung.paused[0])
                return self._promote(contender, rung)
        return None

    def dismiss(self) -> tuple[Decision, ...]:
        """Return a `STOP` for each paused trial that no further result can bring into the best.

        From the bottom up: a rung can see at most the trials heading to it and those that may
        still come from below. Whoever misses the quota even then will never go on.
        """
        if not self._closed:
            return ()
        stops = []
        coming = 0
        for rung in self._rungs:
            arrivals = coming + rung.heading
            if self._holds(rung):
                if not arrivals:
                    stops += [self._finish(rung.release(key)) for key in tuple(rung.paused)]
                break
            most = len(rung.results) + arrivals
            quota = most // self.rungs.reduction_factor
            chances = rung.within(quota)
            for key in tuple(rung.paused[chances:]):
                rank = rung.results.index(key) + 1
                reason = f"rank {rank} of {most} at most, best {quota} go on"
                stops.append(self._stop(rung.release(key), reason))
            coming = chances + arrivals
        return tuple(stops)

    def _add_rungs(self) -> None:
        self._rungs += tuple(_Rung() for _ in range(len(self.milestones) - len(self._rungs)))

    def _judge_again(self, completed: Sequence[Contender]) -> tuple[Decision, ...]:
        for contender in completed:
            self._rungs[contender.rung].heading += 1
        return super()._judge_again(completed)

    def _judge(self, contender: Contender, reached: int, metric: float) -> Decision:
        self._rungs[contender.rung].heading -= 1
        reached = contender.rung = min(reached, self._ladder.top)
        rung = self._rungs[reached]
        if not math.isfinite(metric):
            self._record(contender, rung)
            return self._stop(contender, self._not_finite(metric))
        if reached == self._last:
            return self._complete(contender)
        self._record(contender, rung)
        if self._ladder.holds(reached):
            self._ladder.arrive(contender.age, contender.curve)
        quota = self._quota(rung)
        if quota and contender.key <= rung.results[quota - 1]:
            return self._promote(contender, rung)
        rung.wait(contender)
        return self._pause(contender, self._standing(contender, rung))

    def _record(self, contender: Contender, rung: _Rung) -> None:
        """Add a contender to the results of a rung."""
        rung.results.add(contender.key)

    def _promote(self, contender: Contender, rung: _Rung) -> Decision:
        self._rungs[contender.rung + 1].heading += 1
        return self._advance(contender, self._standing(contender, rung))

    def _standing(self, contender: Contender, rung: _Rung) -> str:
        """Return the reason of a decision about a contender on ``rung``."""
        rank = rung.results.index(contender.key) + 1
        return f"rank {rank} of {len(rung.results)}, best {self._quota(rung)} go on"

    def _quota(self, rung: _Rung) -> int:
        if self._holds(rung):
            return 0
        if len(rung.results) < self.rungs.min_compared and self._may_see_more(rung):
            return 0
        return len(rung.results) // self.rungs.reduction_factor

    def _holds(self, rung: _Rung) -> bool:
        top = self._ladder.top
        return rung is self._rungs[top] and self._ladder.holds(top)

    def _may_see_more(self, rung: _Rung) -> bool:
        """Whether somebody may still come to a rung."""
        for below in self._rungs:
            if below.heading or not self._closed:
                return True
            if below is rung:
                return False
            if below.within(len(below.results) // self.rungs.reduction_factor):
                return True  # the best who pause there are about to go on
        return False

    def _admit(self, contender: Contender) -> None:
        self._rungs[0].heading += 1

    def _take_out(self, contender: Contender) -> None:
        rung = self._rungs[contender.rung]
        if contender.age in rung.trials:
            rung.release(contender.key)
        self._rungs[contender.rung + 1].heading += 1

    def _withdraw(self, contender: Contender) -> None:
        rung = self._rungs[contender.rung]
        if contender.age in rung.trials:
            rung.release(contender.key)
        else:
            rung.heading -= 1
