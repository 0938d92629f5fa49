"""Plain successive halving: a rung is decided when all who entered it have reported.

Slower than the asynchronous rules, but the decisions do not depend on the order of arrival, so two
runs on different machines can be compared trial by trial.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from parsl_rasda.scheduling.base import Decision
from parsl_rasda.scheduling.rung_scheduler import Contender, ExtensibleScheduler
from parsl_rasda.scheduling.rungs import Rungs
from parsl_rasda.types import Mode, TrialId


@dataclass(slots=True, eq=False)
class _Cohort:
    """Trials that compete with each other.

    Attributes:
        rung: The rung that is being waited for.
        entrants: How many take part there; final once `is_full`.
        present: Those that have reported there or never will, by age.
    """

    rung: int = 0
    entrants: int = 0
    is_full: bool = False
    present: dict[int, Contender] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        """Whether nobody is missing at the rung."""
        return self.is_full and 0 < self.entrants == len(self.present)


class SynchronousScheduler(ExtensibleScheduler):
    """Let the best ``max(1, entrants // eta)`` of a whole rung go on, stop the others.

    Trials that failed or diverged count as entrants that rank last. The first ``num_samples`` trials
    form a cohort, or those added before `close`; trials that come later (a larger budget on resume)
    form the next cohort, so that what was decided stays decided. A report beyond a milestone counts
    there, and at the following ones once the trial is let on to them.

    Source:
        Successive halving, Jamieson and Talwalkar 2016 (arXiv:1502.07943).
    """

    def __init__(
        self, rungs: Rungs, mode: Mode = Mode.MIN, metric: str = "metric", num_samples: int | None = None
    ) -> None:
        super().__init__(rungs, mode, metric)
        self._num_samples = num_samples
        self._filling = _Cohort()
        self._cohorts: dict[TrialId, _Cohort] = {}
        self._going: dict[TrialId, str] = {}  # why each of them goes on
        self._stopping: dict[TrialId, str] = {}  # why each of them stops

    def close(self) -> None:
        """Say that no further trial will be added; this may complete a rung."""
        if self._filling.entrants:
            self._fill_up()

    def resume_next(self) -> Decision | None:
        """Let the next survivor go on: rungs in the order in which they were decided, best first."""
        for trial in self._going:
            return self._advance(self._contenders[trial], self._going.pop(trial))
        return None

    def dismiss(self) -> tuple[Decision, ...]:
        """Return a `STOP` for each trial that lost at a decided rung."""
        stops = tuple(self._stop(self._contenders[t], reason) for t, reason in self._stopping.items())
        self._stopping.clear()
        return stops

    def _add_rungs(self) -> None:
        """A cohort knows the rung that it waits for, and no other."""

    def _judge_again(self, completed: Sequence[Contender]) -> tuple[Decision, ...]:
        for contender in completed:
            self._pause(contender, f"waits for the others at epoch {self.milestones[contender.rung]}")
        for cohort in dict.fromkeys(self._cohorts[contender.trial] for contender in completed):
            self._settle(cohort)
        return tuple(self._answer(contender) for contender in completed)

    def _judge(self, contender: Contender, reached: int, metric: float) -> Decision:
        if not math.isfinite(metric):
            self._stop(contender, self._not_finite(metric))
        elif reached == self._last:
            self._complete(contender)
        else:
            self._pause(contender, f"waits for the others at epoch {self.milestones[contender.rung]}")
        self._arrive(contender)
        return self._answer(contender)

    def _answer(self, contender: Contender) -> Decision:
        """Return what was decided about a contender that is at a rung, or that it waits."""
        trial = contender.trial
        if trial in self._going:
            return self._advance(contender, self._going.pop(trial))
        if trial in self._stopping:
            return self._stop(contender, self._stopping.pop(trial))
        return contender.last

    def _admit(self, contender: Contender) -> None:
        self._cohorts[contender.trial] = self._filling
        self._filling.entrants += 1
        if self._filling.entrants == self._num_samples:
            self._fill_up()

    def _take_out(self, contender: Contender) -> None:
        if self._going.pop(contender.trial, None) is None:  # it lost here, or others are still missing
            cohort = self._cohorts[contender.trial]
            is_decided = self._stopping.pop(contender.trial, None) is not None or contender.has_ended
            if is_decided:
                cohort.entrants += 1

    def _withdraw(self, contender: Contender) -> None:
        contender.cost = math.inf
        if self._stopping.pop(contender.trial, None) is None:
            self._going.pop(contender.trial, None)
            self._arrive(contender)

    def _come_back(self, contender: Contender) -> None:
        """Let it take its place in its cohort again, unless a rung there has been decided without it."""
        cohort = self._cohorts[contender.trial]
        if cohort.rung == 0 and not cohort.is_complete:
            cohort.present.pop(contender.age, None)
        else:
            self._admit(contender)

    def _fill_up(self) -> None:
        cohort, self._filling = self._filling, _Cohort()
        cohort.is_full = True
        self._settle(cohort)

    def _arrive(self, contender: Contender) -> None:
        cohort = self._cohorts[contender.trial]
        cohort.present[contender.age] = contender
        self._settle(cohort)

    def _settle(self, cohort: _Cohort) -> None:
        """Decide the cohort's rung if nobody is missing, and the next ones if all were early there."""
        while cohort.is_complete and cohort.rung < self._last:
            ranked = self._rank(cohort.present.values())
            entrants, quota = len(ranked), max(1, len(ranked) // self.rungs.reduction_factor)
            goes_on = [
                (rank <= quota and math.isfinite(one.cost)) or (one.rung > cohort.rung and not one.has_ended)
                for rank, one in enumerate(ranked, 1)  # some were promoted before all were here
            ]
            cohort.rung, cohort.entrants, cohort.present = cohort.rung + 1, sum(goes_on), {}
            for rank, contender in enumerate(ranked, 1):
                reason = f"rank {rank} of {entrants}, best {quota} go on"
                if goes_on[rank - 1]:
                    self._let_past(contender, cohort, reason)
                elif not contender.has_ended:
                    self._stopping[contender.trial] = reason

    def _rank(self, present: Iterable[Contender]) -> list[Contender]:
        return sorted(present, key=lambda contender: contender.key)

    def _let_past(self, contender: Contender, cohort: _Cohort, reason: str) -> None:
        if contender.epoch < self.milestones[cohort.rung]:
            if contender.rung < cohort.rung:
                self._going[contender.trial] = reason
            return
        contender.rung = max(contender.rung, cohort.rung)
        cohort.present[contender.age] = contender
