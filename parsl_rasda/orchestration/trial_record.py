"""What the machine remembers of a trial and of its running job."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from parsl_rasda.types import JSON, JobId, Mode, Placement, SiteName, TrialId, TrialState


@dataclass(slots=True)
class Job:
    """A job that was started and whose `JobEnded` has not come yet.

    Attributes:
        until: Where it ends if it is not asked before: at its trial's milestone, or on the way.
        since: When its start became due [s]: the boundary for a resize, else the start itself.
        resized: It replaces a job of another width, so its start measures a restart.
        confirmed: Its ranks have finished their first step.
        ending: Why it was told to leave, or None.
        next_placement: Where its trial goes on once it has left (`ending` is "resize").
    """

    id: JobId
    placement: Placement
    until: int
    interactive: bool
    since: float
    resized: bool = False
    confirmed: bool = False
    ending: str | None = None
    ending_at: float = 0.0
    next_placement: Placement | None = None


@dataclass(slots=True)
class TrialRecord:
    """One configuration through its life.

    Attributes:
        age: Position in the order of creation.
        epoch: Epochs that stand: a checkpoint holds them, or the live job has finished them.
        until: Its next milestone.
        schedule: ``(epoch, replicas)`` pairs: how many from that many epochs on.
        checkpoint: Newest whole checkpoint; None means a start from scratch.
        checkpoint_epoch: Epochs finished in it.
        before: The checkpoint before that one, and its epochs, should the newest one be gone.
        site: Where the checkpoints are.
        losses: Retries spent.
        fallbacks: Checkpoints that were gone when they were asked for.
        setbacks: Preemptions since the last finished epoch.
        history: ``(epoch, metric)`` as reported; a repeated epoch replaces its first report.
    """

    id: TrialId
    age: int
    config: Mapping[str, JSON]
    until: int
    schedule: list[tuple[int, int]]
    state: TrialState = TrialState.WAITING
    attempt: int = 0
    epoch: int = 0
    checkpoint: str | None = None
    checkpoint_epoch: int = 0
    before: tuple[str, int] | None = None
    site: SiteName | None = None
    losses: int = 0
    fallbacks: int = 0
    setbacks: int = 0
    rung: int = 0
    job: Job | None = None
    history: dict[int, float] = field(default_factory=dict)
    reason: str = ""

    @property
    def coming(self) -> tuple[tuple[int, int], ...]:
        """The schedule up to the coming stretch: not the last one where epochs are trained again."""
        return tuple(pair for pair in self.schedule if pair[0] <= self.epoch)

    @property
    def replicas(self) -> int:
        """Replicas of the coming stretch."""
        return self.coming[-1][1]

    @property
    def stretch_end(self) -> int:
        """Epochs done when the coming stretch ends: at its milestone, or where replicas change before."""
        return next((epoch for epoch, _ in self.schedule if epoch > self.epoch), self.until)

    def keep(self, checkpoint: str, epoch: int) -> None:
        """Note a checkpoint that is whole, and the epochs finished in it."""
        if self.checkpoint not in {None, checkpoint}:
            self.before = (str(self.checkpoint), self.checkpoint_epoch)
        self.checkpoint, self.checkpoint_epoch = checkpoint, epoch

    def fall_back(self) -> None:
        """Forget the newest checkpoint: the one before takes its place, else the start."""
        self.checkpoint, self.checkpoint_epoch = self.before or (None, 0)
        self.before = None
        self.fallbacks += 1

    def forget(self) -> None:
        """Forget all checkpoints, and where they are."""
        self.checkpoint, self.checkpoint_epoch, self.before, self.site = None, 0, None, None

    def rewind(self) -> None:
        """Go back to what the checkpoint holds."""
        self.epoch = self.checkpoint_epoch if self.checkpoint else 0

    @property
    def last(self) -> tuple[int, float] | None:
        """The last ``(epoch, metric)`` reported, or None."""
        if not self.history:
            return None
        epoch = max(self.history)
        return epoch, self.history[epoch]


def best_trial(trials: Mapping[TrialId, TrialRecord], mode: Mode) -> TrialRecord | None:
    """Return the trial whose last metric is best; failed and diverged ones never are.

    Equal metrics favour the older trial.
    """
    sign = 1.0 if mode is Mode.MIN else -1.0
    ranked = [
        (sign * last[1], t.age, t)
        for t in trials.values()
        if t.state is not TrialState.FAILED and (last := t.last) is not None and math.isfinite(last[1])
    ]
    return min(ranked, key=lambda r: r[:2])[2] if ranked else None
