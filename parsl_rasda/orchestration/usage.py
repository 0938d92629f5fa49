"""What a study has used: GPU time, restarts, faults, added up from what happened.

The live view, `status`, `report` and the simulator all read these; nothing else counts anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from parsl_rasda.orchestration.events import (
    RELEASED,
    CodeSeen,
    ContinueJob,
    EndJob,
    EpochReported,
    Event,
    FinishStudy,
    Instruction,
    JobEnded,
    JobStarted,
    ObserveTrial,
    PilotEnded,
    PilotQueued,
    PilotStarted,
    ProposeTrial,
    RequestPilot,
    SetAside,
    SiteDegraded,
    StartJob,
    StudyInterrupted,
    StudyStarted,
    TrialFinished,
    TrialProposed,
)
from parsl_rasda.study_code.code import changed_modules
from parsl_rasda.types import JobId, Outcome, PilotId, SiteName, TrialId

_NOT_COUNTED = frozenset({TrialProposed, ContinueJob, ObserveTrial, ProposeTrial, TrialFinished})  # most are


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that went wrong, in words."""

    at: float
    what: str
    cause: str
    is_refusal: bool = False  # of a pilot, by the batch system or by us


@dataclass(slots=True)
class Usage:
    """Sums over a study. Times in [s], GPU times in [GPU s].

    Attributes:
        busy_gpu_s: Inside epochs.
        restarts_s: Each restart at another world size: from the boundary to the first step done.
        cause: Why the study ended, if not well.
        energy_j: What the jobs of each trial have drawn, as far as it was metered [J].
        jobs_ended: How many jobs have ended.
        jobs_metered: Of how many of them that is known.
        awaited: Pilots that were asked for and have not come: their sites, and since when [s].
        queued: What batch systems have last said of those, as far as they were asked.
        boundaries: When each live job began its present epoch [s].
    """

    started_at: float | None = None
    finished_at: float | None = None
    last_at: float = 0.0
    running_s: float = 0.0
    busy_gpu_s: float = 0.0
    pilot_gpu_s: float = 0.0
    epochs: int = 0
    repeated_epochs: int = 0
    restarts_s: list[float] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    preemptions: int = 0
    energy_j: dict[TrialId, float] = field(default_factory=dict)
    jobs_ended: int = 0
    jobs_metered: int = 0
    cause: str = ""
    awaited: dict[PilotId, tuple[SiteName, float]] = field(default_factory=dict)
    queued: dict[PilotId, PilotQueued] = field(default_factory=dict)
    boundaries: dict[JobId, float] = field(default_factory=dict)
    _is_leaving: bool = False
    _code: Mapping[str, str] = field(default_factory=dict)
    _pilots: dict[PilotId, tuple[float, int]] = field(default_factory=dict)
    _jobs: dict[JobId, int] = field(default_factory=dict)
    _resizing: dict[TrialId, float] = field(default_factory=dict)
    _restarting: dict[JobId, float] = field(default_factory=dict)
    _done: dict[TrialId, int] = field(default_factory=dict)

    def add(self, event: Event, instructions: tuple[Instruction, ...]) -> None:
        """Add one event and what followed from it."""
        if type(event) is StudyStarted:
            self._new_controller(event)
        self.last_at = max(self.last_at, event.at)
        if type(event) not in _NOT_COUNTED:
            self._add_event(event)
        for instruction in instructions:
            if type(instruction) not in _NOT_COUNTED:
                self._add_instruction(event.at, instruction)

    def _add_event(self, event: Event) -> None:
        match event:
            case EpochReported():
                self._add_epoch(event)
            case JobStarted():
                self.boundaries[event.job] = event.at
                if self._restarting and event.job in self._restarting:
                    self.restarts_s.append(event.at - self._restarting.pop(event.job))
            case JobEnded():
                self._add_end(event)
            case PilotStarted():
                self._open_pilot(event)
            case PilotQueued() if event.pilot in self.awaited:
                self.queued[event.pilot] = event
            case PilotEnded() | SiteDegraded():
                self._add_fault(event)
            case CodeSeen():
                self._add_code(event)
            case StudyInterrupted():
                self._is_leaving = True  # what ends from now on ends by that
            case _:
                pass

    def makespan_s(self, now: float | None = None) -> float:
        """Return the time under a controller so far [s]; time between controllers does not count."""
        if self.started_at is None or self.finished_at is not None:
            return self.running_s
        until = self.last_at if now is None else now
        return self.running_s + max(0.0, until - self.started_at)

    def held_gpu_s(self, now: float | None = None) -> float:
        """Return GPU time of all pilots so far [GPU s]."""
        until = self.finished_at
        if until is None:  # at its end a study gives its pilots back, though a pipeline may keep them
            until = self.last_at if now is None else now
        return self.pilot_gpu_s + sum(n * max(0.0, until - at) for at, n in self._pilots.values())

    @property
    def gpus(self) -> int:
        """GPUs of the pilots that are up."""
        return sum(n for _, n in self._pilots.values())

    @property
    def busy_gpus(self) -> int:
        """GPUs held by live jobs."""
        return sum(self._jobs.values())

    def _new_controller(self, event: StudyStarted) -> None:
        """Close what an earlier controller left open when it died."""
        if self.started_at is not None and self.finished_at is None:
            self.running_s += self.last_at - self.started_at
            if not self._is_leaving:  # the user's own second Ctrl-C is no fault
                self.faults.append(Fault(self.last_at, "controller", "died; taken up again"))
        for pilot in tuple(self._pilots):
            self._close_pilot(pilot, self.last_at)
        self._jobs.clear()
        self.boundaries.clear()
        self._resizing.clear()
        self._restarting.clear()
        self.awaited.clear()
        self.queued.clear()
        self.started_at, self.finished_at, self.cause = event.at, None, ""
        self._is_leaving = False

    def _add_code(self, event: CodeSeen) -> None:
        if self._code:
            names = ", ".join(changed_modules(self._code, event.modules))
            words = f"changed in mid-search: {names}; trials that start from now on run other code"
            self.faults.append(Fault(event.at, "code", words))
        self._code = event.modules

    def _add_fault(self, event: PilotEnded | SiteDegraded) -> None:
        what, is_refusal = f"site {event.site}", False
        if isinstance(event, PilotEnded):
            self._forget_awaited(event.pilot)
            is_refusal = event.refused
            self._close_pilot(event.pilot, event.at)
            what = f"pilot {event.pilot}"
        if event.cause != RELEASED and not self._is_leaving:
            self.faults.append(Fault(event.at, what, event.cause, is_refusal))

    def _open_pilot(self, event: PilotStarted) -> None:
        self._forget_awaited(event.pilot)
        self._pilots[event.pilot] = (event.at, sum(len(n.gpus) for n in event.nodes))
        if event.warning:
            self.faults.append(Fault(event.at, f"pilot {event.pilot}", event.warning))

    def _forget_awaited(self, pilot: PilotId) -> None:
        self.awaited.pop(pilot, None)
        self.queued.pop(pilot, None)

    def _close_pilot(self, pilot: PilotId, at: float) -> None:
        since, gpus = self._pilots.pop(pilot, (at, 0))
        self.pilot_gpu_s += gpus * max(0.0, at - since)

    def _add_epoch(self, event: EpochReported) -> None:
        gpus = self._jobs.get(event.job)
        if gpus is None:
            return  # a stale attempt
        self.boundaries[event.job] = event.at
        self.epochs += 1
        self.busy_gpu_s += gpus * event.seconds
        if event.epoch > self._done.get(event.job.trial, 0):
            self._done[event.job.trial] = event.epoch
        else:
            self.repeated_epochs += 1
        if self._restarting and event.job in self._restarting:
            self.restarts_s.append(max(0.0, event.at - event.seconds - self._restarting.pop(event.job)))

    def _add_end(self, event: JobEnded) -> None:
        self.boundaries.pop(event.job, None)
        if self._jobs.pop(event.job, None) is None:
            return
        self.jobs_ended += 1
        if event.energy_j is not None:
            self.jobs_metered += 1
            self.energy_j[event.job.trial] = self.energy_j.get(event.job.trial, 0.0) + event.energy_j
        if self._restarting:
            self._restarting.pop(event.job, None)
        if event.outcome is Outcome.REACHED:
            return
        if event.outcome is Outcome.PREEMPTED and not self._is_leaving:
            self.preemptions += 1
        is_ours = self._is_leaving and event.outcome is Outcome.LOST
        if event.outcome in {Outcome.LOST, Outcome.FAILED} and not is_ours:
            self.faults.append(Fault(event.at, f"job {event.job}", event.cause))

    def _add_instruction(self, at: float, instruction: Instruction) -> None:
        match instruction:
            case StartJob():
                self._jobs[instruction.job] = instruction.placement.world_size
                since = self._resizing.pop(instruction.job.trial, None)
                if since is not None:
                    self._restarting[instruction.job] = since
            case EndJob(job, "resize"):
                self._resizing[job.trial] = at
            case RequestPilot(pilot, site):
                self.awaited[pilot] = (site, at)
            case SetAside(times=1):  # later ones are the same fault
                self.faults.append(Fault(at, instruction.what, f"set aside: {instruction.cause}"))
            case FinishStudy() if self.started_at is not None:
                self.running_s += at - self.started_at
                self.finished_at, self.cause = at, instruction.cause
                self.awaited.clear()
                self.queued.clear()
            case _:
                pass
