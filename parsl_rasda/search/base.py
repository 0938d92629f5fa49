"""The port of a searcher: which configuration comes next.

The executable definition is `parsl_rasda.testing.SearcherContract`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

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
    """

    space: SearchSpace
    mode: Mode
    seed: int
    num_samples: int | None = None


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
