"""Slots held and lent while somebody thinks; afterwards the ledger is as it was."""

from __future__ import annotations

from itertools import islice
from typing import Self

from parsl_rasda.placement.cluster_state import ClusterState, LeavingJob
from parsl_rasda.types import Placement, TrialId

_MOST_LEAVING = 64  # jobs about to leave that are looked at: a rung of thousands must not cost thousands each


class WhatIf:
    """A context in which slots are held and lent; all of it is taken back at the end of the block."""

    def __init__(self, cluster: ClusterState) -> None:
        """Think about a cluster."""
        self._cluster = cluster
        self._undo: list[tuple[bool, Placement]] = []
        self._later: Placement | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        ledger = self._cluster.ledger
        for taken, placement in reversed(self._undo):
            (ledger.release if taken else ledger.take)(placement)

    def hold(self, placement: Placement) -> None:
        """Hold free slots."""
        self._cluster.ledger.take(placement)
        self._undo.append((True, placement))

    def lend(self, placement: Placement) -> None:
        """Let slots that are held count as free."""
        self._cluster.ledger.release(placement)
        self._undo.append((False, placement))

    def swap(self, old: Placement, new: Placement) -> None:
        """Hold other slots instead of some that are held."""
        self.lend(old)
        self.hold(new)

    def hold_later(self, placement: Placement) -> None:
        """Hold slots before anything else is looked for: most often nothing is. None are held later yet."""
        self._later = placement

    def settle(self) -> None:
        """Hold what was to be held later."""
        if self._later is not None:
            later, self._later = self._later, None
            self.hold(later)

    def lend_leaving(self, now: float) -> dict[TrialId, LeavingJob]:
        """Let slots of jobs count as free that are about to leave for good; return these, a few at most."""
        self.settle()
        ledger = self._cluster.ledger
        found = (
            (trial, job)
            for trial, job in self._cluster.soon_free(now)
            if not job.returns and ledger.may_free(job.placement)
        )
        leaving = dict(islice(found, _MOST_LEAVING))
        for job in leaving.values():
            self.lend(job.placement)
        return leaving
