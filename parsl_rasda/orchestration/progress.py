"""Who reports the progress of a run: the displays of the command line do."""

from __future__ import annotations

from typing import Protocol

from parsl_rasda.orchestration.driver import Observer
from parsl_rasda.orchestration.events import Event, Instruction
from parsl_rasda.orchestration.machine import Machine
from parsl_rasda.orchestration.usage import Usage


class ProgressReporter(Protocol):
    """Shows a run while it happens. Called from several threads; must neither block nor raise."""

    def stage_started(self, name: str, total: int) -> None:
        """Show that a stage runs, in ``total`` calls."""
        ...

    def stage_ended(self, name: str, seconds: float, *, reused: bool) -> None:
        """Show that a stage is done [s]; ``reused``: nothing ran, earlier results stand."""
        ...

    def stage_failed(self, name: str, cause: str) -> None:
        """Show why a stage has no result."""
        ...

    def search(self, stage: str, machine: Machine, usage: Usage, *, alone: bool) -> Observer:
        """Return who watches a search; the usage is up to date when it is called.

        Args:
            stage: Its stage.
            machine: Its machine.
            usage: What it has used so far.
            alone: It is the only one of its study.
        """
        ...

    def close(self) -> None:
        """Stop showing."""
        ...


class NoProgress:
    """Shows nothing: for programs that embed a search."""

    def stage_started(self, name: str, total: int) -> None:
        """Show nothing."""

    def stage_ended(self, name: str, seconds: float, *, reused: bool) -> None:
        """Show nothing."""

    def stage_failed(self, name: str, cause: str) -> None:
        """Show nothing."""

    def search(self, stage: str, machine: Machine, usage: Usage, *, alone: bool) -> Observer:
        """Return an observer that shows nothing."""
        return self

    def add(self, event: Event, instructions: tuple[Instruction, ...]) -> None:
        """Show nothing."""

    def close(self) -> None:
        """Show nothing."""
