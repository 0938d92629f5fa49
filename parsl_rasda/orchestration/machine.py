"""The study as a state machine: one event in, the instructions that follow from it out.

The live driver, the simulator behind `plan` and crash recovery drive this same object. It reads no
clock and starts nothing; the same events give the same instructions.

Life of a trial: WAITING (for slots) -> RUNNING -> at each rung CONTINUE, PAUSED or a final state.
A trial changes its width by leaving at an epoch boundary and starting again, from the checkpoint
written there, as a new attempt.
"""

from __future__ import annotations

import math
from typing import assert_never

from parsl_rasda.orchestration.allocator import Allocator
from parsl_rasda.orchestration.events import (
    EpochReported,
    Event,
    FinishStudy,
    Instruction,
    JobEnded,
    JobStarted,
    ObserveTrial,
    PilotEnded,
    PilotLost,
    PilotStarted,
    ReleasePilot,
    SearchExhausted,
    SiteDegraded,
    StudyInterrupted,
    StudyStarted,
    TimerFired,
    TrialProposed,
)
from parsl_rasda.orchestration.lifecycle import MachineSettings
from parsl_rasda.orchestration.trial_record import Job, TrialRecord
from parsl_rasda.placement.cluster_state import PendingTrial
from parsl_rasda.scheduling.base import Action, Decision
from parsl_rasda.types import (
    Outcome,
    PilotId,
    SiteName,
    StudyState,
    TrialState,
)

__all__ = ["Machine", "MachineSettings"]

_SETBACKS = 5  # preemptions in a row without a finished epoch, after which they cost retries
_FALLBACKS = 5  # checkpoints of a trial that were gone, after which each one costs a retry


class Machine(Allocator):
    """Turns events into instructions; see `handle`."""

    def handle(self, event: Event) -> tuple[Instruction, ...]:  # noqa: C901  # a line for each event
        """Apply one event and return what must be done; the only mutator."""
        self._now = event.at
        self._out = []
        match event:
            case StudyStarted():
                self._on_study_started(event)
            case StudyInterrupted():
                self._on_interrupted()
            case PilotStarted():
                self._on_pilot_started(event)
            case PilotLost():
                self._on_pilot_lost(event)
            case PilotEnded():
                self._on_pilot_ended(event)
            case TrialProposed():
                self._on_proposed(event)
            case SearchExhausted():
                self._on_exhausted()
            case JobStarted():
                self._on_job_started(event)
            case EpochReported():
                self._on_epoch(event)
            case JobEnded():
                self._on_job_ended(event)
            case TimerFired():
                self._on_time_passed()
            case SiteDegraded():
                pass  # it is written down
            case _:
                assert_never(event)
        self._give_back()
        self._maybe_finish()
        return tuple(self._out)

    @property
    def wake_at(self) -> float | None:
        """When `TimerFired` should be told unless something happens before [s], or None."""
        if self.state is not StudyState.RUNNING or not self._is_unfinished:
            return None
        return self.pilots.wake_at if self._is_tapering else self.pilots.rested_at(self._now)

    def _on_study_started(self, event: StudyStarted) -> None:
        """Begin, or take up again after a death: nothing of before is running any more."""
        self.state, self._is_over = StudyState.RUNNING, False
        self.num_samples = event.num_samples if self.lacks(event.num_samples) else len(self.trials)
        self._proposing = False
        self.jobs.clear()
        for pilot in self.pilots.up:
            self.board.ledger.remove_pilot(pilot)
        self.pilots = self.pilots.successor()
        for trial in self.trials.values():
            if trial.job is not None:
                trial.job = None
                self.board.unplace(trial.id)
                if trial.state is TrialState.RUNNING:
                    self._wait(trial)
        self._close_if_full()
        if not self._is_unfinished:
            return  # it died between its last decision and its end
        for site, wanted in event.sites.items():
            self._out.extend(self.pilots.request(site) for _ in range(wanted))
        known = {t.site for t in self.trials.values()} | {w.site for w in self.board.waiting}
        for site in sorted({site for site in known if site} - set(event.sites)):
            self._abandon(site)

    def _on_exhausted(self) -> None:
        self._proposing = False
        self._all_there_are, self.num_samples = self.num_samples, len(self.trials)
        self._close_if_full()
        self._allocate()

    def _close_if_full(self) -> None:
        """Tell the scheduler once nobody will come any more: a rung may be complete by that."""
        if not self._unproposed:
            self.scheduler.close()
            self._dismiss()

    def _on_interrupted(self) -> None:
        if self._is_over:
            return
        self.state = StudyState.INTERRUPTED
        for trial in self.jobs.values():
            self._end(trial, "interrupted")

    def _maybe_finish(self) -> None:
        if self._is_over or self.jobs:
            return
        if not self._is_unfinished:
            self._finish_well()
        elif self.state is StudyState.INTERRUPTED:
            self._finish(StudyState.INTERRUPTED)
        elif self.pilots.none_left:
            self._finish(StudyState.NO_SITE, "no pilot could be had")
        elif not self._proposing and not self.pilots.awaited:
            self._end_standstill()

    def _end_standstill(self) -> None:
        """Nothing runs and nothing is awaited: nobody who waits now would ever start as things are.

        A trial that has outgrown the site of its checkpoint starts afresh where it fits.
        """
        for site in sorted({w.site for w in self.board.waiting if w.site and not self._can_ever_start(w)}):
            self._abandon(site)
        self._allocate()
        if self.jobs or self._proposing:
            return
        if self.board.kinds or self._unproposed:
            replicas = [w.replicas for w in self.board.waiting] or [self.settings.num_workers]
            self._finish_unfit(self.growth.needs(replicas[0], self.settings.num_workers))
        else:
            self._conclude_paused()
            self._finish_well()

    def _can_ever_start(self, waiting: PendingTrial) -> bool:
        width = self.growth.needs(waiting.replicas, self.settings.num_workers)
        return self.board.ledger.can_ever_fit(width, waiting.site)

    def _finish_well(self) -> None:
        good = any(t.state is not TrialState.FAILED for t in self.trials.values())
        self._finish(StudyState.DONE if good else StudyState.FAILED)

    def _finish_unfit(self, needed: int) -> None:
        largest = self.board.ledger.largest
        cause = f"a trial needs {needed} GPUs at once, the largest pilot has {largest}"
        self._finish(StudyState.NO_SITE, cause)

    def _finish(self, state: StudyState, cause: str = "") -> None:
        self.state, self._is_over = state, True
        self._out.append(FinishStudy(state, cause))

    def _on_pilot_started(self, event: PilotStarted) -> None:
        self.pilots.started(event)
        self.board.ledger.add_pilot(event.pilot, event.site, event.nodes)
        if not self._refuse_unfit():
            self._allocate()

    def _refuse_unfit(self) -> bool:
        """End the study if there is a rung that no pilot has the slots for; return whether it ended."""
        if self.pilots.awaited or self.state is not StudyState.RUNNING:
            return False
        for rung in range(len(self.scheduler.milestones)):
            needed = self.growth.needs(self.scheduler.replicas(rung), self.settings.num_workers)
            if not self.board.ledger.can_ever_fit(needed):
                self._finish_unfit(needed)
                return True
        return False

    def _on_pilot_lost(self, event: PilotLost) -> None:
        if event.pilot in self.pilots.up:
            self.pilots.lost.add(event.pilot)
            self._close(event.pilot)

    def _on_pilot_ended(self, event: PilotEnded) -> None:
        is_spare = self.pilots.is_spare(event.pilot)
        if not self.pilots.ended(event):
            return
        self.board.ledger.remove_pilot(event.pilot)
        if self.state is not StudyState.RUNNING:
            return
        if is_spare and self._is_tapering and not self.pilots.none_left:
            self.pilots.miss(event.site)
        elif not self.pilots.is_given_up(event.site):
            if self._is_unfinished:
                self._out.append(self.pilots.request(event.site))
        elif self.pilots.none_left:
            self._finish(StudyState.NO_SITE, event.cause)
        else:
            self.pilots.rest(event.site, self._now)
            if not self.pilots.has(event.site):
                self._abandon(event.site)
                self._allocate()

    def _on_time_passed(self) -> None:
        """Ask the sites that have rested; what else is due is due after every event."""
        if self.state is StudyState.RUNNING:
            self._ask_again()

    def _close_if_ending(self, pilot: PilotId) -> None:
        """Start nothing more on a pilot whose near end makes jobs leave: they would come and go."""
        if self.pilots.is_ending(pilot, self._now):
            self._close(pilot)

    def _give_back(self) -> None:
        """Release pilots that are of no use any more: without a job, and near their end or idle for long."""
        if self.state is not StudyState.RUNNING or not self.pilots.has_idle or not self._is_unfinished:
            return
        for pilot in self.pilots.give_back(self._now, tapering=self._is_tapering):
            self.board.ledger.remove_pilot(pilot)
            self._out.append(ReleasePilot(pilot))

    def _abandon(self, site: SiteName) -> None:
        """Let the trials of a site that is gone start afresh elsewhere: its checkpoints are out of reach."""
        bound = {w.trial for w in self.board.waiting if w.site == site}
        for waiting in bound:
            self.board.dequeue(waiting)
        for trial in self.trials.values():
            is_here = trial.site == site or trial.id in bound
            if is_here and not self.settings.roaming and not trial.state.is_final:
                trial.forget()
                if trial.state is TrialState.WAITING:
                    self._wait(trial)

    def _on_proposed(self, event: TrialProposed) -> None:
        self._proposing = False
        if event.trial in self.trials:
            return
        first = self.scheduler.add(event.trial)
        trial = TrialRecord(event.trial, len(self.trials), event.config, first.until, [(0, first.replicas)])
        self.trials[event.trial] = trial
        self._wait(trial)
        self._close_if_full()
        self._allocate()

    def _conclude_paused(self) -> None:
        for trial in self.trials.values():
            if trial.state is TrialState.PAUSED:
                self.scheduler.remove(trial.id)
                self._conclude(trial, TrialState.STOPPED, trial.reason or "never promoted")

    def _on_job_started(self, event: JobStarted) -> None:
        found = self._job_of(event.job)
        if found is None or found[1].confirmed:
            return
        job = found[1]
        job.confirmed = True
        seconds = max(0.0, event.at - job.since - event.once_s)
        if job.resized:
            self.board.times.saw_restart(seconds)
        else:
            self.board.times.saw_launch(seconds, job.placement.site)

    def _on_epoch(self, event: EpochReported) -> None:
        found = self._job_of(event.job)
        if found is None:
            return
        trial, job = found
        if trial.state.is_final:
            return  # without a control channel it trains on until it is killed
        width, site = job.placement.width, job.placement.site
        if not job.confirmed:
            self._on_job_started(JobStarted(event.at - max(event.seconds, 0.0), event.job))
        self.board.times.saw_epoch(trial.id, width, site, event.seconds)
        metric = float(event.metrics.get(self.settings.metric, math.nan))
        self.pilots.bore_fruit(job.placement.pilot)
        trial.epoch, trial.setbacks = event.epoch, 0
        trial.history[event.epoch] = metric
        if event.checkpoint is not None:
            done = event.epoch if event.checkpoint_epoch is None else event.checkpoint_epoch
            trial.keep(event.checkpoint, done)
        self._judge(trial, job, self.scheduler.report(trial.id, event.epoch, metric), metric)

    def _judge(self, trial: TrialRecord, job: Job, decision: Decision, metric: float) -> None:
        """Act on what the scheduler says of a trial at an epoch boundary."""
        at_rung = decision.action is not Action.CONTINUE or decision.until != trial.until
        if at_rung and math.isfinite(metric):
            self._out.append(ObserveTrial(trial.id, trial.epoch, metric))
        trial.rung, trial.reason = decision.rung, decision.reason or trial.reason
        match decision.action:
            case Action.CONTINUE:
                self._go_on(trial, decision)
                if job.ending is not None:
                    pass  # it was told to leave, and does
                elif job.interactive and self._is_too_late(trial, job):
                    self._end(trial, "walltime")
                elif job.interactive:
                    self._allocate(trial)
                else:
                    self._note_running(trial, job)
            case Action.PAUSE:
                trial.state = TrialState.PAUSED
                self._end(trial, "paused")
            case Action.STOP if not math.isfinite(metric):
                self._end(trial, "diverged")
                self._fail(trial, f"{self.settings.metric} is {metric} after epoch {trial.epoch}")
            case Action.STOP:
                self._end(trial, "stopped")
                state = TrialState.COMPLETED if decision.completed else TrialState.STOPPED
                self._conclude(trial, state, decision.reason)
            case _:
                assert_never(decision.action)
        self._dismiss()
        if decision.action is not Action.CONTINUE:
            self._allocate()

    def _is_too_late(self, trial: TrialRecord, job: Job) -> bool:
        """Whether the pilot will end before the trial's next epoch would, as a fresh one would not."""
        placement = job.placement
        epoch_s = self.board.times.epoch_s(trial.id, placement.width, placement.site)
        return self.pilots.is_too_late(placement.pilot, self._now, epoch_s)

    def _on_job_ended(self, event: JobEnded) -> None:
        found = self._job_of(event.job)
        if found is None:
            return
        trial, job = found
        trial.job = None
        del self.jobs[job.id]
        self.pilots.vacate(job.placement.pilot, self._now)
        self.board.unplace(trial.id)
        if event.outcome is Outcome.PREEMPTED and job.ending is None:
            self._close_if_ending(job.placement.pilot)
        left_well = event.outcome in {Outcome.REACHED, Outcome.PREEMPTED}
        if event.unreadable is not None and event.unreadable == trial.checkpoint:
            trial.fall_back()
        elif left_well and event.checkpoint is not None and event.checkpoint != trial.checkpoint:
            done = trial.epoch if event.checkpoint_epoch is None else event.checkpoint_epoch
            trial.keep(event.checkpoint, done)  # written on leaving
            trial.setbacks = 0
            self.pilots.bore_fruit(job.placement.pilot)
        if job.next_placement is not None and event.outcome is not Outcome.FAILED:
            self._move(trial, job, job.next_placement)
        else:
            self._release(job)
            self._after_end(trial, job, event)
        self._allocate()

    def _after_end(self, trial: TrialRecord, job: Job, event: JobEnded) -> None:
        if trial.state is not TrialState.RUNNING:
            return  # paused or concluded: it was told to leave
        match event.outcome:
            case Outcome.FAILED:
                self._fail(trial, event.cause or "the training function failed")
            case Outcome.REACHED if job.ending is None and trial.epoch < job.until:
                self._fail(trial, f"the training function returned after epoch {trial.epoch} of {job.until}")
            case Outcome.REACHED:
                self._wait(trial)
            case Outcome.LOST if event.unreadable is not None and trial.fallbacks <= _FALLBACKS:
                trial.reason = event.cause
                self._wait(trial)
            case Outcome.PREEMPTED if trial.setbacks < _SETBACKS:
                trial.setbacks += 1
                self._wait(trial)
            case Outcome.LOST if job.ending is not None:
                self._wait(trial)  # killed while leaving: its last epoch stands
            case Outcome.PREEMPTED | Outcome.LOST:
                self._lose(trial, event)
            case _:
                assert_never(event.outcome)

    def _lose(self, trial: TrialRecord, event: JobEnded) -> None:
        trial.losses += 1
        trial.reason = event.cause
        if trial.losses > self.settings.max_retries:
            self._fail(trial, f"{event.cause} (attempt {trial.attempt}, no retry left)")
        else:
            self._wait(trial)
