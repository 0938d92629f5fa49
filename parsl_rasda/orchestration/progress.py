"""Who reports the progress of a run: the displays of the command line do."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from parsl_rasda.orchestration.driver import Observer
from parsl_rasda.orchestration.events import Event, Instruction
from parsl_rasda.orchestration.machine import Machine
from parsl_rasda.orchestration.usage import Usage

logger = logging.getLogger(__name__)


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


class GuardedProgress:
    """Passes everything on to a reporter until that fails; then the run goes on unseen."""

    def __init__(self, progress: ProgressReporter) -> None:
        """Guard a reporter."""
        self._progress = progress
        self._has_failed = False

    def stage_started(self, name: str, total: int) -> None:
        """Show that a stage runs."""
        self._tell(lambda: self._progress.stage_started(name, total))

    def stage_ended(self, name: str, seconds: float, *, reused: bool) -> None:
        """Show that a stage is done."""
        self._tell(lambda: self._progress.stage_ended(name, seconds, reused=reused))

    def stage_failed(self, name: str, cause: str) -> None:
        """Show why a stage has no result."""
        self._tell(lambda: self._progress.stage_failed(name, cause))

    def search(self, stage: str, machine: Machine, usage: Usage, *, alone: bool) -> Observer:
        """Return a guarded observer."""
        observers: list[Observer] = []
        self._tell(lambda: observers.append(self._progress.search(stage, machine, usage, alone=alone)))
        return _GuardedObserver(self, observers[0]) if observers else NoProgress()

    def close(self) -> None:
        """Stop showing."""
        self._tell(self._progress.close)

    def _tell(self, call: Callable[[], None]) -> None:
        if self._has_failed:
            return
        try:
            call()
        except Exception:  # a bug of the display is not the run's
            self._has_failed = True
            logger.exception("the display of the run has failed; the run goes on")


@dataclass(frozen=True, slots=True)
class _GuardedObserver:
    progress: GuardedProgress
    observer: Observer

    def add(self, event: Event, instructions: tuple[Instruction, ...]) -> None:
        self.progress._tell(lambda: self.observer.add(event, instructions))
