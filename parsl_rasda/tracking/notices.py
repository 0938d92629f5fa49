"""A command of the user's that is told of the end of a search, the first result of a rung, and trouble."""

from __future__ import annotations

import logging
import os
import queue
import subprocess
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from parsl_rasda.orchestration.events import (
    EpochReported,
    Event,
    FinishStudy,
    Instruction,
    PilotEnded,
    PilotQueued,
    SetAside,
    SiteDegraded,
    StartJob,
    TrialFinished,
)
from parsl_rasda.orchestration.journal import Record
from parsl_rasda.plain_text import words_of
from parsl_rasda.study.observers import NotifySpec
from parsl_rasda.types import TrialState

_MOST_TROUBLES = 20  # of one passage: a command that sends mail is not to send thousands
_LIMIT_S, _PATIENCE_S = 60.0, 20.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Notice:
    """One event, in words: its kind is ``end``, ``rung`` or ``trouble``."""

    kind: str
    message: str


@dataclass(slots=True)
class Notices:
    """Says what of a search people want to be told, each thing once."""

    metric: str
    milestones: Sequence[int]
    _told: set[tuple[str, object]] = field(default_factory=set)
    _started: int = 0  # jobs: an end is news only if something has run since the one before

    def of(self, event: Event, instructions: tuple[Instruction, ...]) -> list[Notice]:
        """Return what one event and its instructions have to tell."""
        found = [*self._of_event(event), *(n for i in instructions for n in self._of_instruction(i))]
        new = [notice for key, notice in found if key not in self._told]
        self._told.update(key for key, _ in found)
        return new

    def _of_event(self, event: Event) -> Iterator[tuple[tuple[str, object], Notice]]:
        match event:
            case EpochReported() if event.epoch in self.milestones:
                rung, value = self.milestones.index(event.epoch), event.metrics.get(self.metric)
                words = f"trial {event.job.trial} is the first at rung {rung}, {event.epoch} epochs: "
                yield ("rung", event.epoch), Notice("rung", f"{words}{self.metric} {value}")
            case SiteDegraded(_, site, cause):
                yield ("trouble", (site, cause)), Notice("trouble", f"site {site}: {cause}")
            case PilotQueued() if event.obstacle:
                words = f"job {event.job} of site {event.site} will not start by itself: {event.obstacle}"
                yield ("trouble", (event.site, event.obstacle)), Notice("trouble", words)
            case PilotEnded() if not event.usable or event.refused:
                words = f"a pilot of site {event.site} could not be had: {event.cause}"
                yield ("trouble", (event.site, event.cause)), Notice("trouble", words)
            case _:
                pass

    def _of_instruction(self, instruction: Instruction) -> Iterator[tuple[tuple[str, object], Notice]]:
        match instruction:
            case TrialFinished(trial, TrialState.FAILED, _, reason):
                yield ("trouble", reason), Notice("trouble", f"trial {trial} has failed: {reason}")
            case SetAside(what, _, cause):
                yield (
                    ("trouble", (what, cause)),
                    Notice("trouble", f"{what} is not used for a while: {cause}"),
                )
            case StartJob():
                self._started += 1
            case FinishStudy(state, cause):
                words = f"the search has ended: {state.value}" + (f", {cause}" if cause else "")
                yield ("end", (self._started, words)), Notice("end", words)
            case _:
                pass


class Notifier:
    """An observer that runs the command, in a thread; use as a context manager."""

    def __init__(
        self,
        spec: NotifySpec,
        notices: Notices,
        study: str,
        directory: Path,
        records: Iterable[Record] = (),
    ) -> None:
        """Prepare to notify.

        Args:
            spec: What is run, and on what.
            notices: Of the search.
            study: Name of the study.
            directory: Run directory.
            records: What has happened so far: nobody is told of it again.
        """
        self._spec, self._notices, self._study, self._directory = spec, notices, study, directory
        for record in records:
            notices.of(record.event, record.instructions)
        self._left = _MOST_TROUBLES
        self._due: queue.SimpleQueue[Notice | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="notifier", daemon=True)

    def add(self, event: Event, instructions: tuple[Instruction, ...]) -> None:
        """Have the command told of what has happened."""
        for notice in self._notices.of(event, instructions):
            self._left -= notice.kind == "trouble"
            if notice.kind in self._spec.on and (notice.kind != "trouble" or self._left >= 0):
                self._due.put(notice)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for a while until all is told."""
        self._due.put(None)
        self._thread.join(_PATIENCE_S if kind is None else 0.0)

    def _work(self) -> None:
        while (notice := self._due.get()) is not None:
            try:
                self._run(notice)
            except Exception as error:  # noqa: BLE001 - whatever it is, it must not cost the study anything
                logger.warning("notify.command failed, the study goes on: %s", words_of(error))

    def _run(self, notice: Notice) -> None:
        values = {
            "event": notice.kind,
            "study": self._study,
            "message": notice.message,
            "directory": str(self._directory),
        }
        command = [word.format(**values) for word in self._spec.command]
        told = {f"RASDA_{name.upper()}": value for name, value in values.items()}
        done = subprocess.run(
            command,
            env={**os.environ, **told},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=_LIMIT_S,
            check=False,
        )
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip()[-300:]
            logger.warning("notify.command ended with %d: %s", done.returncode, said)
