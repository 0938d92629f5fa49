"""Who gets slots: asks the growth policy, starts and moves jobs, answers the one at a boundary."""

from __future__ import annotations

from collections.abc import Mapping

from parsl_rasda.orchestration.events import (
    ContinueJob,
    ProposeTrial,
)
from parsl_rasda.orchestration.lifecycle import TrialLifecycle
from parsl_rasda.orchestration.trial_record import Job, TrialRecord
from parsl_rasda.placement.cluster_state import RunningTrial
from parsl_rasda.types import (
    Placement,
    SiteName,
    StudyState,
    TrialId,
    TrialState,
)


class Allocator(TrialLifecycle):
    """Hands out the slots of a study."""

    def _allocate(self, here: TrialRecord | None = None) -> None:
        """Let the growth policy hand out slots; ``here`` stands at an epoch boundary and is answered."""
        if self.state is not StudyState.RUNNING:
            if here is not None:
                self._end(here, "interrupted")
            return
        self._close_late()
        at_point = self._at_boundary(here) if here is not None else None
        while True:
            resumed = self._refill()
            allocation = self.growth.decide(self.board, self._now, at_point)
            self._start_all(allocation.starts)
            if not resumed:
                break
        if here is not None and here.job is not None:
            self._answer(here, here.job, allocation.here, requeue=allocation.requeue)
        self._propose()
        self._ask_again()

    def _ask_again(self) -> None:
        """Ask for pilots that were not replaced when they went, if somebody waits for slots there."""
        if not self._is_tapering and not self._proposing:
            anywhere: set[SiteName | None] = {None} if self._unproposed else set()
            waiting = anywhere | {site for _, site in self.board.kinds}
            self._out.extend(self.pilots.ask_again(waiting, self._now))

    def _start_all(self, starts: Mapping[TrialId, Placement]) -> None:
        for trial, placement in starts.items():
            self.board.admit(trial)
            self.board.ledger.take(placement)
        for trial, placement in starts.items():
            self._start(self.trials[trial], placement, since=self._now)

    def _answer(self, trial: TrialRecord, job: Job, target: Placement | None, *, requeue: bool) -> None:
        """Tell a waiting job to go on as it is, or to leave for other slots."""
        if requeue:
            self._end(trial, "resize")
        elif target is None or target == job.placement:
            job.until = trial.stretch_end
            self._note_running(trial, job)
            self._out.append(ContinueJob(job.id, trial.stretch_end, trial.replicas))
        else:
            self.board.ledger.take(target.minus(job.placement))
            job.next_placement = target
            self._end(trial, "resize")

    def _at_boundary(self, trial: TrialRecord) -> RunningTrial:
        job = trial.job
        if job is None:
            raise RuntimeError(f"trial {trial.id} is at a boundary without a job")
        self.board.unplace(trial.id)
        return RunningTrial(
            trial.id, trial.age, job.placement, self._now, trial.epoch, trial.stretch_end, trial.replicas
        )

    def _move(self, trial: TrialRecord, job: Job, target: Placement) -> None:
        """Start a resized trial on slots that were reserved at its boundary."""
        self.board.ledger.release(job.placement.minus(target))
        self._close_late()
        trial.rewind()  # what it was to widen for may be lost
        is_whole = trial.replicas % target.width == 0
        if is_whole and self.pilots.takes(target.pilot) and self.state is StudyState.RUNNING:
            self._start(trial, target, since=job.ending_at, resized=True)
        else:
            self.board.ledger.release(target)
            self._wait(trial)

    def _release(self, job: Job) -> None:
        self.board.ledger.release(job.placement)
        if job.next_placement is not None:
            self.board.ledger.release(job.next_placement.minus(job.placement))

    @property
    def _has_room(self) -> bool:
        """Whether another trial could start now, and nobody in the queue could."""
        find, needs, workers = self.board.ledger.find, self.growth.needs, self.settings.num_workers
        if find(workers) is None:
            return False
        wanted = {(needs(replicas, workers), site) for replicas, site in self.board.kinds}
        return not any(find(width, site=site) for width, site in wanted)

    def _refill(self) -> bool:
        """Let one paused trial go on if there is room; return whether it is in the queue now."""
        self.board.new_trials = self._unproposed
        while self._has_room:
            decision = self.scheduler.resume_next()
            if decision is None:
                return False
            trial = self.trials[decision.trial]
            self._go_on(trial, decision)
            trial.reason = decision.reason or trial.reason
            if trial.job is None:
                self._wait(trial)
                return True
            trial.state = TrialState.RUNNING  # still leaving: it waits once it has left
        return False

    def _propose(self) -> None:
        """Ask for a new trial if there is room for one."""
        if self._unproposed and not self._proposing and self._has_room:
            self._proposing = True
            self._out.append(ProposeTrial(TrialId(f"{len(self.trials):04d}")))

    def _close_late(self) -> None:
        """Start nothing more on pilots where not even one epoch could end, if it could on fresh ones."""
        epoch_s = self.board.times.typical_epoch_s(self.settings.num_workers)
        if epoch_s is None:
            return
        needed_s = self.board.times.restart_s + epoch_s
        for pilot in self.board.ledger.pilots:
            if self.pilots.is_too_late(pilot, self._now, needed_s):
                self._close(pilot)
