"""Hyperband, only to compare with: brackets of successive halving, each first judged at a later rung."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from parsl_rasda.scheduling import Rungs, Scheduler
from parsl_rasda.scheduling.base import Decision
from parsl_rasda.scheduling.brackets import bracket_shares
from parsl_rasda.scheduling.rungs import build_rungs
from parsl_rasda.scheduling.synchronous import SynchronousScheduler
from parsl_rasda.study import SchedulerSpec
from parsl_rasda.types import Mode, TrialId


def bracket_sizes(rungs: int, reduction_factor: int, num_samples: int) -> list[int]:
    """Return how many trials each bracket has; bracket ``k`` is first judged at rung ``k``.

    Hyperband's own numbers, brought to `num_samples` by the largest remainders.
    """
    shares = bracket_shares(rungs, reduction_factor)
    exact = [num_samples * share / sum(shares) for share in shares]
    sizes = [int(wanted) for wanted in exact]
    by_remainder = sorted(range(rungs), key=lambda k: (sizes[k] - exact[k], k))
    for k in by_remainder[: num_samples - sum(sizes)]:
        sizes[k] += 1
    return sizes


class HyperbandScheduler(Scheduler):
    """All brackets at the same time, on the replicas of the start; trials fill one after another."""

    def __init__(self, spec: SchedulerSpec, num_samples: int) -> None:
        """Prepare the brackets for a number of trials."""
        self._rungs = replace(build_rungs(spec), scaling_factor=1)
        sizes = bracket_sizes(len(self._rungs.milestones), spec.reduction_factor, num_samples)
        self._brackets = [
            SynchronousScheduler(self._from(k), Mode.MIN, "metric", n) for k, n in enumerate(sizes)
        ]
        self._left = Counter(dict(enumerate(sizes)))
        self._bracket: dict[TrialId, int] = {}

    def _from(self, first: int) -> Rungs:
        return replace(self._rungs, milestones=self._rungs.milestones[first:])

    @property
    def milestones(self) -> tuple[int, ...]:
        """Epochs at which trials of some bracket are judged."""
        return self._rungs.milestones

    def replicas(self, rung: int) -> int:
        """Return the replicas of the start."""
        return self._rungs.replicas(rung)

    def add(self, trial: TrialId) -> Decision:
        """Admit a trial to the next bracket that has room."""
        if trial not in self._bracket:
            k = next((k for k, left in self._left.items() if left > 0), 0)
            self._left[k] -= 1
            self._bracket[trial] = k
        return self._shifted(self._of(trial).add(trial))

    def report(self, trial: TrialId, epoch: int, metric: float) -> Decision:
        """Return what becomes of a trial."""
        return self._shifted(self._of(trial).report(trial, epoch, metric))

    def remove(self, trial: TrialId) -> None:
        """Take out a trial that failed."""
        self._of(trial).remove(trial)

    def readmit(self, trial: TrialId) -> Decision:
        """Admit a trial that was removed."""
        return self._shifted(self._of(trial).readmit(trial))

    def close(self) -> None:
        """Say that no further trial will be added."""
        for bracket in self._brackets:
            bracket.close()

    def resume_next(self) -> Decision | None:
        """Return the next survivor of the first bracket that has one."""
        found = (bracket.resume_next() for bracket in self._brackets)
        return next((self._shifted(decision) for decision in found if decision is not None), None)

    def dismiss(self) -> tuple[Decision, ...]:
        """Return who lost at a decided rung."""
        return tuple(self._shifted(decision) for bracket in self._brackets for decision in bracket.dismiss())

    def _of(self, trial: TrialId) -> SynchronousScheduler:
        return self._brackets[self._bracket[trial]]

    def _shifted(self, decision: Decision) -> Decision:
        """Return a decision of a bracket with the rung that it is in all of them."""
        return decision._replace(rung=decision.rung + self._bracket[decision.trial])
