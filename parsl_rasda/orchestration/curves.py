"""Everything that trials have reported, and when: read from a journal, for people and for other tools.

The machine remembers only the metric that trials are judged by. What stands is the same here as there: words
of attempts that were given up, or that come twice, change nothing; an epoch that is trained again replaces
its first report.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from parsl_rasda.orchestration.events import (
    EpochReported,
    Event,
    Instruction,
    JobEnded,
    StartJob,
    StudyStarted,
    TrialFinished,
    TrialProposed,
)
from parsl_rasda.orchestration.journal import Record
from parsl_rasda.protocol import Steps
from parsl_rasda.types import JSON, JobId, TrialId, TrialState


class Point(NamedTuple):
    """What a trial reported at the end of an epoch.

    Attributes:
        at: When [s].
        seconds: What the epoch took [s].
        steps: What it logged on the way.
    """

    at: float
    seconds: float
    metrics: Mapping[str, float]
    steps: Steps = ()


@dataclass(slots=True)
class Curve:
    """One trial.

    Attributes:
        began: When its first attempt started [s], or None.
        ended: When it came to its final state [s], or None.
        attempts: How many it has had.
        points: By epoch.
        live: The attempt whose words count, or 0.
        epoch: What it has come to.
    """

    trial: TrialId
    config: Mapping[str, JSON] = field(default_factory=dict)
    began: float | None = None
    ended: float | None = None
    state: TrialState | None = None
    reason: str = ""
    attempts: int = 0
    points: dict[int, Point] = field(default_factory=dict)
    live: int = 0
    epoch: int = 0

    @property
    def epochs(self) -> list[tuple[int, Point]]:
        """Its epochs in order."""
        return sorted(self.points.items())

    @property
    def rows(self) -> list[tuple[float, float, Mapping[str, float]]]:
        """All it has told, in order: place [epochs], time [s] and metrics."""
        return [
            (place, point.at, metrics)
            for epoch, point in self.epochs
            for place, metrics in (*point.steps, (float(epoch), point.metrics))
        ]

    @property
    def last(self) -> Mapping[str, float]:
        """What it reported last."""
        return self.points[max(self.points)].metrics if self.points else {}


@dataclass(slots=True)
class Curves:
    """The trials of a search; an observer."""

    trials: dict[TrialId, Curve] = field(default_factory=dict)

    def document(self, trial: TrialId, at: int | None = None) -> dict[str, Any]:
        """Return what a JSON document says of a trial: its times, last metrics, and all metrics by epoch.

        Args:
            trial: Which.
            at: An epoch, whose metrics alone are wanted.
        """
        curve = self.trials.get(trial) or Curve(trial)
        if at is not None:
            return {"metrics": _plain(curve.points[at].metrics) if at in curve.points else {}}
        curves: dict[str, list[list[float | None]]] = {}
        for epoch, point in curve.epochs:
            for place, metrics in (*point.steps, (epoch, point.metrics)):
                for name, value in _plain(metrics).items():
                    curves.setdefault(name, []).append([place, value])
        times = {"began": curve.began, "ended": curve.ended}
        return {**times, "metrics": _plain(curve.last), "curves": curves}

    def add(self, event: Event, instructions: tuple[Instruction, ...]) -> None:
        """Take note of one event and what followed from it."""
        self.touched(event, instructions)

    def touched(self, event: Event, instructions: tuple[Instruction, ...]) -> list[Curve]:
        """Take note of one event and what followed from it, and return the trials that it has changed."""
        changed = [self._note(event)]
        for instruction in instructions:
            match instruction:
                case StartJob(job):
                    changed.append(self._start(job, event.at, instruction.epoch))
                case TrialFinished():
                    curve = self.trials[instruction.trial]
                    curve.ended, curve.state, curve.reason = event.at, instruction.state, instruction.reason
                    changed.append(curve)
                case _:
                    pass
        return [curve for curve in changed if curve is not None]

    def _note(self, event: Event) -> Curve | None:
        match event:
            case TrialProposed():
                return self.trials.setdefault(event.trial, Curve(event.trial, event.config))
            case EpochReported():
                return self._report(event)
            case JobEnded(_, job) if job.trial in self.trials and self.trials[job.trial].live == job.attempt:
                self.trials[job.trial].live = 0
            case StudyStarted():  # what ran under an earlier controller is gone
                for curve in self.trials.values():
                    curve.live = 0
            case _:
                pass
        return None

    def _start(self, job: JobId, at: float, epoch: int) -> Curve:
        curve = self.trials[job.trial]
        if curve.state is not None:  # it had failed, and starts afresh
            curve.points.clear()
            curve.ended, curve.state, curve.reason = None, None, ""
        curve.began = at if curve.began is None else curve.began
        curve.attempts = curve.live = job.attempt
        curve.epoch = epoch
        return curve

    def _report(self, event: EpochReported) -> Curve | None:
        curve = self.trials.get(event.job.trial)
        if curve is None or curve.state is not None:
            return None
        if event.job.attempt != curve.live or event.epoch <= curve.epoch:
            return None
        curve.epoch = event.epoch
        curve.points[event.epoch] = Point(event.at, event.seconds, event.metrics, event.steps)
        return curve


def curves_of(records: Iterable[Record]) -> Curves:
    """Return the trials of a journal."""
    curves = Curves()
    for record in records:
        curves.add(record.event, record.instructions)
    return curves


def _plain(metrics: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}
