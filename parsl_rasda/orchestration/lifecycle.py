"""What the machine knows, and the steps in the life of a trial and of its jobs.

WAITING (for slots) -> RUNNING -> at each rung goes on, PAUSED or a final state.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from parsl_rasda.orchestration.events import (
    EndJob,
    Instruction,
    StartJob,
    TrialFinished,
)
from parsl_rasda.orchestration.pilots import PilotRegistry
from parsl_rasda.orchestration.trial_record import Job, TrialRecord
from parsl_rasda.placement.cluster_state import ClusterState, GrowthPolicy, PendingTrial, RunningTrial
from parsl_rasda.placement.ledger import Ledger
from parsl_rasda.placement.times import Assumed, Times
from parsl_rasda.scheduling.base import Decision, Scheduler
from parsl_rasda.types import (
    JobId,
    Mode,
    PilotId,
    Placement,
    SiteName,
    StudyState,
    TrialId,
    TrialState,
)


@dataclass(frozen=True, slots=True)
class MachineSettings:
    """What the machine must know of the study.

    Attributes:
        num_workers: Width at which trials start.
        width_step: Ratio between neighbouring widths.
        max_retries: Lost attempts a trial may have.
        roaming: Checkpoints are shared, so that a trial may change its site.
        asking: Trainings ask what to do at each epoch, where there is a channel; scripts never do.
    """

    metric: str
    mode: Mode
    num_workers: int = 1
    width_step: int = 2
    max_retries: int = 2
    assumed: Assumed = field(default_factory=Assumed)
    roaming: bool = False
    asking: bool = True


class TrialLifecycle:
    """The state of a study, and what can happen to one of its trials."""

    def __init__(self, settings: MachineSettings, scheduler: Scheduler, growth: GrowthPolicy) -> None:
        """Create the machine of a study that has not begun."""
        self.settings, self.scheduler, self.growth = settings, scheduler, growth
        self.trials: dict[TrialId, TrialRecord] = {}
        self.state = StudyState.RUNNING
        self.jobs: dict[JobId, TrialRecord] = {}
        self.num_samples = 0
        self._all_there_are = 0  # trials that were wanted when the searcher had no more
        self.board = ClusterState(
            Ledger(),
            Times(settings.assumed),
            num_workers=settings.num_workers,
            max_epochs=scheduler.milestones[-1],
            step=settings.width_step,
        )
        self.pilots = PilotRegistry()
        self._proposing = False
        self._is_over = False
        self._now = 0.0
        self._out: list[Instruction] = []

    def lacks(self, num_samples: int) -> bool:
        """Whether trials are missing to so many that the searcher may have."""
        return num_samples > max(len(self.trials), self._all_there_are)

    @property
    def _unproposed(self) -> int:
        return max(0, self.num_samples - len(self.trials))

    @property
    def _is_unfinished(self) -> bool:
        return self._unproposed > 0 or any(not t.state.is_final for t in self.trials.values())

    @property
    def _is_tapering(self) -> bool:
        """Whether nobody waits for slots, so that idle pilots may go."""
        return self.state is StudyState.RUNNING and not (self.board.kinds or self._unproposed)

    def _wait(self, trial: TrialRecord) -> None:
        """Put a trial into the queue, from its last checkpoint."""
        trial.state = TrialState.WAITING
        trial.rewind()
        site = self._site_of(trial)
        self.board.enqueue(
            PendingTrial(trial.id, trial.age, trial.epoch, trial.stretch_end, trial.replicas, site)
        )

    def _site_of(self, trial: TrialRecord) -> SiteName | None:
        """Return the only site that a trial may use, or None.

        One that starts afresh must not outgrow another site that is too small for what it comes to again.
        """
        if self.settings.roaming:
            return None
        if trial.checkpoint is not None:
            return trial.site
        most = trial.schedule[-1][1]
        if most == trial.replicas:
            return None
        width = self.growth.needs(most, self.settings.num_workers)
        fits = {site: self.board.ledger.can_ever_fit(width, site) for site in self.pilots.sites_up}
        return None if all(fits.values()) else next((site for site in sorted(fits) if fits[site]), None)

    def _conclude(self, trial: TrialRecord, state: TrialState, reason: str) -> None:
        trial.state, trial.reason = state, reason
        metric = trial.last[1] if trial.last is not None and state is not TrialState.FAILED else None
        self._out.append(TrialFinished(trial.id, state, metric, reason))

    def _fail(self, trial: TrialRecord, cause: str) -> None:
        self.scheduler.remove(trial.id)
        self._conclude(trial, TrialState.FAILED, cause)
        self._dismiss()

    def _dismiss(self) -> None:
        """Conclude the paused trials that a complete rung leaves behind.

        The scheduler was told that nobody will come any more; a larger budget may have made that untrue.
        """
        if self._unproposed:
            return
        for decision in self.scheduler.dismiss():
            self._conclude(self.trials[decision.trial], TrialState.STOPPED, decision.reason)

    def _job_of(self, job: JobId) -> tuple[TrialRecord, Job] | None:
        """Return the trial and the live job, or None for a stale attempt."""
        trial = self.trials.get(job.trial)
        if trial is None or trial.job is None or trial.job.id != job:
            return None
        return trial, trial.job

    def _start(
        self, trial: TrialRecord, placement: Placement, *, since: float, resized: bool = False
    ) -> None:
        """Start the next attempt of a trial; its slots are held already."""
        trial.state = TrialState.RUNNING
        trial.attempt += 1
        trial.site = placement.site
        trial.rewind()
        asks, answered = self.settings.asking, self.pilots.up[placement.pilot].interactive
        until = self._returns_at(trial, placement) if asks and not answered else trial.stretch_end
        job = Job(JobId(trial.id, trial.attempt), placement, until, asks and answered, since, resized)
        trial.job = job
        self.jobs[job.id] = trial
        self.pilots.occupy(placement.pilot)
        self._note_running(trial, job, delay_s=self.board.times.restart_s if resized else 0.0)
        self._out.append(
            StartJob(
                job.id,
                trial.config,
                placement,
                trial.epoch,
                job.until,
                trial.coming,
                trial.checkpoint,
            )
        )

    def _returns_at(self, trial: TrialRecord, placement: Placement) -> int:
        """Return when a job without a control channel comes back: its trial widens between jobs only.

        Scripts train to their milestone: what they do on the way may depend on where it is.
        """
        at_start = RunningTrial(
            trial.id, trial.age, placement, self._now, trial.epoch, trial.stretch_end, trial.replicas
        )
        return self.growth.returns_at(self.board, at_start)

    def _note_running(self, trial: TrialRecord, job: Job, *, delay_s: float = 0.0) -> None:
        placement = job.placement
        epoch_s = self.board.times.epoch_s(trial.id, placement.width, placement.site)
        # Where it could change its width:
        boundary = trial.epoch + 1 if job.interactive else max(job.until, trial.epoch)
        boundary_at = self._now + delay_s + epoch_s * (boundary - trial.epoch)
        self.board.place(
            RunningTrial(
                trial.id, trial.age, placement, boundary_at, boundary, trial.stretch_end, trial.replicas
            )
        )

    def _end(self, trial: TrialRecord, reason: str) -> None:
        """Tell a live job to leave; its slots are free when `JobEnded` comes."""
        job = trial.job
        if job is None or job.ending is not None:
            return
        job.ending, job.ending_at = reason, self._now
        given_up = job.placement.minus(job.next_placement) if job.next_placement else job.placement
        slots = given_up.width if self.pilots.takes(given_up.pilot) else 0
        self.board.leave(trial.id, given_up.site, slots)
        self._out.append(EndJob(job.id, reason))

    def _go_on(self, trial: TrialRecord, decision: Decision) -> None:
        trial.until, trial.rung = decision.until, decision.rung
        if decision.replicas != trial.schedule[-1][1]:
            trial.schedule.append((trial.epoch, decision.replicas))

    def _close(self, pilot: PilotId) -> None:
        """Start nothing more on a pilot; what runs there goes on."""
        self.pilots.closing.add(pilot)
        self.board.ledger.remove_pilot(pilot)
