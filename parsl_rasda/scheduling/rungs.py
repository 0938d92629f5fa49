"""The ladder of rungs: at which epochs trials are judged, and with how many replicas they train.

Arithmetic on integers only: a floating-point logarithm loses a rung for a reduction factor of 3
and 243 epochs, or of 9 or 10.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from parsl_rasda.scheduling.early import EarlyRule, build_early
from parsl_rasda.study.epochs import UpTo
from parsl_rasda.study.scheduler import SchedulerSpec


@dataclass(frozen=True, slots=True)
class Rungs:
    """Milestones and replicas of a study.

    Attributes:
        milestones: Epochs at which trials are judged, ascending; the last one is `max_t`.
        reduction_factor: Of that many trials on a rung, one goes on (eta).
        num_workers: Workers on the first stretch.
        scaling_factor: Workers multiply by this at every rung; 1 keeps them (ASHA).
        max_workers: Upper bound of the workers, or None.
        min_compared: Results that a rung needs before anyone is judged there.
        is_auto: Rungs above the second are used only if they must be; see `ladder.Ladder`.
        early: What stops trials between rungs, or None.
    """

    milestones: tuple[int, ...]
    reduction_factor: int
    num_workers: int
    scaling_factor: int
    max_workers: int | None
    min_compared: int = 1
    is_auto: bool = False
    early: EarlyRule | None = None

    @property
    def last(self) -> int:
        """Index of the rung at `max_t`, where trials end."""
        return len(self.milestones) - 1

    def replicas(self, rung: int) -> int:
        """Return the workers on the stretch that ends at ``milestones[rung]``; see `base.Scheduler`."""
        wanted: int = self.num_workers * self.scaling_factor**rung
        return wanted if self.max_workers is None else min(self.max_workers, wanted)

    def reached(self, epoch: int) -> int:
        """Return the highest rung whose milestone ``epoch`` has reached, or -1 before the first."""
        return bisect_right(self.milestones, epoch) - 1


def build_rungs(spec: SchedulerSpec) -> Rungs:
    """Return the ladder ``grace_period * reduction_factor**k`` below ``max_t``, then ``max_t``.

    Source:
        Li et al. 2020 (arXiv:1810.05934), section 3.1; replicas as in Aach et al. 2026 (RASDA),
        doi 10.1016/j.future.2025.108042.
    """
    return Rungs(
        spec.milestones,
        spec.reduction_factor,
        spec.num_workers,
        spec.scaling_factor,
        spec.max_workers,
        spec.min_compared,
        isinstance(spec.max_t, UpTo),
        build_early(spec.early),
    )
