"""What another version decided stands: a search is brought to where a journal ends without deciding anything.

Events tell what happened, recorded instructions what was decided. The scheduler is told both: where it would
have decided otherwise, it is made to let a trial go on, or to give it up. Slots are not accounted for: the
controller that held them is gone, and the next `StudyStarted` begins with none.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from parsl_rasda.orchestration.budget import is_of_budget
from parsl_rasda.orchestration.events import (
    ContinueJob,
    EndJob,
    EpochReported,
    Event,
    FinishStudy,
    Instruction,
    JobEnded,
    JobStarted,
    PilotEnded,
    PilotStarted,
    ProposeTrial,
    RequestPilot,
    SearchExhausted,
    StartJob,
    StudyInterrupted,
    StudyStarted,
    TrialFinished,
    TrialProposed,
    UserTold,
)
from parsl_rasda.orchestration.lifecycle import TrialLifecycle
from parsl_rasda.orchestration.search_record import SearchRecord
from parsl_rasda.orchestration.states import JobState
from parsl_rasda.orchestration.trial_record import LiveJob, TrialRecord
from parsl_rasda.protocol import Checkpoint
from parsl_rasda.scheduling.base import Action, Decision
from parsl_rasda.types import JobId, Outcome, StudyState, TrialId, TrialState


@runtime_checkable
class Persuadable(Protocol):
    """A scheduler that lets a trial go on although it would not: another version has decided so."""

    def promote(self, trial: TrialId) -> Decision:
        """Let a trial that paused or stopped at a rung go on to the next one."""
        ...


class CannotFollowError(Exception):
    """What was decided does not go with this version, in words."""


class Follower:
    """Follows the records of a journal; see `follow`."""

    def __init__(self, search: SearchRecord, lifecycle: TrialLifecycle) -> None:
        """Work on a search, whose trials change by their lifecycle."""
        self._search, self._lifecycle = search, lifecycle
        self._would_go_on: dict[TrialId, Decision] = {}  # they paused, and need not have
        self._resizing: dict[TrialId, float] = {}  # since when [s]

    def follow(self, event: Event, instructions: tuple[Instruction, ...]) -> None:
        """Apply one record.

        Raises:
            CannotFollowError: If this version has no way to go on from it.
        """
        self._search.now = event.at
        self._note(event, instructions)
        for instruction in instructions:
            self._carry(instruction)

    def settle(self) -> None:
        """Let the trials go on that this version would not have paused: it will not resume them either."""
        for name in tuple(self._would_go_on):
            trial = self._search.trials[name]
            self._unpause(trial)
            if trial.job is None:
                self._lifecycle.enqueue(trial)
            else:
                trial.enter(TrialState.RUNNING)  # still leaving: it waits once it has left

    def _unpause(self, trial: TrialRecord) -> bool:
        """Take the scheduler at its word if it would not have paused a trial; return whether that is so."""
        answer = self._would_go_on.pop(trial.id, None)
        if answer is not None:
            self._search.paused.discard(trial.id)
            trial.train_on(self._search.stretch_ahead(trial, answer), answer.rung)
        return answer is not None

    # ------------------------------------------------------------------------------- what happened

    def _note(self, event: Event, instructions: tuple[Instruction, ...]) -> None:  # noqa: C901  # as there
        search, lifecycle = self._search, self._lifecycle
        match event:
            case StudyStarted():
                lifecycle.take_up(event)
                search.pilots.requested.clear()
                lifecycle.close_if_full()
            case PilotStarted():
                search.pilots.started(event)
                search.close_pilot(event.pilot)  # its slots are another version's
            case PilotEnded():
                search.pilots.ended(event)
            case TrialProposed():
                lifecycle.admit(event)
                lifecycle.close_if_full()
            case SearchExhausted():
                lifecycle.note_exhaustion()
                lifecycle.close_if_full()
            case JobStarted():
                lifecycle.note_started(event)
            case EpochReported():
                self._note_epoch(event, instructions)
            case JobEnded():
                self._note_end(event)
            case UserTold():
                lifecycle.note_told(event)
            case StudyInterrupted() if not search.is_over:
                search.state = StudyState.INTERRUPTED
            case _:
                pass

    def _note_epoch(self, event: EpochReported, instructions: tuple[Instruction, ...]) -> None:
        found = self._search.live_job(event.job)
        if found is None or found[0].state.is_final:
            return
        trial, job = found
        metric = self._lifecycle.note_epoch(trial, job, event)
        answer = self._search.report(event, metric)
        trial.rung, trial.reason = answer.rung, answer.reason or trial.reason
        ends = (i for i in instructions if isinstance(i, TrialFinished) and i.trial == trial.id)
        if any(not is_of_budget(i.reason) for i in ends):
            return
        was_paused = EndJob(job.id, "paused") in instructions
        if was_paused or (job.is_leaving and answer.action is Action.PAUSE):
            self._lifecycle.pause(trial)
            if answer.action is Action.CONTINUE:
                self._would_go_on[trial.id] = answer
        else:
            self._let_on(trial, answer)

    def _let_on(self, trial: TrialRecord, answer: Decision | None = None) -> None:
        """Let a trial go on, whatever the scheduler has answered."""
        scheduler = self._search.scheduler
        if answer is None or answer.action is not Action.CONTINUE:
            if not isinstance(scheduler, Persuadable):
                raise CannotFollowError(f"its scheduler cannot let trial {trial.id} go on")
            answer = scheduler.promote(trial.id)
        self._would_go_on.pop(trial.id, None)
        trial.train_on(self._search.stretch_ahead(trial, answer), answer.rung)

    def _note_end(self, event: JobEnded) -> None:
        found = self._search.live_job(event.job)
        if found is None:
            return
        trial, job = found
        was_told = job.is_leaving
        self._lifecycle.forget_job(trial, job)
        self._search.pilots.vacate(job.placement.pilot, event.at)
        self._lifecycle.note_checkpoint(trial, job, event)
        self._lifecycle.retry_if_told(trial)
        if trial.state is not TrialState.RUNNING:
            return
        if event.outcome is Outcome.PREEMPTED:
            trial.preemptions += 1
        elif event.outcome is Outcome.LOST and not was_told:
            trial.retries += event.unreadable is None
            trial.reason = event.cause
        self._lifecycle.enqueue(trial)

    # ------------------------------------------------------------------------------- what was decided

    def _carry(self, instruction: Instruction) -> None:
        search = self._search
        match instruction:
            case RequestPilot():
                search.pilots.note_requested(instruction)
            case ProposeTrial():
                search.is_proposing = True
            case StartJob():
                self._start(instruction)
            case ContinueJob(job, until):
                self._job_of(job)[1].until = until
            case EndJob(job, reason):
                self._end(job, reason)
            case TrialFinished():
                self._finish(instruction)
            case FinishStudy(state, cause):
                is_at_its_end = state is StudyState.DONE or (state is StudyState.FAILED and not cause)
                if is_at_its_end or is_of_budget(cause):
                    self._note_unwanted()
                search.state, search.is_over = state, True
                search.budget.close(search.now)
            case _:
                pass

    def _job_of(self, job: JobId) -> tuple[TrialRecord, LiveJob]:
        found = self._search.live_job(job)
        if found is None:
            raise CannotFollowError(f"job {job} does not run")
        return found

    def _start(self, start: StartJob) -> None:
        search, job = self._search, start.job
        trial, pilot = search.trials[job.trial], search.pilots.up[start.placement.pilot]
        if trial.state is TrialState.STOPPED:  # by a change of the method, which let it go on
            search.ended -= 1
            trial.enter(TrialState.PAUSED)
        if trial.state is TrialState.PAUSED:
            search.paused.discard(trial.id)
            self._let_on(trial)
        search.cluster_state.dequeue(trial.id)
        trial.enter(TrialState.RUNNING)
        trial.attempt, trial.site, trial.epoch = job.attempt, start.placement.site, start.epoch
        if start.resume_from is None:
            trial.checkpoint = trial.previous = None
        elif trial.checkpoint is None or trial.checkpoint.path != start.resume_from:
            trial.checkpoint, trial.previous = Checkpoint(start.resume_from, start.epoch), None
        if trial.entries != start.schedule:
            raise CannotFollowError(f"trial {trial.id} would have other replicas or milestones")
        since = self._resizing.pop(trial.id, None)
        trial.job = LiveJob(
            job,
            start.placement,
            start.until,
            search.settings.interactive and pilot.interactive,
            search.now if since is None else since,
            resized=since is not None,
        )
        search.jobs[job] = trial
        search.pilots.occupy(pilot.pilot)

    def _end(self, job: JobId, reason: str) -> None:
        trial, live = self._job_of(job)
        live.enter(JobState.LEAVING)
        live.leaving_since = self._search.now
        if reason == "resize":
            self._resizing[trial.id] = self._search.now

    def _finish(self, finished: TrialFinished) -> None:
        search, trial = self._search, self._search.trials[finished.trial]
        if trial.state is finished.state:
            return  # by a change of the method, which both versions took alike
        if is_of_budget(finished.reason):
            self._cut_off(trial, finished.reason)
            return
        search.scheduler.remove(trial.id)  # one that it has stopped stays as it is
        search.cluster_state.dequeue(trial.id)
        self._would_go_on.pop(trial.id, None)
        if trial.state is TrialState.PAUSED and finished.state is not TrialState.STOPPED:
            trial.enter(TrialState.RUNNING)  # it was resumed while its job still left, which is not recorded
        self._lifecycle.conclude(trial, finished.state, finished.reason)

    def _note_unwanted(self) -> None:
        """Note that the budget did not last for new trials, which no record of its own says."""
        search = self._search
        if search.unproposed and search.budget.is_limited and not search.stop.reason:
            search.budget.give_up(spent=not search.budget.has_room(search.now))
            search.num_samples = len(search.trials)
            search.scheduler.close()

    def _cut_off(self, trial: TrialRecord, reason: str) -> None:
        """End a trial that the budget did not last for; the scheduler keeps its place."""
        search = self._search
        is_paused = trial.state is TrialState.PAUSED and not self._unpause(trial)
        search.cut_off[trial.id] = is_paused
        search.budget.reason = search.budget.reason or reason
        search.cluster_state.dequeue(trial.id)
        self._lifecycle.conclude(trial, TrialState.STOPPED, reason)
