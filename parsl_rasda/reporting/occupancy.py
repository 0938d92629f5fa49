"""Who held which slots when, read from the journal of a search.

Time counts under a controller only, as in `Usage`: the clock of a study stands still while nobody runs it.
The areas here are the sums there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

from parsl_rasda.orchestration.events import (
    EndJob,
    EpochReported,
    Event,
    FinishStudy,
    Instruction,
    JobEnded,
    JobStarted,
    PilotEnded,
    PilotStarted,
    StartJob,
    StudyStarted,
)
from parsl_rasda.orchestration.journal import Record
from parsl_rasda.types import JobId, NodeSlots, PilotId, Placement, SiteName

Slot: TypeAlias = tuple[SiteName, str, int]  # the same whichever pilot holds it


@dataclass(slots=True)
class JobSpan:
    """A job on its slots. Times in [s] since the search began.

    Attributes:
        trained_from: When its first epoch began; None if none did.
        ending: Why it left: a word or the cause; empty while it runs.
    """

    job: JobId
    placement: Placement
    begin: float
    end: float = math.nan
    trained_from: float | None = None
    ending: str = ""

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Its slots in rank order."""
        return _slots(self.placement.site, self.placement.nodes)


@dataclass(slots=True)
class PilotSpan:
    """A pilot on its slots. Times in [s] since the search began."""

    pilot: PilotId
    slots: tuple[Slot, ...]
    begin: float
    end: float = math.nan


@dataclass(slots=True)
class Occupancy:
    """All jobs and pilots of a search, in order of their begin.

    Attributes:
        resumed: When another controller resumed the study [s since the search began].
    """

    jobs: list[JobSpan] = field(default_factory=list)
    pilots: list[PilotSpan] = field(default_factory=list)
    resumed: list[float] = field(default_factory=list)
    _live: dict[JobId, JobSpan] = field(default_factory=dict)
    _up: dict[PilotId, PilotSpan] = field(default_factory=dict)
    _origin: float | None = None
    _last_at: float = 0.0
    _finished_at: float | None = None

    def add(self, event: Event, instructions: tuple[Instruction, ...]) -> None:
        """Take note of one event and its instructions."""
        if isinstance(event, StudyStarted):
            self._new_controller(event)
        self._last_at = max(self._last_at, event.at)
        at = self._since(event.at)
        match event:
            case PilotStarted():
                pilot = PilotSpan(event.pilot, _slots(event.site, event.nodes), at)
                self._up[event.pilot] = pilot
                self.pilots.append(pilot)
            case PilotEnded() if event.pilot in self._up:
                self._up.pop(event.pilot).end = at
            case JobStarted() if event.job in self._live:
                self._live[event.job].trained_from = at
            case EpochReported() if event.job in self._live:
                job = self._live[event.job]
                if job.trained_from is None:
                    job.trained_from = max(job.begin, at - event.seconds)
            case JobEnded() if event.job in self._live:
                job = self._live.pop(event.job)
                job.end, job.ending = at, event.cause or job.ending or event.outcome.value
            case _:
                pass
        for instruction in instructions:
            self._follow(event.at, instruction)

    def close(self, now: float | None = None) -> float:
        """End every open span at the study's end, else at the present time; return how long it took [s].

        Args:
            now: Present time [s] for a study that is running, else None.
        """
        until = self._finished_at
        if until is None:
            until = self._last_at if now is None else max(now, self._last_at)
        self._close(self._since(until))
        return self._since(until)

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Every slot that was ever held, by site, node and GPU."""
        return tuple(sorted({slot for span in self.pilots for slot in span.slots}))

    def _since(self, at: float) -> float:
        return max(0.0, at - (self._origin or 0.0))

    def _new_controller(self, event: StudyStarted) -> None:
        if self._origin is not None:
            ended = self._last_at if self._finished_at is None else self._finished_at
            self._close(self._since(ended))
            self.resumed.append(self._since(ended))
            self._origin = event.at - self._since(ended)
        else:
            self._origin = event.at
        self._finished_at = None

    def _close(self, at: float) -> None:
        for job in self._live.values():
            job.end = max(at, job.begin)
        for pilot in self._up.values():
            pilot.end = max(at, pilot.begin)
        self._live.clear()
        self._up.clear()

    def _follow(self, at: float, instruction: Instruction) -> None:
        match instruction:
            case StartJob():
                span = JobSpan(instruction.job, instruction.placement, self._since(at))
                self._live[instruction.job] = span
                self.jobs.append(span)
            case EndJob(job, reason) if job in self._live:
                self._live[job].ending = reason
            case FinishStudy():
                self._finished_at = at
            case _:
                pass


def occupancy_of(records: Iterable[Record]) -> Occupancy:
    """Return the occupancy of a search from its records; call `close` before reading it."""
    found = Occupancy()
    for record in records:
        found.add(record.event, record.instructions)
    return found


def _slots(site: SiteName, nodes: tuple[NodeSlots, ...]) -> tuple[Slot, ...]:
    return tuple((site, str(n.node), gpu) for n in nodes for gpu in n.gpus)
