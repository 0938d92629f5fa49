"""When a search is over, and how: the only place that returns `FinishStudy`."""

from __future__ import annotations

from parsl_rasda.orchestration.allocator import Allocator
from parsl_rasda.orchestration.events import FinishStudy
from parsl_rasda.orchestration.lifecycle import TrialLifecycle
from parsl_rasda.orchestration.search_record import SearchRecord
from parsl_rasda.placement.cluster_state import PendingTrial
from parsl_rasda.types import StudyState, TrialState


class Completion:
    """Ends a search."""

    def __init__(self, search: SearchRecord, lifecycle: TrialLifecycle, allocator: Allocator) -> None:
        """Work on a search; what its last trials need is done by the others."""
        self._search, self._lifecycle, self._allocator = search, lifecycle, allocator

    def finish_if_over(self) -> None:
        """End the search if nothing runs and nothing can."""
        search = self._search
        if search.is_over or search.jobs:
            return
        if not search.is_unfinished:
            self._finish_well()
        elif search.state is StudyState.INTERRUPTED:
            self.finish(StudyState.INTERRUPTED)
        elif search.pilots.none_left:
            self.finish(StudyState.NO_SITE, "no pilot could be had")
        elif not search.is_proposing and not search.pilots.awaited:
            self._end_standstill()

    def refuse_unfit(self) -> bool:
        """End the search if there is a rung that no pilot has the slots for; return whether it ended."""
        search = self._search
        if search.pilots.awaited or search.state is not StudyState.RUNNING:
            return False
        for rung in range(len(search.scheduler.milestones)):
            needed = self._needs(search.scheduler.replicas(rung))
            if not search.cluster_state.ledger.can_ever_fit(needed):
                self._finish_unfit(needed)
                return True
        return False

    def finish(self, state: StudyState, cause: str = "") -> None:
        """End the search."""
        self._search.state, self._search.is_over = state, True
        self._search.instructions.append(FinishStudy(state, cause))

    def _end_standstill(self) -> None:
        """Nothing runs and nothing is awaited: nobody who waits now would ever start as things are.

        A trial that has outgrown the site of its checkpoint starts afresh where it fits.
        """
        search, cluster = self._search, self._search.cluster_state
        for site in sorted({w.site for w in cluster.waiting if w.site and not self._can_ever_start(w)}):
            self._lifecycle.abandon_site(site)
        self._allocator.allocate()
        if search.jobs or search.is_proposing:
            return
        if cluster.kinds or search.unproposed:
            replicas = [w.stretch.replicas for w in cluster.waiting] or [search.settings.num_workers]
            self._finish_unfit(self._needs(replicas[0]))
        else:
            self._lifecycle.conclude_paused()
            self._finish_well()

    def _needs(self, replicas: int) -> int:
        return self._search.growth.needs(replicas, self._search.settings.num_workers)

    def _can_ever_start(self, waiting: PendingTrial) -> bool:
        ledger = self._search.cluster_state.ledger
        return ledger.can_ever_fit(self._needs(waiting.stretch.replicas), waiting.site)

    def _finish_well(self) -> None:
        good = any(t.state is not TrialState.FAILED for t in self._search.trials.values())
        self.finish(StudyState.DONE if good else StudyState.FAILED)

    def _finish_unfit(self, needed: int) -> None:
        largest = self._search.cluster_state.ledger.largest
        self.finish(
            StudyState.NO_SITE, f"a trial needs {needed} GPUs at once, the largest pilot has {largest}"
        )
