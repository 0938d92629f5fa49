"""Events and instructions in words: one line a decision, facts as ``key=value``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

from parsl_rasda.orchestration.events import (
    ContinueJob,
    EndJob,
    Event,
    FinishStudy,
    Instruction,
    JobEnded,
    PilotEnded,
    PilotStarted,
    RequestPilot,
    SearchExhausted,
    StartJob,
    StudyInterrupted,
    StudyStarted,
    TrialFinished,
)
from parsl_rasda.orchestration.machine import Machine
from parsl_rasda.types import Outcome, Placement, TrialId

Fact: TypeAlias = str | int | float | None


@dataclass(frozen=True, slots=True)
class Told:
    """One decision or mishap; ``str`` gives its line."""

    at: float
    verb: str
    facts: Mapping[str, Fact]

    def __str__(self) -> str:
        clock = datetime.fromtimestamp(self.at).astimezone().strftime("%H:%M:%S")
        facts = (f"{k}={_word(v)}" for k, v in self.facts.items() if v is not None)
        return " ".join((clock, self.verb, *facts))


class Narrator:
    """Puts one search into words; remembers what each trial was last told."""

    def __init__(self, machine: Machine) -> None:
        """Begin where a machine stands."""
        self._until = {t.id: t.until for t in machine.trials.values()}
        self._width: dict[TrialId, int] = {}

    def tell(self, event: Event, instructions: tuple[Instruction, ...]) -> Iterator[Told]:
        """Yield what people want to know of one event and what followed from it."""
        yield from _event(event)
        for instruction in instructions:
            yield from self._instruction(event.at, instruction)

    def _instruction(self, at: float, instruction: Instruction) -> Iterator[Told]:
        facts: dict[str, Fact]
        match instruction:
            case StartJob():
                yield self._start(at, instruction)
            case ContinueJob(job, until, replicas) if until > self._until.get(job.trial, until):
                self._until[job.trial] = until
                width = self._width.get(job.trial)
                facts = {"trial": job.trial, "until": until, "replicas": replicas, "width": width}
                yield Told(at, "promoted", facts)
            case EndJob(job, "paused"):
                yield Told(at, "paused", {"trial": job.trial})
            case TrialFinished():
                facts = {"trial": instruction.trial, "metric": instruction.metric}
                yield Told(at, instruction.state.value, {**facts, "reason": instruction.reason})
            case RequestPilot(pilot, site):
                yield Told(at, "requested", {"pilot": pilot, "site": site})
            case FinishStudy(state, cause):
                yield Told(at, "finished", {"state": state.value, "cause": cause or None})
            case _:
                pass

    def _start(self, at: float, start: StartJob) -> Told:
        trial, width = start.job.trial, start.placement.world_size
        before, was_until = self._width.get(trial), self._until.get(trial, start.until)
        self._until[trial], self._width[trial] = start.until, width
        if start.job.attempt == 1:
            verb = "started"
        elif start.until > was_until:
            verb = "promoted"
        elif before is None or width == before:
            verb = "restarted"
        else:
            verb = "widened" if width > before else "narrowed"
        facts: dict[str, Fact] = {
            "trial": trial,
            "epoch": start.epoch,
            "until": start.until,
            "replicas": start.schedule[-1][1],
            "width": width,
            "attempt": start.job.attempt if start.job.attempt > 1 else None,
            "slots": _slots(start.placement),
        }
        return Told(at, verb, facts)


def _event(event: Event) -> Iterator[Told]:
    match event:
        case StudyStarted():
            facts: dict[str, Fact] = {"trials": event.num_samples, "sites": ",".join(event.sites)}
            yield Told(event.at, "searching", facts)
        case PilotStarted():
            gpus = sum(len(n.gpus) for n in event.nodes)
            facts = {"pilot": event.pilot, "site": event.site, "nodes": len(event.nodes), "gpus": gpus}
            yield Told(event.at, "joined", facts)
        case PilotEnded():
            yield Told(event.at, "left", {"pilot": event.pilot, "cause": event.cause})
        case JobEnded(outcome=Outcome.LOST | Outcome.PREEMPTED):  # a failure is told of its trial
            facts = {"trial": event.job.trial, "attempt": event.job.attempt, "cause": event.cause}
            yield Told(event.at, event.outcome.value, facts)
        case SearchExhausted():
            yield Told(event.at, "exhausted", {"searcher": "no further configuration"})
        case StudyInterrupted():
            yield Told(event.at, "interrupted", {"trials": "save and leave"})
        case _:
            pass


def _slots(placement: Placement) -> str:
    """Return ``node:gpus`` of each node, with ``0-3`` for neighbours."""
    return ",".join(f"{n.node}:{_span(n.gpus)}" for n in placement.nodes)


def _span(gpus: tuple[int, ...]) -> str:
    first, last = gpus[0], gpus[-1]
    together = len(gpus) > 1 and gpus == tuple(range(first, last + 1))
    return f"{first}-{last}" if together else "+".join(map(str, gpus))


def _word(value: Fact) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    return text if text and not set(text) & set(' "=\n') else json.dumps(text, ensure_ascii=False)
