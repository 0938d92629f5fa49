"""Trials trained once, in this process, whatever search asks for their metrics.

What a trial has come to after an epoch follows from its configuration, its seed and its schedule of batches
(docs/exactness.md). So searches that differ in their scheduler have most of their training in common. It is
kept in files, stretch by stretch, with the checkpoint that the next stretch resumes from, as in a real run.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from parsl_rasda.atomic_files import replace_file
from parsl_rasda.protocol import JobSpec, Training
from parsl_rasda.runtime.attempt.attempt import Attempt
from parsl_rasda.runtime.attempt.launch_context import LAUNCHERS, launch_context
from parsl_rasda.runtime.engine.seeding import seed_start
from parsl_rasda.runtime.trial import Trial
from parsl_rasda.types import JSON, GradientNoise, ScheduleEntry, TrialId

ONLY_AT_RUNGS = 10**6  # epochs between checkpoints: they cost time, and change nothing


@dataclass(frozen=True, slots=True)
class Epoch:
    """What a trial reported of an epoch, and the processor time that it took [s]."""

    metric: float
    seconds: float
    samples: int | None
    noise: GradientNoise | None


@dataclass(frozen=True, slots=True)
class Subject:
    """A trial, apart from its schedule.

    Attributes:
        change: Name of what is done to the optimizer where the batch has changed; none by default.
    """

    config: Mapping[str, JSON]
    seed: int
    training: Training
    change: str = ""


@dataclass(slots=True)
class TrainedTrials:
    """The trials of one study.

    Attributes:
        folder: Where they are kept.
        function: The study's training function.
        inputs: What it gets from earlier stages.
        metric: Name of the study's metric.
        milestones: Where stretches end.
        changes: What may be done to an optimizer, by name.
        trained: Epochs that were not there and had to be trained.
    """

    folder: Path
    function: Callable[[Trial], None]
    inputs: Mapping[str, JSON]
    metric: str
    milestones: Sequence[int]
    changes: Mapping[str, Callable[[Any, float], None]] = field(default_factory=dict)
    trained: int = 0
    _known: dict[Path, list[Epoch]] = field(default_factory=dict)

    def epoch(self, subject: Subject, schedule: Sequence[ScheduleEntry], epoch: int) -> Epoch:
        """Return what a trial reports of an epoch, counted from 1."""
        begin, end = self._stretch_of(epoch)
        return self._epochs(subject, schedule, end)[epoch - begin - 1]

    def checkpoint(self, subject: Subject, schedule: Sequence[ScheduleEntry], epoch: int) -> Path:
        """Return the checkpoint of a trial at a milestone."""
        self._epochs(subject, schedule, epoch)
        (found,) = self._place(subject, schedule, epoch).glob("epoch-*")
        return found

    def _stretch_of(self, epoch: int) -> tuple[int, int]:
        end = next(m for m in self.milestones if m >= epoch)
        return max((m for m in self.milestones if m < epoch), default=0), end

    def _place(self, subject: Subject, schedule: Sequence[ScheduleEntry], end: int) -> Path:
        told = [list(entry) for entry in schedule if entry[0] < end]
        change = subject.change if len(told) > 1 else ""
        what = [subject.config, subject.seed, asdict(subject.training), change, told, end]
        digest = hashlib.blake2b(json.dumps(what, sort_keys=True).encode(), digest_size=12).hexdigest()
        return self.folder / digest

    def _epochs(self, subject: Subject, schedule: Sequence[ScheduleEntry], end: int) -> list[Epoch]:
        place = self._place(subject, schedule, end)
        if place not in self._known:
            file = place / "epochs.json"
            if not file.exists():
                shutil.rmtree(place, ignore_errors=True)
                found = self._train(subject, schedule, place, end)
                self.trained += len(found)
                replace_file(file, json.dumps([asdict(e) for e in found]))
            self._known[place] = [_epoch(**e) for e in json.loads(file.read_text(encoding="utf-8"))]
        return self._known[place]

    def _train(
        self, subject: Subject, schedule: Sequence[ScheduleEntry], place: Path, end: int
    ) -> list[Epoch]:
        begin, _ = self._stretch_of(end)
        told = tuple(entry for entry in schedule if entry[0] < end)
        origin = str(self.checkpoint(subject, schedule, begin)) if begin else None
        spec = JobSpec(
            study="benchmark",
            trial=TrialId("0000"),
            attempt=0,
            config=subject.config,
            directory=str(place),
            seed=subject.seed,
            metric=self.metric,
            mode="min",
            epoch=begin,
            until=end,
            max_epochs=self.milestones[-1],
            schedule=told,
            world_size=1,
            inputs=self.inputs,
            training=subject.training,
            resume_from=origin,
            accelerator="cpu",
        )
        place.mkdir(parents=True)
        environ = {n: v for n, v in os.environ.items() if not any(n in names for names in LAUNCHERS)}
        attempt = Attempt(spec, launch_context(spec, environ))
        seed_start(subject.seed)
        trial = _TimedTrial(attempt)
        if subject.change and len(told) > 1 and told[-1][0] == begin:
            change, ratio = self.changes[subject.change], told[-1][-1] / told[-2][-1]
            trial.change = lambda optimizer: change(optimizer, ratio)
        self.function(trial)
        return [
            Epoch(report.metrics[self.metric], seconds, report.samples, report.noise)
            for report, seconds in zip(attempt.history, trial.seconds, strict=True)
        ]


class _TimedTrial(Trial):
    """A trial that notes the processor time of its epochs: others use the machine, too."""

    def __init__(self, attempt: Attempt) -> None:
        super().__init__(attempt)
        self.seconds: list[float] = []
        self.change: Callable[[Any], None] = lambda _: None
        self._since = 0.0

    def prepare(self, *args: Any, **kwargs: Any) -> Any:
        model, optimizer = super().prepare(*args, **kwargs)
        self.change(optimizer)
        return model, optimizer

    def epochs(self) -> Iterator[int]:
        for epoch in super().epochs():
            self._since = time.process_time()
            yield epoch

    def report(self, **metrics: Any) -> None:
        self.seconds.append(time.process_time() - self._since)
        super().report(**metrics)


def _epoch(metric: float, seconds: float, samples: int | None, noise: Mapping[str, float] | None) -> Epoch:
    return Epoch(metric, seconds, samples, None if noise is None else GradientNoise(**noise))
