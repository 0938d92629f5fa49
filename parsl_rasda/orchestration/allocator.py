"""Who gets slots: asks the growth policy, starts and moves jobs, answers the one at a boundary."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from itertools import islice

from parsl_rasda.orchestration.events import ContinueJob, ProposeTrial
from parsl_rasda.orchestration.lifecycle import TrialLifecycle
from parsl_rasda.orchestration.search_record import SearchRecord
from parsl_rasda.orchestration.trial_record import LiveJob, TrialRecord
from parsl_rasda.placement.cluster_state import NO_CAUTION, Kind, PendingTrial, RunningTrial
from parsl_rasda.placement.what_if import WhatIf
from parsl_rasda.types import Placement, StudyState, TrialId


class Allocator:
    """Hands out the slots of a search."""

    def __init__(self, search: SearchRecord, lifecycle: TrialLifecycle) -> None:
        """Work on a search, whose trials start and leave by their lifecycle."""
        self._search, self._lifecycle = search, lifecycle
        self.again_at: float | None = None  # when the policy wants to be asked again

    def allocate(self, here: TrialRecord | None = None) -> None:
        """Let the growth policy hand out slots; ``here`` stands at an epoch boundary and is answered."""
        search, cluster = self._search, self._search.cluster_state
        if search.state is not StudyState.RUNNING or search.stop.reason:
            if here is not None:
                self._lifecycle.tell_to_leave(here, "stopped" if search.stop.reason else "interrupted")
            return
        if search.pilots.dated:
            self._close_late_pilots()
        at_point = self._at_boundary(here) if here is not None else None
        self._settle_queue()
        with cluster.nobody_waiting() if search.is_full else nullcontext():
            allocation = search.growth.decide(cluster, search.now, at_point)
        self.again_at = self._postpone(allocation.postponed) if allocation.postponed else None
        if allocation.starts:
            self._start_all(allocation.starts)
        if here is not None and here.job is not None:
            self._answer(here, here.job, allocation.here, requeue=allocation.requeue)
        if cluster.new_trials and cluster.ledger.free and not (search.is_proposing or search.is_full):
            self._propose()
        if search.pilots.deferred:
            self.request_deferred_pilots()

    def _settle_queue(self) -> None:
        """Let those wait for slots who may start now."""
        search = self._search
        search.cluster_state.new_trials = search.unproposed
        if search.paused and not search.is_full:
            self._resume_paused()
        if search.budget.is_limited:
            self._keep_to_budget()

    def _keep_to_budget(self) -> None:
        """Let nobody start whom the budget does not bring to a rung; others may go on instead."""
        search, cluster = self._search, self._search.cluster_state
        while late := [w for w in cluster.waiting if not search.lasts_to_rung(w.trial, w.stretch)]:
            for waiting in late:
                self._lifecycle.cut_off(search.trials[waiting.trial])
            if search.paused:
                self._resume_paused()
        may_propose = search.unproposed and not search.is_proposing
        if may_propose and not search.lasts_to_rung(TrialId(""), search.new_stretch):
            self._lifecycle.cut_off_new()
        cluster.new_trials = search.unproposed

    @property
    def is_due(self) -> bool:
        """Whether the policy wants to be asked again by now."""
        return self.again_at is not None and self._search.now >= self.again_at

    def request_deferred_pilots(self) -> None:
        """Ask for pilots that were not replaced when they went, if somebody waits for slots there."""
        search = self._search
        if not search.is_draining and not search.is_proposing:
            waiting = {site for _, site, _ in search.cluster_state.kinds}
            if search.unproposed or not (waiting or search.jobs):
                waiting.add(None)  # also where all are paused: they may go on once there are slots
            search.instructions.extend(search.pilots.request_deferred(waiting, search.now))

    def _postpone(self, trials: Mapping[TrialId, float]) -> float:
        """Let some trials wait that could start; return when to ask the policy again [s]."""
        for trial in trials:
            self._search.cluster_state.postpone(trial, self._search.now)
        return min(trials.values())

    def move(self, trial: TrialRecord, job: LiveJob, target: Placement) -> None:
        """Start a resized trial, whose job has left, on slots that were reserved at its boundary."""
        search, ledger = self._search, self._search.cluster_state.ledger
        ledger.release(job.placement.minus(target))
        if search.pilots.dated:
            self._close_late_pilots()
        trial.rewind()  # what it was to widen for may be lost
        divides = trial.replicas % target.world_size == 0
        if divides and search.pilots.accepts_jobs(target.pilot) and search.state is StudyState.RUNNING:
            self._lifecycle.start(trial, target, since=job.leaving_since, resized=True)
        else:
            ledger.release(target)
            self._lifecycle.enqueue(trial)

    def release(self, job: LiveJob) -> None:
        """Free the slots of a job that has left, and those reserved for its next one."""
        ledger = self._search.cluster_state.ledger
        ledger.release(job.placement)
        if job.next_placement is not None:
            ledger.release(job.next_placement.minus(job.placement))

    def _start_all(self, starts: Mapping[TrialId, Placement]) -> None:
        search = self._search
        if search.at_most:
            starts = dict(islice(starts.items(), max(0, search.at_most - len(search.jobs))))
        for trial, placement in starts.items():
            search.cluster_state.admit(trial)
            search.cluster_state.ledger.take(placement)
        for trial, placement in starts.items():
            self._lifecycle.start(search.trials[trial], placement, since=search.now)

    def _answer(self, trial: TrialRecord, job: LiveJob, target: Placement | None, *, requeue: bool) -> None:
        """Tell a waiting job to go on as it is, or to leave for other slots."""
        search = self._search
        if requeue:
            self._lifecycle.tell_to_leave(trial, "resize")
            search.cluster_state.return_later(trial.id, trial.stretch)
        elif target is None or target == job.placement:
            stretch = trial.current
            job.until = stretch.until
            self._lifecycle.note_running(trial, job)
            batches = None if stretch.batches == stretch.replicas else stretch.batches
            search.instructions.append(ContinueJob(job.id, stretch.until, stretch.replicas, batches))
        else:
            search.cluster_state.ledger.take(target.minus(job.placement))
            job.next_placement = target
            self._lifecycle.tell_to_leave(trial, "resize")

    def _at_boundary(self, trial: TrialRecord) -> RunningTrial:
        if trial.job is None:
            raise RuntimeError(f"trial {trial.id} is at a boundary without a job")
        self._search.cluster_state.unplace(trial.id)
        return RunningTrial(trial.id, trial.age, trial.job.placement, self._search.now, trial.stretch)

    @property
    def _has_room(self) -> bool:
        """Whether another trial could start now, and nobody in the queue could."""
        search, workers = self._search, self._search.settings.num_workers
        ledger = search.cluster_state.ledger
        if not ledger.free:
            return False
        if workers == 1 and not search.cluster_state.kinds and not ledger.is_reduced:
            return True
        find, needs = search.cluster_state.find_start, search.growth.needs
        if find(workers, (workers, None, NO_CAUTION)) is None:
            return False
        return not any(find(needs(kind[0], workers), kind) for kind in search.cluster_state.kinds)

    def _resume_paused(self) -> None:
        """Let paused trials go on for which there is room; slots that are about to be free are room, too.

        All of them are resumed before anybody starts: as long as one waits, nobody widens.
        """
        search, cluster = self._search, self._search.cluster_state
        if not (cluster.ledger.free or cluster.is_anything_leaving):
            return
        workers, refused = search.settings.num_workers, set[Kind]()
        with WhatIf(cluster) as what_if:
            leaving = what_if.lend_leaving(search.now)
            for waiting in cluster.queue(refused):
                if not self._hold_start(what_if, waiting):
                    refused.add(waiting.kind)
            while cluster.find_start(workers, (workers, None, NO_CAUTION)) is not None:
                decision = search.scheduler.resume_next()
                if decision is None:
                    return
                trial = search.trials[decision.trial]
                waiting = self._lifecycle.resume(trial, decision)
                if trial.job is None or trial.id in leaving:  # else it waits for its own slots
                    self._hold_start(what_if, waiting)

    def _hold_start(self, what_if: WhatIf, waiting: PendingTrial) -> bool:
        """Hold the slots that a waiting trial needs, in a thought; return whether there are enough."""
        cluster = self._search.cluster_state
        needed = self._search.growth.needs(waiting.stretch.workers, self._search.settings.num_workers)
        placement = cluster.find_start(needed, waiting.kind)
        if placement is not None:
            what_if.hold(placement)
        return placement is not None

    def _propose(self) -> None:
        """Ask for a new trial if there is room for one."""
        search = self._search
        if self._has_room:
            search.is_proposing = True
            search.instructions.append(ProposeTrial(TrialId(f"{len(search.trials):04d}")))

    def _close_late_pilots(self) -> None:
        """Start nothing more on pilots where not even one epoch could end, if it could on fresh ones."""
        search, cluster = self._search, self._search.cluster_state
        epoch_s = cluster.times.typical_epoch_s(search.settings.num_workers)
        if epoch_s is None:
            return
        needed_s = cluster.times.restart_s + epoch_s
        for pilot in cluster.ledger.pilots:
            if search.pilots.is_too_late(pilot, search.now, needed_s):
                search.close_pilot(pilot)
