"""The steps in the life of a trial and of its jobs.

WAITING (for slots) -> RUNNING -> at each rung goes on, PAUSED or a final state; see `states`.
"""

from __future__ import annotations

import math
from typing import assert_never

from msgspec.structs import replace

from parsl_rasda.orchestration.events import (
    ContinueJob,
    EndJob,
    EpochReported,
    JobEnded,
    JobStarted,
    ProposeTrial,
    StartJob,
    StudyStarted,
    TrialFinished,
    TrialProposed,
    UserTold,
)
from parsl_rasda.orchestration.fault_model import FaultModel
from parsl_rasda.orchestration.search_record import SearchRecord
from parsl_rasda.orchestration.states import JobState
from parsl_rasda.orchestration.trial_record import LiveJob, TrialRecord
from parsl_rasda.placement.cluster_state import NO_CAUTION, PendingTrial, RunningTrial
from parsl_rasda.placement.growth import build_growth
from parsl_rasda.protocol import Checkpoint
from parsl_rasda.scheduling.base import Action, Decision, Extensible
from parsl_rasda.study_code.code import digest_of
from parsl_rasda.types import (
    JobId,
    JudgedBy,
    Method,
    Outcome,
    Placement,
    SiteName,
    Stretch,
    StudyState,
    TrialState,
)

_FREE_PREEMPTIONS = 5  # in a row without a finished epoch, after which they cost retries
_FREE_CHECKPOINT_LOSSES = 5  # of a trial, after which each one costs a retry
_LEFT_WELL = {Outcome.REACHED, Outcome.PREEMPTED}


class TrialLifecycle:
    """What can happen to one trial."""

    def __init__(self, search: SearchRecord, faults: FaultModel) -> None:
        """Work on a search; the fault model says whose fault the end of a job was."""
        self._search, self._faults = search, faults

    # ------------------------------------------------------------------------------- a controller begins

    def take_up(self, event: StudyStarted) -> None:
        """Begin, or go on after a death: nothing of before is running any more."""
        search = self._search
        search.state, search.is_over, search.interruption = StudyState.RUNNING, False, ""
        wanted = event.num_samples + search.added
        search.num_samples = wanted if search.lacks(event.num_samples) else len(search.trials)
        search.is_proposing = False
        for pilot in search.pilots.up:
            search.cluster_state.ledger.remove_pilot(pilot)
        search.pilots.restart()
        self._faults.restart()
        self.forget_cautions()
        for trial in search.trials.values():
            if trial.job is not None:
                self.forget_job(trial, trial.job, has_left=False)
                if trial.state is TrialState.RUNNING:
                    self.enqueue(trial)
        if event.method is not None:
            self._change_method(event.method)
        for cut_off, was_paused in search.cut_off.items():
            search.ended -= 1
            (self.pause if was_paused else self.enqueue)(search.trials[cut_off])
        search.cut_off.clear()
        for retried in sorted(search.retried):
            self.retry_if_told(search.trials[retried])
        if event.retry_failed:
            self.retry_failed()

    def _change_method(self, method: Method) -> None:
        """Go on by another method: those that had completed are judged again if there are more rungs."""
        search = self._search
        search.method, search.growth = method, build_growth(method.growth)
        if not isinstance(search.scheduler, Extensible):
            return
        decisions = search.scheduler.extend(method.milestones, method.max_workers)
        search.note_ladder()
        for decision in decisions:
            trial = search.trials[decision.trial]
            search.ended -= 1
            trial.rung, trial.reason = decision.rung, decision.reason
            match decision.action:
                case Action.CONTINUE:
                    trial.train_on(search.stretch_ahead(trial, decision), decision.rung)
                    self.enqueue(trial)
                case Action.PAUSE:
                    self.pause(trial)
                case Action.STOP:
                    self.conclude(trial, TrialState.STOPPED, decision.reason)

    # ------------------------------------------------------------------------------- waiting

    def admit(self, event: TrialProposed) -> None:
        """Let a new trial wait; one that is known stays as it is."""
        search = self._search
        if event.told:
            search.told = event.told
            search.added += 1
            search.num_samples += 1
            search.exhausted_at += search.exhausted_at > 0
        else:
            search.is_proposing = False
        if event.trial in search.trials:
            return
        first = search.scheduler.add(event.trial)
        schedule = [search.first_stretch(first, event.config)]
        trial = TrialRecord(event.trial, len(search.trials), event.config, schedule)
        search.trials[event.trial] = trial
        self.enqueue(trial)

    def note_told(self, event: UserTold) -> None:
        """Note what the user has told of all trials."""
        search = self._search
        search.told = event.told
        if event.at_most is not None:
            search.at_most = event.at_most
        if event.retry_failed:
            self.retry_failed()

    def note_exhaustion(self) -> None:
        """Note that the searcher has no further configuration."""
        search = self._search
        search.is_proposing = False
        search.exhausted_at, search.num_samples = search.num_samples, len(search.trials)

    def close_if_full(self) -> bool:
        """Tell the scheduler once nobody will come any more: a rung may be complete by that."""
        is_full = not self._search.unproposed
        if is_full:
            self._search.scheduler.close()
        return is_full

    def enqueue(self, trial: TrialRecord) -> None:
        """Let a trial wait for slots, to go on from its last checkpoint."""
        trial.enter(TrialState.WAITING)
        trial.rewind()
        self._search.cluster_state.enqueue(self._pending(trial))

    def _pending(self, trial: TrialRecord) -> PendingTrial:
        stretch = trial.stretch
        site = self._site_of(trial, stretch)
        caution = self._faults.caution(trial, site)
        return PendingTrial(trial.id, trial.age, stretch, site, caution=caution)

    def resume(self, trial: TrialRecord, decision: Decision) -> PendingTrial:
        """Let a paused trial go on: it waits for slots, at once or when its job has left."""
        self._search.paused.discard(trial.id)
        trial.train_on(self._search.stretch_ahead(trial, decision), decision.rung)
        trial.reason = decision.reason or trial.reason
        waiting = self._pending(trial)
        if trial.job is None:
            self.enqueue(trial)
        else:
            trial.enter(TrialState.RUNNING)
            self._search.cluster_state.return_later(trial.id, waiting.stretch)
        return waiting

    def forget_cautions(self) -> None:
        """Let all wait that wait as if nothing had gone wrong before."""
        for waiting in self._search.cluster_state.waiting:
            if waiting.caution != NO_CAUTION:
                self.enqueue(self._search.trials[waiting.trial])

    def requeue_doubtful(self) -> None:
        """Let those that may be at fault wait for where they may start as things are now."""
        for trial in self._faults.doubtful():
            self.enqueue(trial)

    def _site_of(self, trial: TrialRecord, ahead: Stretch) -> SiteName | None:
        """Return the only site that a trial may use, or None.

        One that starts afresh must not outgrow another site that is too small for what it comes to again.
        """
        search = self._search
        if search.settings.checkpoints_shared:
            return None
        if trial.checkpoint is not None:
            return trial.site
        most = trial.schedule[-1].workers
        if most == ahead.workers:
            return None
        world_size = search.growth.needs(most, search.settings.num_workers)
        ledger = search.cluster_state.ledger
        fits = {site: ledger.can_ever_fit(world_size, site, whole=True) for site in search.pilots.sites_up}
        return None if all(fits.values()) else next((site for site in sorted(fits) if fits[site]), None)

    def abandon_site(self, site: SiteName) -> None:
        """Let the trials of a site that is gone start afresh elsewhere: its checkpoints are out of reach."""
        search = self._search
        bound = {w.trial for w in search.cluster_state.waiting if w.site == site}
        for waiting in bound:
            search.cluster_state.dequeue(waiting)
        for trial in search.trials.values():
            is_here = trial.site == site or trial.id in bound
            if is_here and not search.settings.checkpoints_shared and not trial.state.is_final:
                trial.forget()
                if trial.state is TrialState.WAITING:
                    self.enqueue(trial)

    # ------------------------------------------------------------------------------- a job begins and trains

    def start(self, trial: TrialRecord, placement: Placement, *, since: float, resized: bool = False) -> None:
        """Start the next attempt of a trial; its slots are held already."""
        search = self._search
        trial.enter(TrialState.RUNNING)
        trial.attempt += 1
        if search.code and (code := digest_of(search.code)) not in trial.codes:
            trial.codes.append(code)
        trial.site = placement.site
        trial.rewind()
        asks, answered = search.settings.interactive, search.pilots.up[placement.pilot].interactive
        until = self._returns_at(trial, placement) if asks and not answered else trial.current.until
        job = LiveJob(JobId(trial.id, trial.attempt), placement, until, asks and answered, since, resized)
        trial.job = job
        search.jobs[job.id] = trial
        search.pilots.occupy(placement.pilot)
        self.note_running(trial, job, delay_s=search.cluster_state.times.restart_s if resized else 0.0)
        search.instructions.append(
            StartJob(
                job.id,
                trial.config,
                placement,
                trial.epoch,
                job.until,
                trial.entries,
                trial.checkpoint.path if trial.checkpoint else None,
            )
        )

    def _returns_at(self, trial: TrialRecord, placement: Placement) -> int:
        """Return when a job without a control channel comes back: its trial widens between jobs only.

        Scripts train to their milestone: what they do on the way may depend on where it is.
        """
        at_start = RunningTrial(trial.id, trial.age, placement, self._search.now, trial.stretch)
        return self._search.growth.returns_at(self._search.cluster_state, at_start)

    def note_running(self, trial: TrialRecord, job: LiveJob, *, delay_s: float = 0.0) -> None:
        """Tell the cluster state where a trial runs, and when it could change its world size."""
        placement, stretch, cluster = job.placement, trial.current, self._search.cluster_state
        boundary = trial.epoch + 1 if job.interactive else max(job.until, trial.epoch)
        boundary_at = self._search.now
        if (world_size := placement.world_size) < stretch.workers:
            epoch_s = cluster.times.epoch_s(trial.id, world_size, placement.site)
            boundary_at = boundary_at + delay_s + epoch_s * (boundary - trial.epoch)
        ahead = stretch.starting_at(boundary)
        cluster.place(RunningTrial(trial.id, trial.age, placement, boundary_at, ahead))

    def note_started(self, event: JobStarted) -> None:
        """Learn how long a start took, once a job."""
        found = self._search.live_job(event.job)
        if found is None or found[1].is_timed:
            return
        job, times = found[1], self._search.cluster_state.times
        job.is_timed = True
        if not job.is_leaving:
            job.enter(JobState.TRAINING)
        seconds = max(0.0, event.at - job.since - event.once_s)
        if job.resized:
            times.saw_restart(seconds)
        else:
            times.saw_launch(seconds, job.placement.site)

    def note_epoch(self, trial: TrialRecord, job: LiveJob, event: EpochReported) -> float:
        """Note what an epoch tells; return its metric."""
        search, placement = self._search, job.placement
        times, ranks, site = search.cluster_state.times, placement.world_size, placement.site
        if event.includes_startup:
            times.saw_stretch(trial.id, ranks, site, event.epoch - trial.epoch, event.at - job.since)
        else:
            if not job.is_timed:
                trained_s = max(event.seconds, 0.0) * max(1, event.epoch - trial.epoch)
                self.note_started(JobStarted(event.at - trained_s, event.job))
            times.saw_epoch(trial.id, ranks, site, event.seconds)
        search.pilots.note_progress(placement.pilot)
        metric = float(event.metrics.get(search.settings.metric, math.nan))
        search.note_samples(trial, event.samples)
        trial.epoch, trial.preemptions = event.epoch, 0
        trial.history[event.epoch] = metric
        if event.test is not None:
            trial.tests[event.epoch] = event.test
        keeps_limits = True
        if search.settings.objectives is not None:
            values = search.settings.objectives.values(event.metrics)
            trial.reached.pop(event.epoch, None)
            if values is not None:
                trial.reached[event.epoch] = values
            keeps_limits = values is not None and values.violation == 0
        if event.noise is not None:
            trial.noise[event.epoch] = event.noise
        trial.note_arithmetic(event.exact, event.devices)
        if keeps_limits:
            search.stop.report(trial.id, metric, search.ended)
        if event.checkpoint is not None:
            self._note_whole(trial, event.checkpoint)
        return metric

    def _note_whole(self, trial: TrialRecord, checkpoint: Checkpoint) -> None:
        settings = self._search.settings
        trial.keep(checkpoint)
        trial.reported = checkpoint
        if settings.best is JudgedBy.EPOCH:
            trial.note_best(checkpoint, settings.mode)
        if settings.keep_rungs and checkpoint.epoch in self._search.scheduler.milestones:
            trial.rung_checkpoints[checkpoint.epoch] = checkpoint.path

    # ------------------------------------------------------------------------------- a job ends

    def note_checkpoint(self, trial: TrialRecord, job: LiveJob, event: JobEnded) -> None:
        """Note the checkpoint that a job wrote on leaving, or that the one it was to resume from is gone."""
        known = trial.checkpoint.path if trial.checkpoint else None
        if event.unreadable is not None and event.unreadable == known:
            trial.fall_back()
        elif event.checkpoint is not None and event.checkpoint != known and event.outcome in _LEFT_WELL:
            done = trial.epoch if event.checkpoint_epoch is None else event.checkpoint_epoch
            if trial.id in self._search.cut_off and not (job.interactive and done == trial.epoch):
                return  # of epochs after its end, which nobody has judged
            trial.keep(Checkpoint(event.checkpoint, done))
            trial.preemptions = 0
            self._search.pilots.note_progress(job.placement.pilot)

    def tell_to_leave(self, trial: TrialRecord, reason: str) -> None:
        """Tell a live job to leave; its slots are free when `JobEnded` comes."""
        search, job = self._search, trial.job
        if job is None or job.is_leaving:
            return
        job.enter(JobState.LEAVING)
        job.leaving_since = search.now
        freed = job.placement.minus(job.next_placement) if job.next_placement else job.placement
        if search.pilots.accepts_jobs(freed.pilot):
            search.cluster_state.leave(trial.id, freed, search.now)
        else:
            search.cluster_state.unplace(trial.id)
        search.instructions.append(EndJob(job.id, reason))

    def forget_job(self, trial: TrialRecord, job: LiveJob, *, has_left: bool = True) -> None:
        """Note that a job is gone; ``has_left``: just now, so that how long it took is known."""
        if job.is_leaving and has_left:
            seconds = self._search.now - job.leaving_since
            self._search.cluster_state.times.saw_release(seconds, job.placement.site)
        job.enter(JobState.ENDED)
        trial.job = None
        self._search.jobs.pop(job.id)
        self._search.cluster_state.unplace(trial.id)

    def go_on_after(self, trial: TrialRecord, job: LiveJob, event: JobEnded, *, was_told: bool) -> None:
        """Let a trial wait again after its job has ended, or fail; ``was_told``: the job was to leave."""
        if trial.state is not TrialState.RUNNING:
            return  # paused or concluded: it was told to leave
        match event.outcome:
            case Outcome.REACHED:
                self._go_on_after_reaching(trial, job, event, was_told=was_told)
            case _ if event.blame is not None:
                self._go_on_if_blameless(trial, job, event, was_told=was_told)
            case Outcome.FAILED:
                self.fail(trial, event.cause or "the training function failed")
            case Outcome.LOST if (
                event.unreadable is not None and trial.checkpoint_losses <= _FREE_CHECKPOINT_LOSSES
            ):
                trial.reason = event.cause
                self.enqueue(trial)
            case Outcome.PREEMPTED if trial.preemptions < _FREE_PREEMPTIONS:
                trial.preemptions += 1
                self.enqueue(trial)
            case Outcome.LOST if was_told:
                self.enqueue(trial)  # killed while leaving: its last epoch stands
            case Outcome.PREEMPTED | Outcome.LOST:
                self._retry(trial, event)
            case _:
                assert_never(event.outcome)

    def _go_on_after_reaching(
        self, trial: TrialRecord, job: LiveJob, event: JobEnded, *, was_told: bool
    ) -> None:
        if event.finished and trial.last is not None:
            self._complete(trial)
        elif not was_told and trial.epoch < job.until:
            self.fail(trial, f"the training function returned after epoch {trial.epoch} of {job.until}")
        else:
            self.enqueue(trial)

    def _go_on_if_blameless(
        self, trial: TrialRecord, job: LiveJob, event: JobEnded, *, was_told: bool
    ) -> None:
        cause = self._faults.judge(trial, job, event, was_told=was_told)
        if cause is None:
            self.enqueue(trial)
        else:
            self.fail(trial, cause)
        self.requeue_doubtful()

    def _retry(self, trial: TrialRecord, event: JobEnded) -> None:
        trial.retries += 1
        trial.reason = event.cause
        if trial.retries > self._search.settings.max_retries:
            self.fail(trial, f"{event.cause} (attempt {trial.attempt}, no retry left)")
        else:
            self.enqueue(trial)

    def retry_failed(self) -> None:
        """Let the trials that failed start afresh once their jobs have left: the cause was mended."""
        for trial in self._search.trials.values():
            if trial.state is TrialState.FAILED:
                self._search.retried.add(trial.id)
                if trial.job is None:
                    self.retry_if_told(trial)

    def retry_if_told(self, trial: TrialRecord) -> None:
        """Let a trial without a job start afresh if the user has told so since it failed."""
        search = self._search
        if trial.id in search.retried:
            search.retried.remove(trial.id)
            first = search.scheduler.readmit(trial.id)
            trial.start_afresh(search.first_stretch(first, trial.config))
            search.ended -= 1
            self.enqueue(trial)

    # ------------------------------------------------------------------------------- the end of a trial

    def pause(self, trial: TrialRecord) -> None:
        """Let a trial wait until it is resumed."""
        trial.enter(TrialState.PAUSED)
        self._search.paused.add(trial.id)

    def conclude(self, trial: TrialRecord, state: TrialState, reason: str) -> None:
        """End a trial."""
        self._search.paused.discard(trial.id)
        trial.enter(state)
        trial.reason = reason
        self._search.ended += 1
        if trial.id not in self._search.cut_off:
            self._search.stop.end(self._search.ended)
        if self._search.is_confirming:
            return  # the searcher must not learn of it
        last = trial.last
        metric = last[1] if last is not None and state is not TrialState.FAILED else None
        finished = TrialFinished(trial.id, state, metric, reason)
        objectives = self._search.settings.objectives
        reached = trial.reached.get(last[0]) if last is not None and metric is not None else None
        if objectives is not None and reached is not None:
            values = objectives.plain(reached)
            finished = replace(finished, values=values, violations=reached.violations)
        self._search.instructions.append(finished)

    def _complete(self, trial: TrialRecord) -> None:
        """End a trial whose training function has ended by itself: its last report is its result."""
        self._search.scheduler.remove(trial.id)
        self._faults.forget(trial.id)
        reason = f"its training function ended by itself after epoch {trial.epoch}"
        self.conclude(trial, TrialState.COMPLETED, reason)
        self.dismiss()

    def fail(self, trial: TrialRecord, cause: str) -> None:
        """End a trial that cannot go on."""
        self._search.scheduler.remove(trial.id)
        self._search.cluster_state.dequeue(trial.id)
        self._faults.forget(trial.id)
        self.conclude(trial, TrialState.FAILED, cause)
        self.dismiss()

    def stop(self, trial: TrialRecord) -> None:
        """End a trial that the user does not want to go on."""
        self.tell_to_leave(trial, "stopped")
        self._search.scheduler.remove(trial.id)
        self._search.cluster_state.dequeue(trial.id)
        self._faults.forget(trial.id)
        self.conclude(trial, TrialState.STOPPED, "stopped by the user")
        self.dismiss()

    def dismiss(self) -> None:
        """Conclude the paused trials that a complete rung leaves behind.

        The scheduler was told that nobody will come any more; a larger budget may have made that untrue.
        """
        if self._search.unproposed:
            return
        for decision in self._search.scheduler.dismiss():
            state = TrialState.COMPLETED if decision.completed else TrialState.STOPPED
            self.conclude(self._search.trials[decision.trial], state, decision.reason)

    def stop_all(self) -> None:
        """Stop every trial that has not ended, and want no more: the search has found enough."""
        search = self._search
        self.note_exhaustion()
        # What was decided in this very event and is not wanted any more; jobs are told to leave instead.
        search.instructions = [
            i for i in search.instructions if not isinstance(i, ContinueJob | ProposeTrial)
        ]
        for trial in tuple(search.trials.values()):
            if not trial.state.is_final:
                self.tell_to_leave(trial, "stopped")
                search.scheduler.remove(trial.id)
                search.cluster_state.dequeue(trial.id)
                self._faults.forget(trial.id)
                self.conclude(trial, TrialState.STOPPED, f"stop_when: {search.stop.reason}")

    def cut_off(self, trial: TrialRecord, *, spent: bool = False) -> None:
        """End a trial that the budget does not last for; the scheduler keeps its place."""
        search = self._search
        search.cut_off[trial.id] = trial.state is TrialState.PAUSED
        self.tell_to_leave(trial, "stopped")
        search.cluster_state.dequeue(trial.id)
        self._faults.forget(trial.id)
        self.conclude(trial, TrialState.STOPPED, search.budget.give_up(spent=spent))

    def cut_off_new(self) -> None:
        """Want no more trials: the budget does not last until a new one is judged."""
        search = self._search
        search.budget.give_up(spent=False)
        search.is_proposing, search.num_samples = False, len(search.trials)
        search.scheduler.close()
        self.dismiss()

    def cut_off_all(self) -> None:
        """End every trial: the budget is spent."""
        search = self._search
        search.budget.give_up(spent=True)
        search.is_proposing, search.num_samples = False, len(search.trials)
        search.instructions = [
            i for i in search.instructions if not isinstance(i, ContinueJob | ProposeTrial)
        ]
        for trial in tuple(search.trials.values()):
            if not trial.state.is_final:
                self.cut_off(trial, spent=True)

    def conclude_paused(self) -> None:
        """Stop all paused trials: nobody will come who could let them go on."""
        for trial in self._search.trials.values():
            if trial.state is TrialState.PAUSED and self._search.budget.reason:
                self.cut_off(trial)
            elif trial.state is TrialState.PAUSED:
                self._search.scheduler.remove(trial.id)
                self.conclude(trial, TrialState.STOPPED, trial.reason or "never promoted")
