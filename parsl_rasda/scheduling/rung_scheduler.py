"""What every variant of successive halving keeps of its trials, apart from the rule itself.

`RungScheduler` admits trials, watches them between rungs, ends them, and answers for those that
have ended. What happens *at* a rung is the one method that a variant adds.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from sortedcontainers import SortedList

from parsl_rasda.scheduling.base import Action, Decision
from parsl_rasda.scheduling.ladder import Ladder
from parsl_rasda.scheduling.rungs import Rungs
from parsl_rasda.types import Mode, TrialId


@dataclass(slots=True, eq=False)
class Contender:
    """One trial as the scheduler sees it.

    Attributes:
        age: Order of admission; the older trial wins a tie.
        rung: Rung that its present (or last) stretch ends at.
        epoch: Epochs done at its last report.
        cost: Its last metric, the sign turned so that lower is better; infinite if not finite.
        curve: Its cost at each epoch, where a rule asks for that.
        last: The latest decision about it.
    """

    trial: TrialId
    age: int
    rung: int = 0
    epoch: int = 0
    cost: float = math.inf
    curve: dict[int, float] = field(default_factory=dict)
    last: Decision = field(init=False)

    @property
    def key(self) -> tuple[float, int]:
        """Rank among others: the better metric first, the older trial on a tie."""
        return (self.cost, self.age)

    @property
    def has_ended(self) -> bool:
        """Whether it was stopped, for whatever reason."""
        return self.last.action is Action.STOP


def part(eta: int) -> str:
    """Return one in so many, in words."""
    return {2: "half", 3: "third", 4: "quarter"}.get(eta, f"1/{eta}")


class RungScheduler(ABC):
    """Successive halving without its rule; see `base.Scheduler` for what the methods promise."""

    def __init__(self, rungs: Rungs, mode: Mode = Mode.MIN, metric: str = "metric") -> None:
        self._sign = 1.0 if mode is Mode.MIN else -1.0
        self._metric = metric
        self._contenders: dict[TrialId, Contender] = {}
        self._completed: list[Contender] = []  # in that order
        self._ladder = Ladder(rungs)
        self._keeps_curves = rungs.is_auto or rungs.early is not None
        self._marks: dict[int, SortedList] = defaultdict(SortedList)  # costs by rung, for `rungs.early`
        self._climb(rungs)

    def _climb(self, rungs: Rungs) -> None:
        self.rungs, self._last = rungs, rungs.last
        self._replicas = tuple(rungs.replicas(rung) for rung in range(len(rungs.milestones)))
        self._ahead = tuple(f"next judged at epoch {epoch}" for epoch in rungs.milestones)

    @property
    def milestones(self) -> tuple[int, ...]:
        """Epochs at which trials are judged, ascending; the last one is `max_t`."""
        return self.rungs.milestones

    def replicas(self, rung: int) -> int:
        """Return the replicas on the stretch that ends at ``milestones[rung]``."""
        return self.rungs.replicas(rung)

    def add(self, trial: TrialId) -> Decision:
        """Admit a trial; a known one gets its latest decision again."""
        return self._known(trial).last

    def report(self, trial: TrialId, epoch: int, metric: float) -> Decision:
        """Return what becomes of the trial; a paused or ended one gets its decision again."""
        contender = self._contenders.get(trial) or self._known(trial)
        if contender.last.action is not Action.CONTINUE:
            return contender.last
        contender.epoch = epoch
        finite = math.isfinite(metric)
        contender.cost = self._sign * metric if finite else math.inf
        if self._keeps_curves:
            contender.curve[epoch] = contender.cost
        if epoch >= self.rungs.milestones[contender.rung]:
            reached = self.rungs.reached(epoch)
            if finite and self.rungs.early is not None:
                self._marks[reached].add(contender.cost)
            return self._judge(contender, reached, metric)
        reason = self._no_chance(contender) if finite else self._not_finite(metric)
        if not reason:
            return self._go_on(contender)
        decision = self._stop(contender, reason)
        self._withdraw(contender)
        return decision

    def remove(self, trial: TrialId) -> None:
        """Take out a trial that failed; one that has ended stays as it is."""
        contender = self._known(trial)
        if not contender.has_ended:
            self._stop(contender, "the trial failed")
            self._withdraw(contender)

    def promote(self, trial: TrialId) -> Decision:
        """Let a trial that paused or stopped at a rung go on to the next one: another version decided so."""
        contender = self._contenders[trial]
        if contender.last.action is not Action.CONTINUE:
            self._take_out(contender)
            self._advance(contender, f"goes on from epoch {contender.epoch}, as was decided before")
        return contender.last

    def readmit(self, trial: TrialId) -> Decision:
        """Admit a removed trial as new, at its old age."""
        contender = Contender(trial, self._contenders[trial].age)
        self._contenders[trial] = contender
        self._go_on(contender)
        self._come_back(contender)
        return contender.last

    def close(self) -> None:  # noqa: B027 - most variants wait for nobody
        """Say that no further trial will be added."""

    def resume_next(self) -> Decision | None:
        """Return None: without pauses nothing resumes."""
        return None

    def dismiss(self) -> tuple[Decision, ...]:
        """Return nothing: without pauses nobody waits."""
        return ()

    @abstractmethod
    def _judge(self, contender: Contender, reached: int, metric: float) -> Decision:
        """Apply the rule to a contender whose report has reached rung ``reached`` or above."""

    def _withdraw(self, contender: Contender) -> None:  # noqa: B027 - only some rules count the absent
        """Learn that a contender was stopped, unjudged, while it ran or was paused."""

    def _take_out(self, contender: Contender) -> None:  # noqa: B027 - only some rules keep those who wait
        """Learn that a contender who paused or stopped at a rung goes on all the same."""

    def _admit(self, contender: Contender) -> None:  # noqa: B027 - only some rules count the present
        """Learn of a new contender."""

    def _come_back(self, contender: Contender) -> None:
        """Learn that a contender who was withdrawn competes again."""
        self._admit(contender)

    def _known(self, trial: TrialId) -> Contender:
        contender = self._contenders.get(trial)
        if contender is None:
            contender = Contender(trial, age=len(self._contenders))
            self._contenders[trial] = contender
            self._go_on(contender)
            self._admit(contender)
        return contender

    def _go_on(self, contender: Contender) -> Decision:
        return self._let_on(contender, self._ahead[contender.rung])

    def _advance(self, contender: Contender, reason: str) -> Decision:
        contender.rung += 1
        return self._let_on(contender, reason)

    def _pause(self, contender: Contender, reason: str) -> Decision:
        return self._end(contender, Action.PAUSE, reason)

    def _stop(self, contender: Contender, reason: str) -> Decision:
        return self._end(contender, Action.STOP, reason)

    def _complete(self, contender: Contender) -> Decision:
        contender.rung = self._last
        self._completed.append(contender)
        return self._end(contender, Action.STOP, f"reached max_t {self.milestones[-1]}", completed=True)

    def _finish(self, contender: Contender) -> Decision:
        """End a contender at the top rung of a ladder that need not grow."""
        return self._end(contender, Action.STOP, self._ladder.reason, completed=True)

    def _let_on(self, contender: Contender, reason: str) -> Decision:
        rung = contender.rung
        until, replicas = self.rungs.milestones[rung], self._replicas[rung]
        decision = Decision(contender.trial, Action.CONTINUE, until, replicas, rung, False, reason)
        contender.last = decision
        return decision

    def _end(self, contender: Contender, action: Action, reason: str, *, completed: bool = False) -> Decision:
        rung = contender.rung
        contender.last = Decision(
            contender.trial, action, contender.epoch, self._replicas[rung], rung, completed, reason
        )
        return contender.last

    def _no_chance(self, contender: Contender) -> str:
        """Return why a contender between rungs cannot be among the best at the next one; empty if it may."""
        rung, rule = contender.rung, self.rungs.early
        if rule is None or self._ladder.holds(rung):
            return ""
        is_last, marks = rung == self._last, self._marks[rung]
        if len(marks) < (1 if is_last else max(self.rungs.reduction_factor, self.rungs.min_compared)):
            return ""
        limit = marks[0 if is_last else len(marks) // self.rungs.reduction_factor - 1]
        until = self.milestones[rung]
        found = rule.best_case(contender.curve, until)
        if not found > limit:  # or it is no number
            return ""
        best = "the best" if is_last else f"the best {part(self.rungs.reduction_factor)}"
        return (
            f"{self._metric} may come to {self._sign * found:.6g} at epoch {until}, where {best} of "
            f"{len(marks)} results is {'' if is_last else 'up to '}{self._sign * limit:.6g}"
        )

    def _not_finite(self, metric: float) -> str:
        return f"{self._metric} {metric} is not finite"

    def _text(self, cost: float) -> str:
        return f"{self._metric} {self._sign * cost:.6g}"


class ExtensibleScheduler(RungScheduler):
    """One whose ladder may become longer while trials are on it; see `base.Extensible`."""

    def extend(self, milestones: tuple[int, ...], max_workers: int | None) -> tuple[Decision, ...]:
        """Go on with more rungs above the last one, or with more workers.

        Trials that had completed are judged at what is now a rung like any other, in the order in which they
        came there; returns what becomes of each.
        """
        self._climb(replace(self.rungs, milestones=milestones, max_workers=max_workers))
        self._ladder.extend(self.rungs)
        self._add_rungs()
        if self._completed and self._completed[0].rung == self._last:
            return ()
        completed, self._completed = self._completed, []
        return self._judge_again(completed)

    @abstractmethod
    def _add_rungs(self) -> None:
        """Learn that there are more rungs."""

    def _judge_again(self, completed: Sequence[Contender]) -> tuple[Decision, ...]:
        """Judge contenders at the rung where they had completed, which is no longer the last."""
        return tuple(self._judge(one, one.rung, self._sign * one.cost) for one in completed)
