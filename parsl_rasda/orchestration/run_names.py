"""Runs of a confirmation by name, and what of a journal is about the search alone.

Who draws, exports or learns from a search must not take the runs of its confirmation for trials of it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Protocol

from parsl_rasda.orchestration.events import (
    ContinueJob,
    EndJob,
    EpochReported,
    Event,
    Instruction,
    JobEnded,
    JobStarted,
    StartJob,
    TimerFired,
)
from parsl_rasda.orchestration.journal import Record
from parsl_rasda.types import TrialId


def run_name(trial: TrialId, number: int) -> TrialId:
    """Return the name of a run: the first one of trial ``0003`` is ``c0003-1``."""
    return TrialId(f"c{trial}-{number}")


def is_run(trial: TrialId) -> bool:
    """Whether it is a run of a confirmation, and no trial of the search."""
    return trial.startswith("c")


def number_of(trial: TrialId) -> int:
    """Return the number of a trial; of a run, that of its candidate."""
    return int(trial.removeprefix("c").partition("-")[0])


class _Observer(Protocol):
    def add(self, event: Event, instructions: tuple[Instruction, ...]) -> None: ...


@dataclass(frozen=True, slots=True)
class OfSearch:
    """An observer that hands on what is about the search alone."""

    observer: _Observer

    def add(self, event: Event, instructions: tuple[Instruction, ...]) -> None:
        """Take note of what happened, and of what followed from it."""
        found = of_search(Record(event, instructions))
        self.observer.add(found.event, found.instructions)


@dataclass(frozen=True, slots=True)
class SearchRecords(Collection[Record]):
    """Records of a journal without what is about the runs of a confirmation; ``whole`` has all of them."""

    whole: Collection[Record]

    def __len__(self) -> int:
        """Return as many as there are: of an event of a run, the time is left."""
        return len(self.whole)

    def __iter__(self) -> Iterator[Record]:
        """Yield them in order."""
        return map(of_search, self.whole)

    def __contains__(self, record: object) -> bool:
        """Whether a record is among them."""
        return any(record == one for one in self)


def all_records(records: Collection[Record]) -> Collection[Record]:
    """Return the records with those of runs."""
    return records.whole if isinstance(records, SearchRecords) else records


def of_search(record: Record) -> Record:
    """Return what of a record is about the search."""
    event, instructions = record.event, record.instructions
    about_run = isinstance(event, JobStarted | EpochReported | JobEnded) and is_run(event.job.trial)
    others = tuple(i for i in instructions if not _is_of_run(i))
    if not about_run and len(others) == len(instructions):
        return record
    return Record(TimerFired(event.at) if about_run else event, others)


def _is_of_run(instruction: Instruction) -> bool:
    return isinstance(instruction, StartJob | ContinueJob | EndJob) and is_run(instruction.job.trial)
