"""Events and instructions as lines for people: one a decision, facts as ``key=value``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

from parsl_rasda.orchestration.brackets import bracket_of
from parsl_rasda.orchestration.confirmed import confirmation_document
from parsl_rasda.orchestration.events import (
    CodeSeen,
    ContinueJob,
    EndJob,
    Event,
    FinishStudy,
    Instruction,
    JobEnded,
    PilotEnded,
    PilotQueued,
    PilotStarted,
    RequestPilot,
    SearchExhausted,
    StartJob,
    StudyInterrupted,
    StudyStarted,
    TrialFinished,
    TrialProposed,
    UserTold,
)
from parsl_rasda.orchestration.machine import Machine
from parsl_rasda.orchestration.run_names import is_run
from parsl_rasda.reporting.format import moment
from parsl_rasda.study_code.code import changed_modules
from parsl_rasda.types import Outcome, Placement, TrialId, TrialState

Fact: TypeAlias = str | int | float | None


@dataclass(frozen=True, slots=True)
class DecisionLine:
    """One decision or fault; ``str`` gives its line."""

    at: float
    verb: str
    facts: Mapping[str, Fact]

    def __str__(self) -> str:
        clock = datetime.fromtimestamp(self.at).astimezone().strftime("%H:%M:%S")
        facts = (f"{k}={_quoted(v)}" for k, v in self.facts.items() if v is not None)
        return " ".join((clock, self.verb, *facts))


class DecisionLog:
    """Turns the events of one search into lines; remembers the last order of each trial."""

    def __init__(self, machine: Machine) -> None:
        """Begin in the state of a machine."""
        self._machine = machine
        self._until = {t.id: t.until for t in machine.trials.values()}
        self._world_size: dict[TrialId, int] = {}
        self._code = machine.code
        self._is_confirming = False  # as far as was told under this controller
        self._ended_runs = self._ended()

    def lines(self, event: Event, instructions: tuple[Instruction, ...]) -> Iterator[DecisionLine]:
        """Yield what people want to know about one event and its instructions."""
        if isinstance(event, CodeSeen):
            yield from self._code_lines(event)
        yield from _event_lines(event)
        yield from self._ends_of_runs(event.at)
        for instruction in instructions:
            yield from self._instruction_lines(event.at, instruction)

    def _ended(self) -> set[TrialId]:
        return {run.id for run in self._machine.confirmation.runs.values() if run.state.is_final}

    def _ends_of_runs(self, at: float) -> Iterator[DecisionLine]:
        """Yield the runs of a confirmation that have ended, which no instruction tells."""
        before, self._ended_runs = self._ended_runs, self._ended()
        for name in sorted(self._ended_runs - before):
            run = self._machine.confirmation.runs[name]
            metric = run.result[1] if run.result and run.state is not TrialState.FAILED else None
            facts = {"trial": name, "metric": metric, "reason": run.reason or None}
            yield DecisionLine(at, run.state.value, facts)

    def _confirming_line(self, at: float) -> DecisionLine:
        trials, wanted = self._machine.confirmation.candidates, self._machine.confirmation.wanted
        runs = len(trials) * wanted.seeds if wanted else 0
        return DecisionLine(at, "confirming", {"trials": ",".join(trials), "runs": runs})

    def _confirmed_lines(self, at: float) -> Iterator[DecisionLine]:
        found = confirmation_document(self._machine)
        if found is None or not self._is_confirming:
            return
        for row in found["candidates"]:
            if row["trial"] == found["winner"]:
                facts = {"trial": row["trial"], "mean": row["mean"], "spread": row["spread"]}
                yield DecisionLine(at, "confirmed", facts)

    def _code_lines(self, event: CodeSeen) -> Iterator[DecisionLine]:
        if self._code:
            facts = {"modules": ",".join(changed_modules(self._code, event.modules))}
            yield DecisionLine(
                event.at, "code-changed", {**facts, "advice": "code: pinned keeps it as it was"}
            )
        self._code = event.modules

    def _instruction_lines(self, at: float, instruction: Instruction) -> Iterator[DecisionLine]:
        facts: dict[str, Fact]
        match instruction:
            case StartJob():
                if is_run(instruction.job.trial) and not self._is_confirming:
                    self._is_confirming = True
                    yield self._confirming_line(at)
                yield self._start_line(at, instruction)
            case ContinueJob(job) if is_run(job.trial):
                pass  # nobody judges it
            case ContinueJob(job, until, replicas, batches) if until > self._until.get(job.trial, until):
                self._until[job.trial] = until
                world_size = self._world_size.get(job.trial)
                facts = {"trial": job.trial, "until": until, "replicas": replicas, "batches": batches}
                facts["width"] = world_size
                yield DecisionLine(at, "promoted", facts)
            case EndJob(job, "paused"):
                yield DecisionLine(at, "paused", {"trial": job.trial})
            case TrialFinished():
                facts = {"trial": instruction.trial, "metric": instruction.metric}
                yield DecisionLine(at, instruction.state.value, {**facts, "reason": instruction.reason})
            case RequestPilot(pilot, site):
                yield DecisionLine(at, "requested", {"pilot": pilot, "site": site})
            case FinishStudy(state, cause):
                yield from self._confirmed_lines(at)
                yield DecisionLine(at, "finished", {"state": state.value, "cause": cause or None})
            case _:
                pass

    def _start_line(self, at: float, start: StartJob) -> DecisionLine:
        trial, world_size = start.job.trial, start.placement.world_size
        before, was_until = self._world_size.get(trial), self._until.get(trial, start.until)
        self._until[trial], self._world_size[trial] = start.until, world_size
        if start.job.attempt == 1:
            verb = "started"
        elif start.until > was_until and not is_run(trial):
            verb = "promoted"
        elif before is None or world_size == before:
            verb = "restarted"
        else:
            verb = "widened" if world_size > before else "narrowed"
        ahead = start.schedule[-1]
        replicas, batches = ahead[1], ahead[-1]
        facts: dict[str, Fact] = {
            "trial": trial,
            "bracket": None if is_run(trial) else bracket_of(self._machine, trial),
            "epoch": start.epoch,
            "until": start.until,
            "replicas": replicas,
            "batches": None if batches == replicas else batches,
            "width": world_size,
            "attempt": start.job.attempt if start.job.attempt > 1 else None,
            "slots": _slots(start.placement),
        }
        return DecisionLine(at, verb, facts)


def _event_lines(event: Event) -> Iterator[DecisionLine]:
    match event:
        case StudyStarted():
            facts: dict[str, Fact] = {"trials": event.num_samples, "sites": ",".join(event.sites)}
            yield DecisionLine(event.at, "searching", facts)
        case PilotStarted():
            gpus = sum(len(n.gpus) for n in event.nodes)
            facts = {"pilot": event.pilot, "site": event.site, "nodes": len(event.nodes), "gpus": gpus}
            yield DecisionLine(event.at, "joined", facts)
        case PilotQueued():
            facts = {"pilot": event.pilot, "job": event.job, "state": event.state}
            facts["reason"] = event.reason or None
            facts["starts"] = moment(event.starts_at) or None
            facts["obstacle"] = event.obstacle or None
            yield DecisionLine(event.at, "queued", facts)
        case PilotEnded():
            yield DecisionLine(event.at, "left", {"pilot": event.pilot, "cause": event.cause})
        case JobEnded(outcome=Outcome.LOST | Outcome.PREEMPTED):  # a failure is in the line of its trial
            facts = {"trial": event.job.trial, "attempt": event.job.attempt, "cause": event.cause}
            yield DecisionLine(event.at, event.outcome.value, facts)
        case SearchExhausted():
            yield DecisionLine(event.at, "exhausted", {"searcher": "no further configuration"})
        case UserTold(told=number, stop=stop, at_most=most, retry_failed=retries):
            said: dict[str, Fact] = {"request": number, "stop": stop, "at_most": most}
            yield DecisionLine(event.at, "told", {**said, "retry_failed": retries or None})
        case TrialProposed(told=number) if number:
            yield DecisionLine(event.at, "told", {"request": number, "add": event.trial})
        case StudyInterrupted():
            yield DecisionLine(event.at, "interrupted", {"trials": "save and leave"})
        case _:
            pass


def _slots(placement: Placement) -> str:
    """Return ``node:gpus`` of each node, with ``0-3`` for consecutive GPUs."""
    return ",".join(f"{n.node}:{_span(n.gpus)}" for n in placement.nodes)


def _span(gpus: tuple[int, ...]) -> str:
    first, last = gpus[0], gpus[-1]
    is_range = len(gpus) > 1 and gpus == tuple(range(first, last + 1))
    return f"{first}-{last}" if is_range else "+".join(map(str, gpus))


def _quoted(value: Fact) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    return text if text and not set(text) & set(' "=\n') else json.dumps(text, ensure_ascii=False)
