"""What was trained in one piece, by the journal, and which of it can be trained again. Pure.

A stretch begins where an attempt or a rung begins, and ends where the next one does. It can be trained again
from its first epoch on, or from a checkpoint that is still there; one that lies inside parts it in two.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from parsl_rasda.orchestration.events import (
    CodeSeen,
    Config,
    ContinueJob,
    EpochReported,
    Instruction,
    JobEnded,
    StartJob,
)
from parsl_rasda.orchestration.journal import Record
from parsl_rasda.orchestration.trial_record import EXACT
from parsl_rasda.types import JobId, ScheduleEntry, SiteName, schedule_entry


@dataclass(frozen=True, slots=True)
class Reported:
    """An epoch as the journal has it; the checkpoint is one that ends with it, or None."""

    epoch: int
    metrics: Mapping[str, float]
    seconds: float
    checkpoint: str | None


@dataclass(frozen=True, slots=True)
class Stretch:
    """Epochs that one attempt trained with one number of replicas.

    Attributes:
        begin: Epochs done before.
        origin: The checkpoint from which it went on; None is the start, or not known.
        width: Number of ranks.
        schedule: As in `JobSpec`, this stretch last.
        exact: What the ranks said of their bits; empty if nothing.
        code: Digests of the study's modules that it ran; empty if they are not known.
        devices: Models of the GPUs that its trial has had; empty on CPUs.
        before: What must be trained first, since the checkpoint that it begins with is gone.
    """

    job: JobId
    site: SiteName
    begin: int
    origin: str | None
    width: int
    schedule: tuple[ScheduleEntry, ...]
    config: Config
    code: Mapping[str, str]
    epochs: tuple[Reported, ...] = ()
    exact: str = ""
    devices: frozenset[str] = frozenset()
    before: tuple[Stretch, ...] = ()

    @property
    def until(self) -> int:
        """Epochs done at its end."""
        return self.epochs[-1].epoch

    @property
    def replicas(self) -> int:
        """Its replicas."""
        return self.schedule[-1][1]

    @property
    def end(self) -> str | None:
        """The checkpoint that it ended with, if there is one."""
        return self.epochs[-1].checkpoint

    @property
    def is_from_scratch(self) -> bool:
        """Whether it needs no checkpoint."""
        return self.begin == 0 and self.origin is None

    @property
    def work_s(self) -> float:
        """What it took, with what must be trained first [rank s]."""
        own = self.width * sum(report.seconds for report in self.epochs)
        return own + sum(stretch.work_s for stretch in self.before)

    def __str__(self) -> str:
        last = f" to {self.until}" if self.until > self.begin + 1 else ""
        epochs = f"epochs {self.begin + 1}{last}" if last else f"epoch {self.until}"
        return f"trial {self.job.trial}, {epochs}"


@dataclass(slots=True)
class _Reader:
    """Follows the jobs of a journal."""

    code: Mapping[str, str] = field(default_factory=dict)
    exact: dict[str, list[str]] = field(default_factory=dict)
    devices: dict[str, set[str]] = field(default_factory=dict)
    open: dict[JobId, Stretch] = field(default_factory=dict)
    done: list[Stretch] = field(default_factory=list)

    def add(self, record: Record) -> None:
        match record.event:
            case CodeSeen(_, modules):
                self.code = modules
            case EpochReported() as event if event.job in self.open:
                self._report(event)
            case JobEnded() as event:
                self.close(event.job)
            case _:
                pass
        for instruction in record.instructions:
            self._follow(instruction)

    def _report(self, event: EpochReported) -> None:
        saved = event.checkpoint
        path = saved.path if saved is not None and saved.epoch == event.epoch else None
        report = Reported(event.epoch, event.metrics, event.seconds, path)
        stretch = self.open[event.job]
        self.open[event.job] = replace(stretch, epochs=(*stretch.epochs, report))
        if event.exact:
            self.exact.setdefault(event.job.trial, []).append(event.exact)
        self.devices.setdefault(event.job.trial, set()).update(event.devices)

    def _follow(self, instruction: Instruction) -> None:
        match instruction:
            case StartJob() as start:
                self.open[start.job] = Stretch(
                    start.job,
                    start.placement.site,
                    start.epoch,
                    start.resume_from,
                    start.placement.world_size,
                    start.schedule,
                    start.config,
                    self.code,
                )
            case ContinueJob(job, _, replicas, batches) if job in self.open and self.open[job].epochs:
                last = self.open[job]
                self.close(job)
                entry = schedule_entry(last.until, replicas, replicas if batches is None else batches)
                is_same = (entry[1], entry[-1]) == (last.schedule[-1][1], last.schedule[-1][-1])
                schedule = last.schedule if is_same else (*last.schedule, entry)
                self.open[job] = replace(
                    last, begin=last.until, origin=last.end, schedule=schedule, epochs=()
                )
            case _:
                pass

    def close(self, job: JobId) -> None:
        stretch = self.open.pop(job, None)
        # A job that could not read its checkpoint has begun elsewhere than it was told to.
        if stretch is not None and stretch.epochs and stretch.epochs[0].epoch == stretch.begin + 1:
            self.done.append(stretch)


def stretches_of(records: Iterable[Record]) -> list[Stretch]:
    """Return all stretches of a search that have an epoch, in the order of their ends."""
    reader = _Reader()
    for record in records:
        reader.add(record)
    for job in tuple(reader.open):
        reader.close(job)
    return [
        replace(
            stretch,
            exact=_worst(reader.exact.get(stretch.job.trial, ())),
            devices=frozenset(reader.devices.get(stretch.job.trial, ())),
        )
        for stretch in reader.done
    ]


def _worst(said: Sequence[str]) -> str:
    return next((words for words in said if words != EXACT), EXACT if said else "")


def parted(stretch: Stretch, is_there: Callable[[str], bool]) -> Iterator[Stretch]:
    """Yield a stretch, parted at the checkpoints inside it that are still there."""
    begin, origin, epochs = stretch.begin, stretch.origin, list[Reported]()
    for report in stretch.epochs:
        epochs.append(report)
        here = report.checkpoint is not None and is_there(report.checkpoint)
        if here or report.epoch == stretch.until:
            yield replace(stretch, begin=begin, origin=origin, epochs=tuple(epochs))
            begin, origin, epochs = report.epoch, report.checkpoint, []


def with_origins(parts: Sequence[Stretch], is_there: Callable[[str], bool]) -> Iterator[Stretch | None]:
    """Yield each part with what must be trained before it, or None if it cannot be trained again.

    Args:
        parts: All parts of all stretches of a search.
        is_there: Whether a checkpoint is.
    """
    by_end = {(part.job.trial, part.end): part for part in parts if part.end is not None}
    for part in parts:
        before: list[Stretch] = []
        first: Stretch | None = part
        while first is not None and not first.is_from_scratch and not is_there(first.origin or ""):
            first = by_end.get((first.job.trial, first.origin)) if first.origin is not None else None
            before[:0] = [first] if first is not None else []
        yield None if first is None else replace(part, before=tuple(before))


def sample(
    stretches: Sequence[Stretch], most: int, seed: int, best: str | None, is_there: Callable[[str], bool]
) -> list[Stretch]:
    """Return some stretches: the one that made the best model, then half with weights, then any.

    Those that can have another width come first, and of them those that need nothing else before, then those
    that take least.

    Args:
        stretches: Those that can be trained again.
        most: How many.
        seed: Of the choice.
        best: The checkpoint of the best model.
        is_there: Whether a checkpoint is.
    """
    shuffled = random.Random(seed).sample(stretches, len(stretches))  # noqa: S311 - a sample
    shuffled.sort(key=lambda s: (s.replicas == 1, s.work_s if s.before else 0.0))
    first = [s for s in shuffled if best is not None and s.end == best][-1:]
    weighed = [s for s in shuffled if s.end is not None and is_there(s.end) and s not in first]
    half = max(0, (most + 1) // 2 - len(first))
    chosen = [*first, *weighed[:half]]
    rest = [s for s in shuffled if s not in chosen]
    return [*chosen, *rest][:most]


def other_width(stretch: Stretch, slots: int) -> int:
    """Return the width to train a stretch at again: another one than it had, if there is one.

    Args:
        stretch: What was trained.
        slots: How many ranks fit here.
    """
    allowed = [w for w in range(1, min(slots, stretch.replicas) + 1) if stretch.replicas % w == 0]
    if stretch.width > 1 or len(allowed) < 2:  # noqa: PLR2004 - 1 is always allowed
        return 1
    return allowed[1]
