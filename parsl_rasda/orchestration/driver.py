"""The live driver: one thread owns the machine, writes the journal, and acts.

Backends post events from any thread; they only enqueue. Events that have piled up are handled
together and synced to disk once, before any of their instructions is carried out.
"""

from __future__ import annotations

import gc
import math
import queue
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice, zip_longest
from typing import Protocol, assert_never

from msgspec.structs import fields, replace

from parsl_rasda.errors import JournalError, OtherDecisionError
from parsl_rasda.orchestration.backend import Backend, BackendFailed, event_of
from parsl_rasda.orchestration.events import (
    CodeSeen,
    ContinueJob,
    EndJob,
    EpochReported,
    Event,
    FinishStudy,
    Instruction,
    JobEnded,
    ObserveTrial,
    PilotStarted,
    ProposeTrial,
    ReleasePilot,
    RequestPilot,
    SearchExhausted,
    SetAside,
    StartJob,
    StudyInterrupted,
    StudyStarted,
    TimerFired,
    TrialFinished,
    TrialProposed,
    UserTold,
    VersionChanged,
    cleaned_event,
)
from parsl_rasda.orchestration.follower import CannotFollowError
from parsl_rasda.orchestration.job_specs import JobSpecBuilder
from parsl_rasda.orchestration.journal import Journal, Record
from parsl_rasda.orchestration.machine import Machine
from parsl_rasda.search.base import Multiobjective, Searcher
from parsl_rasda.types import Budget, Confirm, JobId, Method, PilotId, SiteName, StudyState, TrialId

_HEARTBEAT_S = 10.0
_BATCH = 256
_READ_AHEAD = 2048
_TO_SEARCHER = frozenset({ObserveTrial, TrialFinished})
# A replay asks for `type`: `isinstance` takes five times as long where a record of msgspec's is another one.


class Observer(Protocol):
    """Sees every event and what followed from it: usage, progress display, log."""

    def add(self, event: Event, instructions: tuple[Instruction, ...]) -> None:
        """Take note; must neither block nor raise."""
        ...


@dataclass(slots=True)
class Driver:
    """Carries a study through, from its present state to its end.

    Attributes:
        on_write: Called before anything is written; raises if another controller has taken over.
        on_heartbeat: Called every few seconds, however busy the study is; raises if so, too.
    """

    machine: Machine
    journal: Journal
    backend: Backend
    searcher: Searcher
    job_specs: JobSpecBuilder
    clock: Callable[[], float]
    observers: Sequence[Observer] = ()
    on_heartbeat: Callable[[], None] = lambda: None
    on_write: Callable[[], None] = lambda: None
    _abandoned: bool = False
    _heartbeat_at: float = -math.inf
    _events: queue.SimpleQueue[Event | BackendFailed] = field(default_factory=queue.SimpleQueue)

    def interrupt(self) -> None:
        """Let running jobs save and leave, then end; may be called from a signal handler."""
        self._events.put(StudyInterrupted(self.clock()))

    def tell(self, event: UserTold | TrialProposed) -> None:
        """Hand over what the user has told; may be called from any thread."""
        self._events.put(event)

    def abandon(self) -> None:
        """End at once: whatever still runs is killed and taken up again by `resume`."""
        self._abandoned = True
        self.interrupt()

    def run(
        self,
        num_samples: int,
        sites: Mapping[SiteName, int],
        missed: Iterable[Event] = (),
        *,
        retry_failed: bool = False,
        budget: Budget | None = None,
        method: Method | None = None,
        later: Mapping[SiteName, int] = {},
        confirm: Confirm | None = None,
    ) -> FinishStudy:
        """Run until nothing is left to do, and return how the study ended.

        Args:
            num_samples: Trials wanted in all.
            sites: Pilots wanted per site.
            missed: What happened while no controller was listening; only recorded, not acted on.
            retry_failed: Let the trials that failed start afresh.
            budget: What the search may spend.
            method: By which it goes on, if that has changed.
            later: Pilots per site beyond those, for which trials must wait.
            confirm: How its best trials are trained again at its end.

        Raises:
            ControllerFailedError: If the backend has met a bug.
        """
        pilots: dict[PilotId, PilotStarted] = {}
        self.record(list(missed))
        self.backend.open(self._events.put)
        try:
            started = StudyStarted(
                self.clock(), num_samples, dict(sites), retry_failed, budget, method, dict(later), confirm
            )
            finish = self._act(self.record([started, *self._code_events()]), pilots)
            while finish is None and not self._abandoned:
                finish = self._step(pilots)
        finally:
            self.backend.close()
        return finish or FinishStudy(StudyState.INTERRUPTED)

    def _step(self, pilots: dict[PilotId, PilotStarted]) -> FinishStudy | None:
        self._heartbeat()
        wake_at = self.machine.wake_at
        patience_s = _HEARTBEAT_S if wake_at is None else min(_HEARTBEAT_S, max(0.0, wake_at - self.clock()))
        try:
            batch = [self._arrived(self._events.get(timeout=patience_s))]
        except queue.Empty:
            if wake_at is None or self.clock() < wake_at:
                return None
            batch = [TimerFired(self.clock())]
        while len(batch) < _BATCH:
            try:
                batch.append(self._arrived(self._events.get_nowait()))
            except queue.Empty:
                break
        pilots.update({e.pilot: e for e in batch if isinstance(e, PilotStarted)})
        return self._act(self.record([*self._code_events(), *batch]), pilots)

    def _arrived(self, posted: Event | BackendFailed) -> Event:
        """Return an event that was posted.

        A job ends when the controller knows it: its last rank dates the report before its process ends, and
        who waits for its slots must learn how long that takes.
        """
        event = event_of(posted)
        return replace(event, at=max(event.at, self.clock())) if isinstance(event, JobEnded) else event

    def _code_events(self) -> Iterator[Event]:
        """Yield what code jobs run that start now, unless it is what was seen before."""
        modules = self.job_specs.code.now().digests
        if modules and modules != self.machine.code:
            yield CodeSeen(self.clock(), modules)

    def _heartbeat(self) -> None:
        now = self.clock()
        if not 0 <= now - self._heartbeat_at < _HEARTBEAT_S:  # a clock that was set back must not silence it
            self._heartbeat_at = now
            self.on_heartbeat()

    def record(self, batch: list[Event]) -> list[Instruction]:
        """Let the machine handle events, sync them, and return what must be done."""
        pending, records = deque(batch), []
        while pending:
            event = self._numbered(self._held_out(cleaned_event(pending.popleft())))
            if type(event) is TrialProposed and event.told and self.machine.is_confirming:
                continue  # too late for this search: `resume` takes the request up
            instructions = self.machine.handle(event)
            records.append(Record(event, instructions))
            for instruction in instructions:
                inform(self.searcher, instruction)
            asked = [i for i in instructions if isinstance(i, ProposeTrial)]
            pending.extendleft(self._propose(ask) for ask in asked)
        if records:
            self.on_write()
            self.journal.append(records)
        for record in records:
            for observer in self.observers:
                observer.add(record.event, record.instructions)
        return [i for record in records for i in record.instructions]

    def _held_out(self, event: Event) -> Event:
        """Take the test metric out of a report: it must be in none of the places where metrics are shown."""
        name = self.job_specs.tune.test_metric
        if name is None or not isinstance(event, EpochReported) or name not in event.metrics:
            return event
        others = {key: value for key, value in event.metrics.items() if key != name}
        return replace(event, metrics=others, test=float(event.metrics[name]))

    def _numbered(self, event: Event) -> Event:
        """Give the next number to a trial that the user has added, of which the searcher learns."""
        if not (isinstance(event, TrialProposed) and event.told) or event.told <= self.machine.told:
            return event
        trial = TrialId(f"{len(self.machine.trials):04d}")
        self.searcher.restore(trial, event.config)
        return replace(event, trial=trial)

    def _propose(self, ask: ProposeTrial) -> Event:
        config = self.searcher.propose(ask.trial)
        if config is None:
            return SearchExhausted(self.clock())
        return TrialProposed(self.clock(), ask.trial, dict(config))

    def _act(
        self, instructions: list[Instruction], pilots: dict[PilotId, PilotStarted]
    ) -> FinishStudy | None:
        finish = None
        for instruction in instructions:
            match instruction:
                case StartJob():
                    pilot = pilots[instruction.placement.pilot]
                    trial = self.machine.record_of(instruction.job.trial)
                    spec = self.job_specs.build(
                        instruction,
                        interactive=pilot.interactive,
                        deadline=pilot.deadline,
                        trial=trial,
                    )
                    self.backend.start_job(spec, instruction.placement)
                case ContinueJob():
                    self.backend.continue_job(instruction)
                case EndJob():
                    self.backend.end_job(instruction)
                case RequestPilot():
                    self.backend.request_pilot(instruction)
                case ReleasePilot():
                    self.backend.release_pilot(instruction)
                case FinishStudy():
                    finish = instruction
                case ProposeTrial() | ObserveTrial() | TrialFinished() | SetAside():
                    pass  # who must know has been told when the event was handled
                case _:
                    assert_never(instruction)
        return finish


def replay(
    records: Iterable[Record],
    machine: Machine,
    searcher: Searcher,
    observers: Sequence[Observer],
    *,
    versions: list[str] | None = None,
    followed: int = 0,
    file: str = "journal.jsonl",
) -> int:
    """Bring a fresh machine to where the journal ends; return the number of records.

    Args:
        records: Of the journal.
        machine: A fresh one.
        searcher: Hears what it heard then.
        observers: Others who want to see the records.
        versions: The one that wrote the first record; those that wrote on are added, one after another.
        followed: So many versions, from the first one on, whose decisions stand whatever the machine would
            decide.
        file: For messages.

    Raises:
        OtherDecisionError: If the machine decides otherwise than the journal says.
        JournalError: If a record cannot follow those before it.
    """
    with without_collections():
        return _replay(
            records, machine, searcher, observers, [""] if versions is None else versions, followed, file
        )


@contextmanager
def without_collections() -> Iterator[None]:
    """Run a machine through a whole search without looking for garbage in circles.

    It leaves none, and looking for it takes a fifth of the time.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.freeze()
            gc.unfreeze()  # all that there is counts as old now: else the next collection looks through it
            gc.enable()


def _replay(
    records: Iterable[Record],
    machine: Machine,
    searcher: Searcher,
    observers: Sequence[Observer],
    versions: list[str],
    followed: int,
    file: str,
) -> int:
    count = section = 0
    for record in chain.from_iterable(_batches(records)):
        count += 1
        event, instructions = record.event, record.instructions
        if type(event) is TrialProposed:
            searcher.restore(event.trial, event.config)
        elif type(event) is VersionChanged:
            section += 1
            versions.append(event.version)
        try:
            now = instructions
            if section < followed:
                machine.follow(event, instructions)
            else:
                now = machine.handle(event)
        except Exception as error:
            raise JournalError(file, count + 1, _unusable(error)) from error
        if now != instructions and not _differ_in_words_only(now, instructions):
            raise OtherDecisionError(file, count + 1, _difference(event, instructions, now), section)
        for instruction in instructions:
            if type(instruction) in _TO_SEARCHER:
                inform(searcher, instruction)
        for observer in observers:
            observer.add(event, instructions)
    return count


def _batches(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Yield records, read many at a time; whatever comes before a damaged one.

    To read and to decide in turns takes a tenth more time: each finds the caches of the processor full of the
    other's.
    """
    source, batch = iter(records), list[Record]()
    try:
        while True:
            batch.extend(islice(source, _READ_AHEAD))
            if not batch:
                return
            yield batch
            batch.clear()
    except JournalError:
        yield batch
        raise


def inform(searcher: Searcher, instruction: Instruction) -> None:
    """Tell the searcher what it can learn from an instruction."""
    if type(instruction) is ObserveTrial:
        searcher.observe(instruction.trial, instruction.epoch, instruction.metric)
    elif type(instruction) is TrialFinished and instruction.values and isinstance(searcher, Multiobjective):
        searcher.conclude_all(instruction.trial, instruction.values, instruction.violations)
    elif type(instruction) is TrialFinished:
        searcher.conclude(instruction.trial, instruction.metric)


def _unusable(error: Exception) -> str:
    if isinstance(error, CannotFollowError):
        return f"this version cannot go on from what another one decided here ({error}): end it with that one"
    return f"cannot follow what is before it ({type(error).__name__}: {error})"


def _differ_in_words_only(now: Sequence[Instruction], then: Sequence[Instruction]) -> bool:
    """Whether instructions are the same but for the reasons that people are told."""
    return len(now) == len(then) and all(
        one == other
        or (
            isinstance(one, TrialFinished)
            and isinstance(other, TrialFinished)
            and replace(one, reason=other.reason) == other
        )
        for one, other in zip(now, then, strict=True)
    )


def _difference(event: Event, then: Sequence[Instruction], now: Sequence[Instruction]) -> str:
    one, other = next(pair for pair in zip_longest(then, now) if pair[0] != pair[1])
    words = [_in_words(instruction) for instruction in (one, other)]
    if one is not None and other is not None and words[0] == words[1]:
        differ = [f.name for f in fields(one) if getattr(one, f.name) != getattr(other, f.name)]
        words[1] = f"with another {', '.join(differ)}"
    return f"after {_in_words(event)}: {words[0]}, now {words[1]}"


def _in_words(record: Event | Instruction | None) -> str:
    """Return a record in a few words: its type, and what of it is short."""
    if record is None:
        return "nothing"
    parts = [getattr(record, f.name) for f in fields(record) if f.name not in {"at", "config"}]
    short = [str(part) for part in parts if isinstance(part, str | int | float | JobId) and part != ""]
    return " ".join([type(record).__name__, *short])
