"""The ladder of rungs: at which epochs trials are judged, and with how many replicas they train.

Arithmetic on integers only: a floating-point logarithm loses a rung for a reduction factor of 3
and 243 epochs, or of 9 or 10.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from parsl_rasda.errors import InvalidSettingError


@dataclass(frozen=True, slots=True)
class Rungs:
    """Milestones and replicas of a study.

    Attributes:
        milestones: Epochs at which trials are judged, ascending; the last one is `max_t`.
        reduction_factor: Of that many trials on a rung, one goes on (eta).
        num_workers: Replicas on the first stretch.
        scaling_factor: Replicas multiply by this at every rung; 1 keeps them (ASHA).
        max_workers: Upper bound of the replicas, or None.
    """

    milestones: tuple[int, ...]
    reduction_factor: int
    num_workers: int = 1
    scaling_factor: int = 1
    max_workers: int | None = None

    @property
    def last(self) -> int:
        """Index of the rung at `max_t`, where trials end."""
        return len(self.milestones) - 1

    def replicas(self, rung: int) -> int:
        """Return the replicas on the stretch that ends at ``milestones[rung]``."""
        wanted: int = self.num_workers * self.scaling_factor**rung
        return wanted if self.max_workers is None else min(self.max_workers, wanted)

    def reached(self, epoch: int) -> int:
        """Return the highest rung whose milestone ``epoch`` has reached, or -1 before the first."""
        return bisect_right(self.milestones, epoch) - 1


def build_rungs(
    *,
    grace_period: int,
    max_t: int,
    reduction_factor: int,
    num_workers: int = 1,
    scaling_factor: int = 1,
    max_workers: int | None = None,
) -> Rungs:
    """Return the ladder ``grace_period * reduction_factor**k`` below ``max_t``, then ``max_t``.

    Raises:
        InvalidSettingError: If a number is out of range; it names the key.

    Source:
        Li et al. 2020 (arXiv:1810.05934), section 3.1; replicas as in Aach et al. 2026 (RASDA),
        doi 10.1016/j.future.2025.108042.
    """
    _require_at_least("grace_period", grace_period, 1)
    _require_at_least("max_t", max_t, grace_period, "`grace_period`")
    _require_at_least("reduction_factor", reduction_factor, 2)
    _require_at_least("num_workers", num_workers, 1)
    _require_at_least("scaling_factor", scaling_factor, 1)
    if max_workers is not None:
        _require_at_least("max_workers", max_workers, num_workers, "`num_workers`")
    milestones = []
    milestone = grace_period
    while milestone < max_t:
        milestones.append(milestone)
        milestone *= reduction_factor
    return Rungs((*milestones, max_t), reduction_factor, num_workers, scaling_factor, max_workers)


def _require_at_least(key: str, found: object, least: int, meaning: str = "") -> None:
    # True is an int in Python, but never a number that somebody meant.
    if not isinstance(found, int) or isinstance(found, bool) or found < least:
        named = f" ({meaning})" if meaning else ""
        raise InvalidSettingError(f"scheduler.{key}", found, f"an integer of at least {least}{named}")
