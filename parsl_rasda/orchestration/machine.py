"""The study as a state machine: one event in, the instructions that follow from it out.

The live driver, the simulator behind `plan` and crash recovery drive this same object. It reads no
clock and starts nothing; the same events give the same instructions.

Life of a trial: WAITING (for slots) -> RUNNING -> at each rung CONTINUE, PAUSED or a final state.
A trial changes its world size by leaving at an epoch boundary and starting again, from the
checkpoint written there, as a new attempt.

The machine says what follows from each event. Its parts share one `SearchRecord`: `TrialLifecycle`
changes trials and jobs, `FaultModel` says whose fault their ends were, `Allocator` hands out slots,
`PilotRegistry` knows the pilots, `Completion` ends the search; `Invariants` checks all of it, in tests.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import assert_never

from msgspec.structs import replace

from parsl_rasda.orchestration.allocator import Allocator
from parsl_rasda.orchestration.budget import BudgetWatch
from parsl_rasda.orchestration.completion import Completion
from parsl_rasda.orchestration.confirmation import Confirmation
from parsl_rasda.orchestration.events import (
    CodeSeen,
    EpochReported,
    Event,
    Instruction,
    JobEnded,
    JobStarted,
    ObserveTrial,
    PilotEnded,
    PilotLost,
    PilotQueued,
    PilotStarted,
    ReleasePilot,
    SearchExhausted,
    SiteDegraded,
    StudyInterrupted,
    StudyStarted,
    TimerFired,
    TrialProposed,
    UserTold,
    VersionChanged,
)
from parsl_rasda.orchestration.fault_model import FaultModel
from parsl_rasda.orchestration.follower import Follower
from parsl_rasda.orchestration.invariants import Invariants, are_validated
from parsl_rasda.orchestration.lifecycle import TrialLifecycle
from parsl_rasda.orchestration.search_record import MachineSettings, SearchRecord
from parsl_rasda.orchestration.trial_record import LiveJob, TrialRecord
from parsl_rasda.placement.cluster_state import ClusterState, GrowthPolicy
from parsl_rasda.placement.ledger import Ledger
from parsl_rasda.placement.times import Times
from parsl_rasda.scheduling.base import Action, Decision, Scheduler
from parsl_rasda.scheduling.batching import Split
from parsl_rasda.types import Budget, Method, Outcome, PilotId, StudyState, TrialId, TrialState

__all__ = ["Machine", "MachineSettings"]


class Machine:
    """Turns events into instructions; see `handle`."""

    def __init__(
        self,
        settings: MachineSettings,
        scheduler: Scheduler,
        growth: GrowthPolicy,
        *,
        validate: bool | None = None,
    ) -> None:
        """Create the machine of a study that has not begun.

        Args:
            settings: What it must know of the study.
            scheduler: Who trains on.
            growth: Who gets which slots.
            validate: Check the invariants after every event; by default as the environment says.
        """
        self.settings, self.scheduler = settings, scheduler
        self.cluster_state = ClusterState(
            Ledger(),
            Times(settings.assumed),
            num_workers=settings.num_workers,
            max_epochs=scheduler.milestones[-1],
            step=settings.world_size_step,
        )
        self._search = SearchRecord(settings, scheduler, growth, self.cluster_state)
        self.jobs, self.pilots = self._search.jobs, self._search.pilots
        self.faults = FaultModel(self._search)
        self._lifecycle = TrialLifecycle(self._search, self.faults)
        self._allocator = Allocator(self._search, self._lifecycle)
        self.confirmation = Confirmation(self._search, self._lifecycle, self.faults)
        self._completion = Completion(
            self._search, self._lifecycle, self._allocator, self.faults, self.confirmation
        )
        self._follower: Follower | None = None
        is_validated = are_validated() if validate is None else validate
        self._invariants = Invariants(self._search) if is_validated else None

    @property
    def trials(self) -> dict[TrialId, TrialRecord]:
        """The search's own trials, without the runs of its confirmation."""
        return self.confirmation.searched.trials

    @property
    def is_confirming(self) -> bool:
        """Whether the search is decided, and its best trials are trained again."""
        return self._search.is_confirming

    def record_of(self, trial: TrialId) -> TrialRecord:
        """Return what is known of a trial, or of a run of the confirmation."""
        return self.confirmation.runs[trial] if trial in self.confirmation.runs else self.trials[trial]

    @property
    def growth(self) -> GrowthPolicy:
        """Who gets which slots."""
        return self._search.growth

    @property
    def state(self) -> StudyState:
        """Where the study stands."""
        return self._search.state

    @property
    def code(self) -> Mapping[str, str]:
        """The digest of each module of the study's own, as jobs run it that start now; none if unknown."""
        return self._search.code

    @property
    def method(self) -> Method | None:
        """The method by which it goes on, if the user has changed that."""
        return self._search.method

    @property
    def is_changed(self) -> bool:
        """Whether the user has changed what decides, or has decided something, since it began."""
        return self._search.method is not None or self._search.told > 0

    @property
    def told(self) -> int:
        """The number of the last request of the user's; 0 if there was none."""
        return self._search.told

    @property
    def at_most(self) -> int:
        """Trials that may run at a time, as the user has said; 0 for any number."""
        return self._search.at_most

    @property
    def stop_reason(self) -> str:
        """Why the search stopped before it had all trials, as the study wants it; empty if it did not."""
        return self.found or self._search.budget.reason

    @property
    def found(self) -> str:
        """What the search has found, in words, by which it wants no further trial; empty if it has not."""
        return self.confirmation.searched.stop.reason

    @property
    def num_samples(self) -> int:
        """Trials wanted in all."""
        return self.confirmation.searched.num_samples

    def split(self, rung: int) -> Split:
        """Return the parallelism on the way to a rung, for a trial whose samples nobody has counted."""
        return self._search.split(rung)

    @property
    def budget(self) -> BudgetWatch:
        """What the search may spend, and has spent; to be read."""
        return self._search.budget

    @property
    def cut_off(self) -> Collection[TrialId]:
        """Trials that the budget has ended: they go on when it is larger."""
        return self.confirmation.searched.cut_off.keys()

    def may_go_on(self, num_samples: int, budget: Budget, now: float) -> bool:
        """Whether a search that is done has more to do: trials are missing, or the budget is larger."""
        ended_by_budget = bool(self._search.budget.reason)
        return self._search.budget.allows(budget, now) if ended_by_budget else self.lacks(num_samples)

    def lacks(self, num_samples: int) -> bool:
        """Whether trials are missing to so many that the searcher may have."""
        return self._search.lacks(num_samples)

    def handle(self, event: Event) -> tuple[Instruction, ...]:
        """Apply one event and return what must be done; the only mutator.

        Raises:
            InvariantError: If that contradicts what the machine knows: a bug.
        """
        if self._follower is not None:
            self._follower.settle()
            self._follower = None
        search = self._search
        search.now, search.instructions = event.at, []
        search.budget.note(event)
        self._apply(event)
        if search.budget.is_limited:
            self._stop_as_spent()
        if search.stop.reason:
            self._stop_as_found()
        if self.pilots.idle_since:
            self._release_idle_pilots()
        if self.pilots.dated:
            self._leave_with_allocation()
        if not search.jobs:
            self._completion.finish_if_over()
        if self._invariants is not None:
            self._invariants.check()
        return tuple(search.instructions)

    def follow(self, event: Event, instructions: tuple[Instruction, ...]) -> None:
        """Take one record of another version for decided; only before anything is handled.

        Raises:
            CannotFollowError: If there is no way to go on from what was decided.
        """
        if self._follower is None:
            self._follower = Follower(self._search, self._lifecycle)
        self._search.budget.note(event)
        self._follower.follow(event, instructions)
        self._search.instructions = []

    def _apply(self, event: Event) -> None:  # noqa: C901, PLR0912  # a line for each event
        match event:
            case EpochReported():  # the four that come most often are first
                self._on_epoch(event)
            case JobStarted():
                self._lifecycle.note_started(event)
            case JobEnded():
                self._on_job_ended(event)
            case TrialProposed():
                self._on_proposed(event)
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
            case SearchExhausted():
                self._on_exhausted()
            case TimerFired():
                self._on_timer()
            case SiteDegraded() | VersionChanged() | PilotQueued():
                pass  # it is written down
            case UserTold():
                self._on_told(event)
            case CodeSeen():
                self._search.code = event.modules
            case _:
                assert_never(event)

    @property
    def wake_at(self) -> float | None:
        """When `TimerFired` should be told unless something happens before [s], or None."""
        search = self._search
        if search.state is not StudyState.RUNNING or not search.is_unfinished:
            return None
        pilots = self.pilots.wake_at if search.is_draining else self.pilots.retry_at(search.now)
        due = [pilots, self.pilots.controller_ends_at, self.faults.wake_at, self._allocator.again_at]
        if search.budget.ends_at < math.inf:
            due.append(search.budget.ends_at)
        known = [at for at in due if at is not None]
        return min(known) if known else None

    # ------------------------------------------------------------------------------- the search

    def _on_study_started(self, event: StudyStarted) -> None:
        """Begin, or take up again after a death."""
        search = self._search
        self.confirmation.take_up(event)
        self._lifecycle.take_up(event)
        self._close_if_full()
        self.confirmation.begin()
        if not search.is_unfinished or search.stop.reason or not search.budget.has_room(search.now):
            return  # it died between its last decision and its end, has found enough, or has spent its budget
        for site, wanted in event.sites.items():
            search.instructions.extend(self.pilots.request(site) for _ in range(wanted))
        self.pilots.deferred.update(event.later)
        self.pilots.least.update(event.sites)
        known = {t.site for t in search.trials.values()} | {w.site for w in self.cluster_state.waiting}
        for site in sorted({site for site in known if site} - set(event.sites)):
            self._lifecycle.abandon_site(site)

    def _on_told(self, event: UserTold) -> None:
        search = self._search
        if event.told <= search.told:
            return
        if search.is_confirming:  # the next start takes the rest up: the search itself is decided
            event = replace(event, told=search.told, retry_failed=False)
        self._lifecycle.note_told(event)
        trial = search.trials.get(event.stop) if event.stop is not None else None
        if trial is not None and not trial.state.is_final:
            self._lifecycle.stop(trial)
        self._allocator.allocate()

    def _on_proposed(self, event: TrialProposed) -> None:
        search = self._search
        if search.is_confirming:
            return
        is_awaited = event.told > search.told if event.told else search.is_proposing
        if not is_awaited or event.trial in search.trials:
            return
        self._lifecycle.admit(event)
        self._close_if_full()
        self._allocator.allocate()

    def _on_exhausted(self) -> None:
        if not self._search.is_proposing:
            return
        self._lifecycle.note_exhaustion()
        self._close_if_full()
        self._allocator.allocate()

    def _close_if_full(self) -> None:
        if self._lifecycle.close_if_full():
            self._lifecycle.dismiss()

    def _on_interrupted(self) -> None:
        if self._search.is_over:
            return
        self._search.state = StudyState.INTERRUPTED
        for trial in self.jobs.values():
            self._lifecycle.tell_to_leave(trial, "interrupted")

    def _on_timer(self) -> None:
        """Ask the sites that have cooled down, try again what was set aside, and wait no longer for slots."""
        if self.state is StudyState.RUNNING:
            self._allocator.request_deferred_pilots()
            is_retried = self.faults.retry_due()
            if is_retried:
                self._lifecycle.requeue_doubtful()
            if is_retried or self._allocator.is_due:
                self._allocator.allocate()

    def _stop_as_found(self) -> None:
        """Stop the search: it has found what the study wants."""
        search = self._search
        if search.is_unfinished and search.state is StudyState.RUNNING:
            self._lifecycle.stop_all()

    def _stop_as_spent(self) -> None:
        """End the search at the moment at which its budget is spent."""
        search = self._search
        is_on = search.is_unfinished and search.state is StudyState.RUNNING
        if is_on and not search.budget.has_room(search.now):
            self._lifecycle.cut_off_all()

    # ------------------------------------------------------------------------------- pilots

    def _on_pilot_started(self, event: PilotStarted) -> None:
        if not self.pilots.started(event):
            return
        self.cluster_state.ledger.add_pilot(event.pilot, event.site, event.nodes)
        if not self._completion.refuse_unfit():
            self._allocator.allocate()

    def _on_pilot_lost(self, event: PilotLost) -> None:
        if event.pilot in self.pilots.up:
            self.pilots.lost.add(event.pilot)
            self._search.close_pilot(event.pilot)

    def _on_pilot_ended(self, event: PilotEnded) -> None:
        search = self._search
        is_idle_released = self.pilots.is_idle_released(event.pilot)
        is_controllers_end = self.pilots.must_controller_end(search.now)
        if not self.pilots.ended(event):
            return
        is_unneeded = (is_idle_released and search.is_draining) or self.pilots.is_spare(event.site)
        self.cluster_state.ledger.remove_pilot(event.pilot)
        if search.state is not StudyState.RUNNING:
            return
        if is_controllers_end:
            self._interrupt_with_allocation()
        elif is_unneeded and not self.pilots.none_left:
            self.pilots.defer(event.site)
            self._allocator.request_deferred_pilots()  # unless nobody waits
        elif not self.pilots.must_back_off(event.site):
            if search.is_unfinished:
                search.instructions.append(self.pilots.request(event.site))
        elif self.pilots.is_given_up(event.site) and self.pilots.is_hopeless:
            self._completion.finish(StudyState.NO_SITE, event.cause)
        else:
            self.pilots.back_off(event.site, search.now)
            if self.pilots.is_given_up(event.site) and not self.pilots.has(event.site):
                self._lifecycle.abandon_site(event.site)
                self._allocator.allocate()

    def _close_if_ending(self, pilot: PilotId) -> None:
        """Start nothing more on a pilot whose near end makes jobs leave: they would come and go."""
        if self.pilots.is_ending(pilot, self._search.now):
            self._search.close_pilot(pilot)

    def _release_idle_pilots(self) -> None:
        """Release pilots that are of no use any more: without a job, and near their end or idle for long."""
        search = self._search
        if search.state is not StudyState.RUNNING or not search.is_unfinished:
            return
        for pilot in self.pilots.release_idle(search.now, draining=search.is_draining):
            self.cluster_state.ledger.remove_pilot(pilot)
            search.instructions.append(ReleasePilot(pilot))

    def _leave_with_allocation(self) -> None:
        """Interrupt the search when the allocation that the controller is in is to be left: all save."""
        search = self._search
        if search.state is not StudyState.RUNNING or search.is_proposing:
            return
        if search.is_unfinished and self.pilots.must_controller_end(search.now):
            self._interrupt_with_allocation()

    def _interrupt_with_allocation(self) -> None:
        self._search.interruption = "the allocation that the controller is in has come to its end"
        self._on_interrupted()

    # ------------------------------------------------------------------------------- jobs

    def _on_epoch(self, event: EpochReported) -> None:
        found = self._search.live_job(event.job)
        if found is None:
            return
        trial, job = found
        if trial.state.is_final:
            return  # without a control channel it trains on until it is killed
        if event.epoch <= trial.epoch:
            return  # said twice, or overtaken
        guilty = self.faults.saw_epoch(trial, job, event.epoch)
        metric = self._lifecycle.note_epoch(trial, job, event)
        self._lifecycle.requeue_doubtful()
        for other, cause in guilty:
            self._lifecycle.fail(self._search.trials[other], cause)
        if self._search.stop.reason:
            return  # it is told to leave with all others
        objectives = self.settings.objectives
        if objectives is not None and objectives.missing(event.metrics) is not None:
            metric = math.nan
        self._judge(trial, job, self._search.report(event, metric), metric)

    def _judge(self, trial: TrialRecord, job: LiveJob, decision: Decision, metric: float) -> None:
        """Act on what the scheduler says of a trial at an epoch boundary."""
        goes_on = decision.action is Action.CONTINUE
        at_rung = not goes_on or decision.until != trial.until
        if at_rung and math.isfinite(metric) and not self._search.is_confirming:
            self._search.instructions.append(ObserveTrial(trial.id, trial.epoch, metric))
        trial.rung, trial.reason = decision.rung, decision.reason or trial.reason
        if goes_on:
            if at_rung:  # between rungs nothing changes
                trial.train_on(self._search.stretch_ahead(trial, decision), decision.rung)
            self._answer(trial, job, at_rung=at_rung)
        else:
            self._take_out(trial, decision, metric)
        self._lifecycle.dismiss()
        if not goes_on:
            self._allocator.allocate()

    def _take_out(self, trial: TrialRecord, decision: Decision, metric: float) -> None:
        """Let a trial leave its slots, because it pauses or has come to its end."""
        match decision.action:
            case Action.PAUSE:
                self._lifecycle.pause(trial)
                self._lifecycle.tell_to_leave(trial, "paused")
            case Action.STOP if not math.isfinite(metric):
                self._lifecycle.tell_to_leave(trial, "diverged")
                self._lifecycle.fail(trial, self._divergence(trial, decision, metric))
            case Action.STOP:
                self._lifecycle.tell_to_leave(trial, "stopped")
                state = TrialState.COMPLETED if decision.completed else TrialState.STOPPED
                self._lifecycle.conclude(trial, state, decision.reason)
            case Action.CONTINUE:
                pass
            case _:
                assert_never(decision.action)

    def _divergence(self, trial: TrialRecord, decision: Decision, metric: float) -> str:
        what = f"{self.settings.metric} is {metric}" if self.settings.objectives is None else decision.reason
        return f"{what} after epoch {trial.epoch}"

    def _answer(self, trial: TrialRecord, job: LiveJob, *, at_rung: bool) -> None:
        """Tell the job of a trial that trains on whether it goes on as it is."""
        if job.is_leaving:
            return
        if not job.interactive:
            self._lifecycle.note_running(trial, job)
        elif self.pilots.dated and self._is_too_late(trial, job):
            self._lifecycle.tell_to_leave(trial, "walltime")
        elif self._search.budget.is_limited and not self._search.lasts_on(
            trial, job.placement.world_size, at_rung=at_rung
        ):
            self._lifecycle.cut_off(trial)
        else:
            self._allocator.allocate(trial)

    def _is_too_late(self, trial: TrialRecord, job: LiveJob) -> bool:
        """Whether the pilot will end before the trial's next epoch would, as a fresh one would not."""
        placement = job.placement
        epoch_s = self.cluster_state.times.epoch_s(trial.id, placement.world_size, placement.site)
        return self.pilots.is_too_late(placement.pilot, self._search.now, epoch_s)

    def _on_job_ended(self, event: JobEnded) -> None:
        found = self._search.live_job(event.job)
        if found is None:
            return
        trial, job = found
        was_told = job.is_leaving
        self._lifecycle.forget_job(trial, job)
        self.pilots.vacate(job.placement.pilot, self._search.now)
        if event.outcome is Outcome.PREEMPTED and not was_told:
            self._close_if_ending(job.placement.pilot)
        self._lifecycle.note_checkpoint(trial, job, event)
        target, has_failed = job.next_placement, event.outcome is Outcome.FAILED
        if target is not None and not (trial.state.is_final or event.finished or has_failed):
            self._allocator.move(trial, job, target)
        else:
            self._allocator.release(job)
            self._lifecycle.go_on_after(trial, job, event, was_told=was_told)
            self._lifecycle.retry_if_told(trial)
        if self.faults.all_fail_alike and self.state is StudyState.RUNNING:
            self._completion.give_up()
        self._allocator.allocate()
