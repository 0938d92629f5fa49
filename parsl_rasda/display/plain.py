"""A run as lines on stderr, one a decision: for batch jobs, pipes and logs."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import IO

from parsl_rasda.display.decisions import DecisionLine, DecisionLog, Fact
from parsl_rasda.orchestration.events import Event, Instruction
from parsl_rasda.orchestration.machine import Machine
from parsl_rasda.orchestration.usage import Usage
from parsl_rasda.plain_text import printable


class PlainView:
    """Writes a line for every stage and every decision."""

    def __init__(self, output: IO[str]) -> None:
        self._output = output
        self._lock = threading.Lock()  # several searches may run at a time

    def stage_started(self, name: str, total: int) -> None:
        """Write that a stage runs."""
        self.write(DecisionLine(time.time(), "stage", {"name": name, "calls": total}))

    def stage_ended(self, name: str, seconds: float, *, reused: bool) -> None:
        """Write that a stage is done."""
        facts: dict[str, Fact] = {
            "name": name,
            "seconds": round(seconds, 3),
            "result": "reused" if reused else "new",
        }
        self.write(DecisionLine(time.time(), "stage-done", facts))

    def stage_failed(self, name: str, cause: str) -> None:
        """Write why a stage has no result."""
        self.write(DecisionLine(time.time(), "stage-failed", {"name": name, "cause": cause}))

    def search(self, stage: str, machine: Machine, usage: Usage, *, alone: bool) -> _SearchWriter:
        """Return an observer that writes the decisions of a search, with its stage unless it is alone."""
        del usage
        return _SearchWriter(self, DecisionLog(machine), {} if alone else {"stage": stage})

    def close(self) -> None:
        """Do nothing: every line has been written."""

    def write(self, line: DecisionLine) -> None:
        """Write one line, and never fail: a closed terminal must not end a run."""
        with self._lock, contextlib.suppress(OSError, ValueError):
            self._output.write(f"{printable(str(line))}\n")
            self._output.flush()


@dataclass(frozen=True, slots=True)
class _SearchWriter:
    view: PlainView
    log: DecisionLog
    stage: Mapping[str, Fact]

    def add(self, event: Event, instructions: tuple[Instruction, ...]) -> None:
        for line in self.log.lines(event, instructions):
            self.view.write(replace(line, facts={**line.facts, **self.stage}))
