"""The port of a searcher: which configuration comes next.

The executable definition is `parsl_rasda.testing.SearcherContract`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from parsl_rasda.types import JSON, TrialId


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
