"""The port of a searcher: which configuration comes next.

The executable definition is `parsl_rasda.testing.SearcherContract`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from parsl_rasda.search.space import SearchSpace
from parsl_rasda.types import JSON, Mode, TrialId


@dataclass(frozen=True, slots=True)
class SearcherSettings:
    """What a searcher gets beside its options.

    Attributes:
        space: What may be searched.
        mode: Whether a smaller or a larger metric is better.
        seed: Of everything that is drawn.
        num_samples: How many configurations the study tries, if that is known.
        other_modes: Of further metrics, if trials are judged by several.
        limits: How many constraints trials must keep.
    """

    space: SearchSpace
    mode: Mode
    seed: int
    num_samples: int | None = None
    other_modes: tuple[Mode, ...] = ()
    limits: int = 0


class Searcher(Protocol):
    """Proposes configurations; learns from what trials report."""

    def propose(self, trial: TrialId) -> Mapping[str, JSON] | None:
        """Return the configuration of a new trial, or None when the space is exhausted."""
        ...

    def restore(self, trial: TrialId, config: Mapping[str, JSON]) -> None:
        """Learn of a configuration proposed before a restart, as if `propose` had returned it."""
        ...

    def observe(self, trial: TrialId, epoch: int, metric: float) -> None:
        """Learn an intermediate result."""
        ...

    def conclude(self, trial: TrialId, metric: float | None) -> None:
        """Learn a trial's last metric, or None when it failed."""
        ...


@runtime_checkable
class Multiobjective(Protocol):
    """A searcher that learns from several metrics, or from constraints."""

    def conclude_all(self, trial: TrialId, values: Sequence[float], violations: Sequence[float]) -> None:
        """Learn a trial's last metrics, and by how much it breaks each limit; more than 0 is too much."""
        ...
