"""Brackets: several ladders at a time, each of which first judges its trials at a later rung.

All brackets share the milestones and the replicas of one ladder. A trial of bracket ``k`` passes the rungs
below ``k`` without being judged, on the replicas that the ladder gives there: it trains as a trial of any
other bracket does, and is compared with those of its own bracket only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from parsl_rasda.scheduling.agreement import RankAgreement
from parsl_rasda.scheduling.base import Action, Decision, Scheduler
from parsl_rasda.scheduling.rung_scheduler import ExtensibleScheduler
from parsl_rasda.scheduling.rungs import Rungs
from parsl_rasda.types import TrialId

_FIRST = (
    4  # trials by which `auto` begins to know the rungs; six did alike (seeds 300 to 499 of the benchmark)
)


def bracket_shares(rungs: int, reduction_factor: int) -> list[int]:
    """Return how many trials each bracket has for one of the last, which judges at `max_t` alone.

    Hyperband's own numbers, ``ceil((K + 1) / (s + 1) * eta**s)`` with ``s = K - k`` for bracket ``k``: each
    bracket trains about as many epochs as any other.

    Source: Li et al. 2018 (Hyperband, JMLR 18), Algorithm 1.
    """
    last = rungs - 1
    return [-(-rungs * reduction_factor ** (last - k) // (last - k + 1)) for k in range(rungs)]


@dataclass(slots=True)
class _Place:
    """Where a trial belongs.

    Attributes:
        bracket: Whose rule judges it.
        heading: The rung that it trains towards, up to the first one that judges it.
    """

    bracket: int
    heading: int = 0


class BracketedScheduler(Scheduler):
    """Give each new trial to a bracket, and let that decide.

    A trial goes where ``share / (trials there + 1)`` is largest, the shares being Hyperband's. With ``auto``,
    the first trials all go to the last bracket, whose results tell of every rung. Once as many can be
    compared, a trial goes where ``tau * sqrt(share)`` is largest: the rank agreement of the rung at which a
    bracket first judges, weighed against the trials that its epochs pay for. The earlier bracket wins a tie.

    Source:
        Li et al. 2018 (Hyperband, JMLR 18); after the bracket selection of Li et al. 2022 (Hyper-Tune,
        arXiv:2201.06834), section 4.1, whose precisions come from surrogate models.
    """

    def __init__(
        self,
        rungs: Rungs,
        build: Callable[[Rungs], ExtensibleScheduler],
        brackets: int,
        *,
        auto: bool = False,
    ) -> None:
        """Build the brackets.

        Args:
            rungs: The ladder.
            build: Returns the scheduler of one bracket, from its rungs.
            brackets: How many; bracket ``k`` first judges at rung ``k``.
            auto: Send later trials to the bracket that pays.
        """
        self.rungs = rungs
        self._brackets = [build(replace(rungs, milestones=rungs.milestones[k:])) for k in range(brackets)]
        self._shares = bracket_shares(len(rungs.milestones), rungs.reduction_factor)[:brackets]
        self._counts = [0] * brackets
        self._places: dict[TrialId, _Place] = {}
        self._completed: dict[TrialId, None] = {}  # in that order
        self._agreement = RankAgreement() if auto else None

    @property
    def milestones(self) -> tuple[int, ...]:
        """Epochs at which trials of some bracket are judged, ascending; the last one is `max_t`."""
        return self.rungs.milestones

    def replicas(self, rung: int) -> int:
        """Return the replicas on the stretch that ends at ``milestones[rung]``, in any bracket."""
        return self.rungs.replicas(rung)

    def add(self, trial: TrialId) -> Decision:
        """Admit a trial to the bracket whose turn it is; a known one gets its latest decision again."""
        return self._placed(self._of(trial).add(trial))

    def report(self, trial: TrialId, epoch: int, metric: float) -> Decision:
        """Return what becomes of a trial, by its bracket; at a rung below its first it goes on."""
        bracket, place = self._of(trial), self._places[trial]
        if bracket.add(trial).action is Action.CONTINUE:
            reached = self.rungs.reached(epoch)
            place.heading = max(place.heading, min(place.bracket, reached + 1))
            if self._agreement is not None and reached >= 0 and epoch == self.milestones[reached]:
                self._agreement.note(trial, reached, metric)
        return self._placed(bracket.report(trial, epoch, metric))

    def remove(self, trial: TrialId) -> None:
        """Take out a trial that failed."""
        self._of(trial).remove(trial)

    def promote(self, trial: TrialId) -> Decision:
        """Let a trial that paused or stopped at a rung go on to the next one: another version decided so."""
        return self._placed(self._of(trial).promote(trial))

    def readmit(self, trial: TrialId) -> Decision:
        """Admit a removed trial as new, to its old bracket."""
        self._places[trial].heading = 0
        if self._agreement is not None:
            self._agreement.forget(trial)
        return self._placed(self._of(trial).readmit(trial))

    def close(self) -> None:
        """Say that no further trial will be added."""
        for bracket in self._brackets:
            bracket.close()

    def resume_next(self) -> Decision | None:
        """Return the next stretch of a trial that may go on, of the first bracket that has one."""
        found = (bracket.resume_next() for bracket in self._brackets)
        return next((self._placed(decision) for decision in found if decision is not None), None)

    def dismiss(self) -> tuple[Decision, ...]:
        """Return a `STOP` for each paused trial that can never go on, bracket by bracket."""
        return tuple(self._placed(decision) for bracket in self._brackets for decision in bracket.dismiss())

    def extend(self, milestones: tuple[int, ...], max_workers: int | None) -> tuple[Decision, ...]:
        """Go on with more rungs above the last one, or with more workers; see `base.Extensible`."""
        self.rungs = replace(self.rungs, milestones=milestones, max_workers=max_workers)
        again = {
            decision.trial: decision
            for k, bracket in enumerate(self._brackets)
            for decision in bracket.extend(milestones[k:], max_workers)
        }
        judged = [trial for trial in self._completed if trial in again]
        for trial in judged:
            del self._completed[trial]
        return tuple(self._placed(again[trial]) for trial in judged)

    def bracket_of(self, trial: TrialId) -> int:
        """Return the bracket of a trial."""
        return self._places[trial].bracket

    @property
    def taus(self) -> list[float] | None:
        """The rank agreement by which `auto` chooses, by bracket; None without it, and before it is known."""
        if self._agreement is None or self._agreement.trials < _FIRST:
            return None
        return self._agreement.taus(len(self._brackets))

    @property
    def grace_periods(self) -> tuple[int, ...]:
        """Epochs after which each bracket first judges."""
        return self.milestones[: len(self._brackets)]

    def _of(self, trial: TrialId) -> ExtensibleScheduler:
        place = self._places.get(trial)
        if place is None:
            place = self._places[trial] = _Place(self._next())
            self._counts[place.bracket] += 1
        return self._brackets[place.bracket]

    def _next(self) -> int:
        """Return the bracket whose turn it is."""
        if self._agreement is not None and len(self._places) < _FIRST:
            return len(self._counts) - 1
        taus = self.taus
        if taus is None:
            worth = [share / (n + 1) for share, n in zip(self._shares, self._counts, strict=True)]
        else:
            worth = [tau * math.sqrt(share) for share, tau in zip(self._shares, taus, strict=True)]
        return worth.index(max(worth))

    def _placed(self, decision: Decision) -> Decision:
        """Return a decision of a bracket with the rung that it is on the common ladder."""
        trial, rung = decision.trial, decision.rung + self._places[decision.trial].heading
        if decision.completed:
            self._completed.setdefault(trial)
        until = self.milestones[rung] if decision.action is Action.CONTINUE else decision.until
        return decision._replace(rung=rung, until=until, replicas=self.replicas(rung))
