"""What the machine remembers of a trial and of its running job."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import nsmallest
from itertools import pairwise
from statistics import fmean

from parsl_rasda.orchestration.states import JOB_TRANSITIONS, TRIAL_TRANSITIONS, JobState, impossible
from parsl_rasda.placement.ledger import Slot, slots_of
from parsl_rasda.protocol import Checkpoint
from parsl_rasda.scheduling.objectives import Values, places
from parsl_rasda.types import (
    JSON,
    GradientNoise,
    JobId,
    Mode,
    Placement,
    ScheduleEntry,
    SiteName,
    Stretch,
    TrialId,
    TrialState,
)

EXACT = "yes"  # what a report says whose bits are those of any width


@dataclass(slots=True)
class LiveJob:
    """A job that was started and whose `JobEnded` has not come yet.

    Attributes:
        until: Where it ends if it is not asked before: at its trial's milestone, or on the way.
        since: When its start became due [s]: the boundary for a resize, else the start itself.
        resized: It replaces a job of another world size, so its start measures a restart.
        state: Set by `enter` alone.
        is_timed: Its start has been measured.
        leaving_since: When it was told to leave [s].
        next_placement: Where its trial goes on once it has left for other slots.
    """

    id: JobId
    placement: Placement
    until: int
    interactive: bool
    since: float
    resized: bool = False
    state: JobState = JobState.STARTING
    is_timed: bool = False
    leaving_since: float = 0.0
    next_placement: Placement | None = None
    slots: frozenset[Slot] = field(init=False)

    def __post_init__(self) -> None:
        """Note its slots: they are looked at whenever it reports."""
        self.slots = slots_of(self.placement)

    def enter(self, state: JobState) -> None:
        """Change the state of the job.

        Raises:
            InvariantError: If that state must not follow the present one.
        """
        if state not in JOB_TRANSITIONS[self.state]:
            raise impossible(self.state, state, f"job {self.id}")
        self.state = state

    @property
    def is_leaving(self) -> bool:
        """Whether it was told to leave."""
        return self.state is JobState.LEAVING


@dataclass(frozen=True, slots=True)
class BestEpoch:
    """The best epoch of a trial that a checkpoint holds, and that checkpoint."""

    metric: float
    checkpoint: Checkpoint


@dataclass(slots=True)
class TrialRecord:
    """One configuration through its life.

    Attributes:
        age: Position in the order of creation.
        schedule: Its stretches so far, without a gap; the last one ends at its next milestone.
        state: Set by `enter` alone.
        epoch: Epochs that stand: a checkpoint holds them, or the live job has finished them.
        checkpoint: Newest whole checkpoint; None means a start from scratch.
        previous: The checkpoint before that one, should the newest one be gone.
        reported: The newest one that came with an epoch; one that is written on leaving may be of mid-epoch.
        best: Its best epoch, if the study asks for it.
        rung_checkpoints: Paths of the checkpoints that it keeps, by milestone.
        site: Where the checkpoints are.
        retries: Retries spent.
        checkpoint_losses: Checkpoints that were gone when they were asked for.
        preemptions: Preemptions since the last finished epoch.
        codes: Digests of the study's code that its attempts have run, each once.
        history: Metric by epoch, as reported; a repeated epoch replaces its first report.
        reached: All that it is judged by, by epoch, if that is more than one metric.
        samples: Training samples of an epoch, as its first report said.
        noise: Of its gradients by epoch, where it was measured; repeated epochs as in ``history``.
        exactness: What its attempts have said of their bits, each once.
        devices: Models of the GPUs that it has trained on, each once.
        tests: The test metric by epoch, as in ``history``; nothing is decided by it.
    """

    id: TrialId
    age: int
    config: Mapping[str, JSON]
    schedule: list[Stretch]
    state: TrialState = TrialState.WAITING
    attempt: int = 0
    epoch: int = 0
    checkpoint: Checkpoint | None = None
    previous: Checkpoint | None = None
    reported: Checkpoint | None = None
    best: BestEpoch | None = None
    rung_checkpoints: dict[int, str] = field(default_factory=dict)
    site: SiteName | None = None
    retries: int = 0
    checkpoint_losses: int = 0
    preemptions: int = 0
    rung: int = 0
    job: LiveJob | None = None
    history: dict[int, float] = field(default_factory=dict)
    reached: dict[int, Values] = field(default_factory=dict)
    samples: int | None = None
    noise: dict[int, GradientNoise] = field(default_factory=dict)
    reason: str = ""
    codes: list[str] = field(default_factory=list)
    exactness: list[str] = field(default_factory=list)
    devices: list[str] = field(default_factory=list)
    tests: dict[int, float] = field(default_factory=dict)

    def enter(self, state: TrialState) -> None:
        """Change the state of the trial.

        Raises:
            InvariantError: If that state must not follow the present one.
        """
        if state not in TRIAL_TRANSITIONS[self.state]:
            raise impossible(self.state, state, f"trial {self.id}")
        self.state = state

    @property
    def until(self) -> int:
        """Its next milestone."""
        return self.schedule[-1].until

    @property
    def stretch(self) -> Stretch:
        """What it trains next: an earlier stretch than the last one where epochs are trained again."""
        now = self.current
        return now if now.epoch == self.epoch else now.starting_at(self.epoch)

    @property
    def replicas(self) -> int:
        """Replicas of the coming stretch."""
        return self.current.replicas

    @property
    def current(self) -> Stretch:
        """The stretch that it is in, from where that began."""
        last = self.schedule[-1]
        if last.epoch <= self.epoch:
            return last
        return next(s for s in reversed(self.schedule) if s.epoch <= self.epoch)

    @property
    def entries(self) -> tuple[ScheduleEntry, ...]:
        """Its stretches up to the coming one, as a job is told: without those that change only its GPUs."""
        if len(self.schedule) == 1:
            return (self.schedule[0].entry,)
        known = [s.entry for s in self.schedule if s.epoch <= self.epoch]
        same = [False, *(a[1:] == b[1:] for a, b in pairwise(known))]
        return tuple(entry for entry, is_same in zip(known, same, strict=True) if not is_same)

    def batches_of(self, epoch: int) -> int:
        """Return how many `batch_size` a step of an epoch had."""
        return next(s for s in reversed(self.schedule) if s.epoch < epoch).batches

    def noise_between(self, begin: int, end: int) -> GradientNoise | None:
        """Return the mean noise of the epochs after one, up to another; None if nobody knows."""
        found = [noise for epoch, noise in sorted(self.noise.items()) if begin < epoch <= end]
        if not found:
            return None
        return GradientNoise(fmean(n.gradient for n in found), fmean(n.variance for n in found))

    def train_on(self, ahead: Stretch, rung: int) -> None:
        """Note that it trains on, as was decided."""
        self.rung, last = rung, self.schedule[-1]
        if not ahead.is_as_parallel_as(last):
            self.schedule[-1] = last.ending_at(self.epoch)
            self.schedule.append(ahead)
        elif ahead.until != last.until:
            self.schedule[-1] = last.ending_at(ahead.until)

    def keep(self, checkpoint: Checkpoint) -> None:
        """Note a checkpoint that is whole."""
        if self.checkpoint is not None and self.checkpoint.path != checkpoint.path:
            self.previous = self.checkpoint
        self.checkpoint = checkpoint

    def note_best(self, checkpoint: Checkpoint, mode: Mode) -> None:
        """Note the epoch that a checkpoint ends with, if it is better than all before."""
        metric = self.history.get(checkpoint.epoch, math.nan)
        known = self.best.metric if self.best else math.inf if mode is Mode.MIN else -math.inf
        if metric < known if mode is Mode.MIN else metric > known:
            self.best = BestEpoch(metric, checkpoint)

    def note_arithmetic(self, exact: str, devices: Sequence[str]) -> None:
        """Note what a report says of its bits, and of the GPUs; nothing, or nothing new, is empty."""
        if exact and exact not in self.exactness:
            self.exactness.append(exact)
        if devices:
            self.devices += [name for name in devices if name not in self.devices]

    @property
    def exact(self) -> str:
        """Whether its bits are those of any width, in the words of `EpochReport.exact`; or empty."""
        worst = next((words for words in self.exactness if words != EXACT), EXACT if self.exactness else "")
        if worst == EXACT and len(self.devices) > 1:
            return f"best effort because it ran on different GPUs: {', '.join(self.devices)}"
        return worst

    @property
    def kept(self) -> tuple[str, ...]:
        """Paths of its checkpoints that must stay beside the newest ones."""
        newest = self.checkpoint.path if self.checkpoint else None
        found = [] if self.reported is None or self.reported.path == newest else [self.reported.path]
        found += [self.best.checkpoint.path] if self.best else []
        return tuple(dict.fromkeys((*found, *self.rung_checkpoints.values())))

    def fall_back(self) -> None:
        """Forget the newest checkpoint: the one before takes its place, else the start."""
        if self.reported == self.checkpoint:
            self.reported = self.previous
        self.checkpoint, self.previous = self.previous, None
        self.checkpoint_losses += 1

    def start_afresh(self, first: Stretch) -> None:
        """Forget all that it has done; its attempts count on, for their numbers are their fences."""
        self.forget()
        self.schedule = [first]
        self.epoch = self.retries = self.checkpoint_losses = self.preemptions = self.rung = 0
        self.history, self.reached, self.noise, self.reason, self.codes = {}, {}, {}, "", []
        self.tests = {}
        self.exactness, self.devices = [], []

    def forget(self) -> None:
        """Forget all checkpoints, and where they are."""
        self.checkpoint = self.previous = self.reported = self.best = self.site = None
        self.rung_checkpoints = {}

    def rewind(self) -> None:
        """Go back to what the checkpoint holds."""
        self.epoch = self.checkpoint.epoch if self.checkpoint else 0

    @property
    def last(self) -> tuple[int, float] | None:
        """The last ``(epoch, metric)`` reported, or None."""
        if not self.history:
            return None
        epoch = max(self.history)
        return epoch, self.history[epoch]

    @property
    def result(self) -> tuple[int, float] | None:
        """The ``(epoch, metric)`` that it is compared with others by: the last one, or its best."""
        return self.last if self.best is None else (self.best.checkpoint.epoch, self.best.metric)

    @property
    def result_checkpoint(self) -> Checkpoint | None:
        """The checkpoint that it returns: of the epoch that `result` names, if one was written there."""
        if self.best is not None:
            return self.best.checkpoint
        is_result = (
            self.reported is not None and self.last is not None and self.reported.epoch == self.last[0]
        )
        return self.reported if is_result else self.checkpoint


def best_trial(trials: Mapping[TrialId, TrialRecord], mode: Mode) -> TrialRecord | None:
    """Return the trial whose result is best; failed and diverged ones never are.

    Equal metrics favour the older trial. Of several metrics it is the member of the front that is best by the
    first one.
    """
    found = best_trials(front(trials) or trials.values(), mode, 1)
    return found[0] if found else None


def best_trials(trials: Iterable[TrialRecord], mode: Mode, most: int) -> list[TrialRecord]:
    """Return so many trials whose results are best, the best first; as `best_trial`, by one metric."""
    sign = 1.0 if mode is Mode.MIN else -1.0
    ranked = [
        (sign * result[1], t.age, t)
        for t in trials
        if t.state is not TrialState.FAILED and (result := t.result) is not None and math.isfinite(result[1])
    ]
    return [t for *_, t in nsmallest(most, ranked, key=lambda r: r[:2])]


def front(trials: Mapping[TrialId, TrialRecord]) -> list[TrialRecord]:
    """Return the trials that no other is better than in all, the older first; failed ones never are.

    If none keeps all limits, it is the one that breaks them least. Empty if one metric alone counts.
    """
    found = [
        (t, t.reached[t.last[0]])
        for t in trials.values()
        if t.state is not TrialState.FAILED and t.last is not None and t.last[0] in t.reached
    ]
    stand = [place[:2] for place in places([values for _, values in found])]
    return [trial for (trial, _), place in zip(found, stand, strict=True) if place == min(stand)]
