"""What the machine remembers of a search: the one object that its parts share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from parsl_rasda.orchestration.budget import BudgetWatch
from parsl_rasda.orchestration.events import EpochReported, Instruction
from parsl_rasda.orchestration.pilots import PilotRegistry
from parsl_rasda.orchestration.stopping import StopWatch, StopWhen
from parsl_rasda.orchestration.trial_record import LiveJob, TrialRecord
from parsl_rasda.placement.cluster_state import ClusterState, GrowthPolicy
from parsl_rasda.placement.times import Assumed
from parsl_rasda.scheduling.base import Decision, Multiobjective, Scheduler
from parsl_rasda.scheduling.batching import Batching, Split
from parsl_rasda.scheduling.objectives import Objectives
from parsl_rasda.types import JSON, JobId, JudgedBy, Keep, Method, Mode, PilotId, Stretch, StudyState, TrialId


@dataclass(frozen=True, slots=True)
class MachineSettings:
    """What the machine must know of the study.

    Attributes:
        num_workers: World size at which trials start.
        world_size_step: Ratio between neighbouring world sizes.
        max_retries: Lost attempts a trial may have.
        checkpoints_shared: All sites reach the checkpoints, so that a trial may change its site.
        keep: Whose checkpoints stay when trials have ended.
        keep_best: How many of the best trials keep theirs.
        keep_rungs: They keep the checkpoints of their rungs, too.
        best: Which of its epochs a trial is compared with the others by, in the end.
        stop_when: When the search has found enough.
        objectives: By what trials are judged, if not by one metric alone.
        test_metric: What nobody looks at before the search is over, if there is one.
        interactive: Trainings ask what to do at each epoch, where there is a channel; scripts never do.
        batching: How many replicas share a step, and how large it is.
    """

    metric: str
    mode: Mode
    num_workers: int = 1
    world_size_step: int = 2
    max_retries: int = 2
    assumed: Assumed = field(default_factory=Assumed)
    checkpoints_shared: bool = False
    interactive: bool = True
    batching: Batching = field(default_factory=Batching)
    keep: Keep = Keep.ALL
    keep_best: int = 1
    keep_rungs: bool = False
    best: JudgedBy = JudgedBy.LAST
    stop_when: StopWhen = field(default_factory=StopWhen)
    objectives: Objectives | None = None
    test_metric: str | None = None


@dataclass(slots=True)
class Trials:
    """A set of trials with what decides about it: all that a search and its confirmation do not share.

    Attributes:
        as in `SearchRecord`.
    """

    scheduler: Scheduler
    stop: StopWatch
    trials: dict[TrialId, TrialRecord]
    num_samples: int
    ended: int
    exhausted_at: int = 0
    added: int = 0
    paused: set[TrialId] = field(default_factory=set)
    retried: set[TrialId] = field(default_factory=set)
    cut_off: dict[TrialId, bool] = field(default_factory=dict)


@dataclass(slots=True)
class SearchRecord:
    """Where a search stands. Every part of the machine reads and changes it while an event is handled.

    Attributes:
        paused: Trials that may be resumed.
        jobs: The trial of each live job.
        num_samples: Trials wanted in all.
        ended: Trials in a final state.
        exhausted_at: Trials that were wanted when the searcher had no more.
        is_proposing: The searcher has been asked and has not answered.
        is_over: `FinishStudy` has been returned.
        code: The digest of each module of the study's own, as jobs run it that start now.
        interruption: Why it was interrupted, if not by the user.
        counts_samples: Whether its first report said how many samples an epoch has; None before it.
        now: Time of the event that is handled [s].
        instructions: What follows from it, so far.
        stop: Says when the search has found enough.
        budget: Says until when its budget lasts.
        told: Number of the last request of the user's.
        added: Trials that the user has added, beside those that the study wants.
        at_most: Trials that may run at a time; 0 for any number.
        method: By which it goes on since the user has changed that; None before.
        retried: Trials that failed and start afresh once their jobs have left.
        cut_off: Trials that the budget has ended, and whether each was paused: a larger one lets them go on.
        is_confirming: Its trials are those of the confirmation, for as long as they train.
    """

    settings: MachineSettings
    scheduler: Scheduler
    growth: GrowthPolicy
    cluster_state: ClusterState
    pilots: PilotRegistry = field(default_factory=PilotRegistry)
    trials: dict[TrialId, TrialRecord] = field(default_factory=dict)
    paused: set[TrialId] = field(default_factory=set)
    jobs: dict[JobId, TrialRecord] = field(default_factory=dict)
    state: StudyState = StudyState.RUNNING
    num_samples: int = 0
    ended: int = 0
    exhausted_at: int = 0
    is_proposing: bool = False
    is_over: bool = False
    code: Mapping[str, str] = field(default_factory=dict)
    interruption: str = ""
    counts_samples: bool | None = None
    now: float = 0.0
    instructions: list[Instruction] = field(default_factory=list)
    stop: StopWatch = field(init=False)
    budget: BudgetWatch = field(default_factory=BudgetWatch)
    method: Method | None = None
    told: int = 0
    added: int = 0
    at_most: int = 0
    retried: set[TrialId] = field(default_factory=set)
    cut_off: dict[TrialId, bool] = field(default_factory=dict)
    is_confirming: bool = False
    _ladders: dict[tuple[int, int], tuple[int, ...]] = field(default_factory=dict)  # by rung and replicas

    def __post_init__(self) -> None:
        """Watch for what the study wants to find."""
        self.stop = StopWatch(self.settings.stop_when, self.settings.metric, self.settings.mode)

    def exchange(self, trials: Trials) -> None:
        """Change its trials for others: the record that is given has the former ones after it."""
        for one in fields(Trials):
            mine = getattr(self, one.name)
            setattr(self, one.name, getattr(trials, one.name))
            setattr(trials, one.name, mine)

    def lacks(self, num_samples: int) -> bool:
        """Whether trials are missing to so many that the searcher may have."""
        is_ended = self.stop.reason or self.budget.reason
        return not is_ended and num_samples + self.added > max(len(self.trials), self.exhausted_at)

    @property
    def unproposed(self) -> int:
        """Trials that are wanted and have not been proposed."""
        missing = self.num_samples - len(self.trials)
        return missing if missing > 0 else 0

    @property
    def is_full(self) -> bool:
        """Whether as many trials run as may run at a time."""
        return 0 < self.at_most <= len(self.jobs)

    @property
    def is_unfinished(self) -> bool:
        """Whether a trial is missing or has not ended."""
        return self.ended < len(self.trials) or self.unproposed > 0

    @property
    def is_draining(self) -> bool:
        """Whether some train and nobody who may start waits for slots, so that idle pilots may go."""
        is_calm = bool(self.jobs) and (self.is_full or not (self.cluster_state.kinds or self.unproposed))
        return self.state is StudyState.RUNNING and is_calm

    def note_samples(self, trial: TrialRecord, samples: int | None) -> None:
        """Note how many samples an epoch has, as the first report of a trial says.

        A search that an earlier version began, which did not count them, goes on without.
        """
        if self.counts_samples is None:
            self.counts_samples = samples is not None
        if self.counts_samples and not trial.history:
            trial.samples = samples

    def report(self, event: EpochReported, metric: float) -> Decision:
        """Return what the scheduler says of an epoch, by all metrics if several count."""
        trial = event.job.trial
        if self.settings.objectives is None or not isinstance(self.scheduler, Multiobjective):
            return self.scheduler.report(trial, event.epoch, metric)
        return self.scheduler.report_all(trial, event.epoch, event.metrics)

    def first_stretch(self, first: Decision, config: Mapping[str, JSON]) -> Stretch:
        """Return what a new trial trains, as the scheduler has decided."""
        split = self.settings.batching.split(self._ladder(first), config, None)
        return Stretch(0, first.until, *split)

    @property
    def new_stretch(self) -> Stretch:
        """What a trial that nobody has proposed yet trains until it is first judged."""
        return Stretch(0, self.scheduler.milestones[0], *self.split(0))

    def stretch_ahead(self, trial: TrialRecord, decision: Decision) -> Stretch:
        """Return what a trial trains from now on, as the scheduler has decided.

        Its noise counts at a rung only, as it was since the rung before.
        """
        noise = None
        if trial.noise and decision.until != trial.until:
            noise = trial.noise_between(self._milestone_before(trial.epoch), trial.epoch)
        split = self.settings.batching.split(
            self._ladder(decision),
            trial.config,
            trial.samples,
            batches=trial.schedule[-1].batches,
            noise_scale=noise.scale if noise is not None else None,
        )
        return Stretch(trial.epoch, decision.until, *split)

    def note_ladder(self) -> None:
        """Note that the scheduler has other rungs, or other replicas on the way to them."""
        self._ladders.clear()
        self.cluster_state.max_epochs = self.scheduler.milestones[-1]

    def _ladder(self, decision: Decision) -> tuple[int, ...]:
        key = decision.rung, decision.replicas
        ladder = self._ladders.get(key)
        if ladder is None:
            below = map(self.scheduler.replicas, range(decision.rung))
            ladder = self._ladders[key] = (*below, decision.replicas)
        return ladder

    def _milestone_before(self, epoch: int) -> int:
        return max((m for m in self.scheduler.milestones if m < epoch), default=0)

    def split(self, rung: int) -> Split:
        """Return the parallelism on the way to a rung, for a trial whose samples nobody has counted."""
        ladder = [*map(self.scheduler.replicas, range(rung + 1))]
        return self.settings.batching.split(ladder, {}, None)

    def live_job(self, job: JobId) -> tuple[TrialRecord, LiveJob] | None:
        """Return a trial and its live job, or None for a stale attempt."""
        trial = self.trials.get(job.trial)
        live = trial.job if trial is not None else None
        if trial is None or live is None or live.id.attempt != job.attempt:
            return None
        return trial, live

    def lasts_to_rung(self, trial: TrialId, stretch: Stretch) -> bool:
        """Whether the budget lasts until a trial that starts now has trained a stretch; if unknown, it does.

        Args:
            trial: Known or not.
            stretch: What it would train, on as many GPUs as the method gives.
        """
        return self._lasts(trial, stretch, self.cluster_state.times.seen_launch_s)

    def lasts_on(self, trial: TrialRecord, world_size: int, *, at_rung: bool) -> bool:
        """Whether the budget lasts for the next epoch of a running trial, at a rung for its next stretch."""
        if at_rung and not self._lasts(trial.id, trial.stretch, 0.0):
            return False
        epoch_s = self.cluster_state.times.seen_epoch_s(trial.id, world_size)
        return self.budget.has_room(self.now, epoch_s or 0.0)

    def _lasts(self, trial: TrialId, stretch: Stretch, start_s: float) -> bool:
        epoch_s = self.cluster_state.times.seen_epoch_s(trial, stretch.workers)
        needed_s = 0.0 if epoch_s is None else start_s + epoch_s * (stretch.until - stretch.epoch)
        return self.budget.has_room(self.now, needed_s)

    def close_pilot(self, pilot: PilotId) -> None:
        """Start nothing more on a pilot; what runs there goes on."""
        self.pilots.closing.add(pilot)
        self.cluster_state.ledger.remove_pilot(pilot)
