"""When a search is over, and how: the only place that returns `FinishStudy`."""

from __future__ import annotations

from parsl_rasda.orchestration.allocator import Allocator
from parsl_rasda.orchestration.confirmation import Confirmation
from parsl_rasda.orchestration.events import FinishStudy
from parsl_rasda.orchestration.fault_model import FaultModel
from parsl_rasda.orchestration.lifecycle import TrialLifecycle
from parsl_rasda.orchestration.search_record import SearchRecord
from parsl_rasda.placement.cluster_state import PendingTrial
from parsl_rasda.types import StudyState, TrialState


class Completion:
    """Ends a search."""

    def __init__(
        self,
        search: SearchRecord,
        lifecycle: TrialLifecycle,
        allocator: Allocator,
        faults: FaultModel,
        confirmation: Confirmation,
    ) -> None:
        """Work on a search; what its last trials need is done by the others."""
        self._confirmation = confirmation
        self._search, self._lifecycle, self._allocator, self._faults = search, lifecycle, allocator, faults

    def finish_if_over(self) -> None:
        """End the search if nothing can run; nothing does."""
        search = self._search
        if search.is_over:
            return
        if not search.is_unfinished:
            self._finish_well()
        elif search.state is StudyState.INTERRUPTED:
            self.finish(StudyState.INTERRUPTED, search.interruption)
        elif search.state is StudyState.FAILED:
            self.finish(StudyState.FAILED, self._faults.all_fail_alike)
        elif search.pilots.is_hopeless:
            self.finish(StudyState.NO_SITE, "no pilot could be had")
        elif not search.is_proposing and not search.pilots.will_change(search.now):
            self._end_standstill()

    def refuse_unfit(self) -> bool:
        """End the search if there is a rung that no pilot has the slots for; return whether it ended."""
        search = self._search
        if search.pilots.awaited or search.state is not StudyState.RUNNING:
            return False
        for rung in range(len(search.scheduler.milestones)):
            needed = self._needs(search.scheduler.replicas(rung))
            if not search.cluster_state.ledger.can_ever_fit(needed, whole=True):
                self._finish_unfit(needed)
                return True
        return False

    def give_up(self) -> None:
        """Let running jobs leave, and end once they have: other configurations would fail alike."""
        self._search.state = StudyState.FAILED
        for trial in tuple(self._search.jobs.values()):
            self._lifecycle.tell_to_leave(trial, "stopped")

    def finish(self, state: StudyState, cause: str = "") -> None:
        """End the search."""
        if not self._search.jobs:
            self._confirmation.suspend()
        self._search.state, self._search.is_over = state, True
        self._search.budget.close(self._search.now)
        self._search.instructions.append(FinishStudy(state, cause))

    def _end_standstill(self) -> None:
        """Nothing runs and nothing is awaited: nobody who waits now would ever start as things are.

        A trial that has outgrown the site of its checkpoint starts afresh where it fits.
        """
        search, cluster = self._search, self._search.cluster_state
        if self._faults.hopes():
            return
        if cluster.kinds:
            search.instructions.extend(search.pilots.request_deferred({None}, search.now))
        if search.pilots.requested:
            return
        for site in sorted({w.site for w in cluster.waiting if w.site and self._must_go_elsewhere(w)}):
            self._lifecycle.abandon_site(site)
        self._allocator.allocate()
        if search.jobs or search.is_proposing:
            return
        for trial, cause in self._faults.last_verdicts():
            self._lifecycle.fail(search.trials[trial], cause)
        self._allocator.allocate()
        if search.jobs or search.is_proposing:
            return
        is_wanted = bool(cluster.kinds or search.unproposed)
        if is_wanted and (reason := self._faults.give_up()):
            self.finish(StudyState.NO_SITE, f"nothing is left that trials can run on: {reason}")
        elif cluster.kinds or search.unproposed:
            workers = [w.stretch.workers for w in cluster.waiting] or [search.settings.num_workers]
            self._finish_unfit(self._needs(workers[0]))
        else:
            self._lifecycle.conclude_paused()
            self._finish_well()

    def _needs(self, workers: int) -> int:
        return self._search.growth.needs(workers, self._search.settings.num_workers)

    def _must_go_elsewhere(self, waiting: PendingTrial) -> bool:
        """Whether a trial could start on another site that is up, and never on the one it is bound to."""
        needed, (workers, _, caution) = self._needs(waiting.stretch.workers), waiting.kind
        can_ever_start = self._search.cluster_state.can_ever_start
        return can_ever_start(needed, (workers, None, caution)) and not can_ever_start(needed, waiting.kind)

    def _finish_well(self) -> None:
        if self._confirmation.begin():
            self._confirm()
            return
        if self._search.state is StudyState.INTERRUPTED and self._confirmation.is_wanted:
            self.finish(StudyState.INTERRUPTED, self._search.interruption)
            return
        self._confirmation.suspend()
        trials, budget = self._search.trials.values(), self._search.budget
        good = any(t.state is not TrialState.FAILED for t in trials)
        if budget.reason and all(t.last is None for t in trials):
            self.finish(StudyState.FAILED, f"{budget.reason}, and no trial has reported by then")
        else:
            self.finish(StudyState.DONE if good else StudyState.FAILED)

    def _confirm(self) -> None:
        """Let the runs of the confirmation start; pilots that have gone meanwhile are asked for."""
        search = self._search
        for site in search.pilots.least:
            if not (search.pilots.has(site) or search.pilots.must_back_off(site)):
                search.instructions.append(search.pilots.request(site))
        self._allocator.allocate()
        if not search.jobs:
            self.finish_if_over()

    def _finish_unfit(self, needed: int) -> None:
        largest = self._search.cluster_state.ledger.largest
        reason = f"a trial needs {needed} GPUs at once, and can have at most {largest} of a pilot"
        self.finish(StudyState.NO_SITE, reason)
