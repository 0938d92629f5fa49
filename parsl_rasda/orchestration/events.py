"""What can happen to a study (events), and what must be done about it (instructions).

Both are closed sets of records that nobody changes. Events are journalled before their instructions are
acted on; a machine fed the same events gives the same instructions.

They are msgspec's structs, which are read five times as fast as dataclasses, and made and compared three
times as fast: more than a third of a replay was that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from parsl_rasda.plain_text import cleaned
from parsl_rasda.protocol import Checkpoint, Steps
from parsl_rasda.types import (
    Blame,
    Budget,
    Confirm,
    GradientNoise,
    JobId,
    Method,
    NodeSlots,
    Outcome,
    Phase,
    PilotId,
    Placement,
    ScheduleEntry,
    SiteName,
    StudyState,
    TrialId,
    TrialState,
)

Config: TypeAlias = Mapping[str, Any]
"""A trial's configuration. Any: msgspec knows no types that contain themselves, as `JSON` does."""


class _Record(Struct, frozen=True, tag=True, gc=False):  # nothing in it leads back to it
    """In JSON, ``type`` has the name of its type."""


# ------------------------------------------------------------------------------------------ events


class StudyStarted(_Record, frozen=True):
    """A controller has taken the study up, for the first time or again after a death.

    Whatever ran under an earlier controller is gone by now: its jobs are taken up again from their
    last checkpoints, at no cost in retries.

    Attributes:
        num_samples: Trials wanted in all; a later start may raise it.
        sites: Pilots wanted per site; a later start may name other sites.
        retry_failed: Trials that failed start afresh.
        budget: What the search may spend, over all its starts; None sets no limit.
        method: By which it goes on from now, if the user has changed that.
        later: Pilots per site that are asked for beyond those, one by one, when trials wait for slots.
        confirm: How its best trials are trained again at its end; None if they are not.
    """

    at: float
    num_samples: int
    sites: Mapping[SiteName, int]
    retry_failed: bool = False
    budget: Budget | None = None
    method: Method | None = None
    later: Mapping[SiteName, int] = {}
    confirm: Confirm | None = None


class PilotStarted(_Record, frozen=True):
    """An allocation's job has started; its slots join the ledger.

    Attributes:
        interactive: Jobs there have a control channel.
        deadline: Unix time [s] by which jobs must have left: the allocation's end, less the time that
            the site keeps for checkpoints; or None.
        release_idle_after_s: The site wants it back after so long without work [s]; or None.
        warning: In what it falls short of the site file, in words.
        is_own_allocation: The controller itself is in it: with it, the controller ends.
    """

    at: float
    pilot: PilotId
    site: SiteName
    nodes: tuple[NodeSlots, ...]
    interactive: bool = True
    deadline: float | None = None
    release_idle_after_s: float | None = None
    warning: str = ""
    is_own_allocation: bool = False


class PilotQueued(_Record, frozen=True):
    """A pilot waits in a queue, and the batch system says how it stands there. It is written down.

    Attributes:
        job: The batch system's id.
        state: The batch system's word.
        reason: Why it waits: the batch system's words, or nothing.
        starts_at: When it should start, as the batch system estimates [s]; or None.
        obstacle: Why it will not start by itself, in words; empty if it only has to wait.
    """

    at: float
    pilot: PilotId
    site: SiteName
    job: str
    state: str
    reason: str = ""
    starts_at: float | None = None
    obstacle: str = ""


RELEASED = "released"  # the cause of a pilot's end that we asked for


class PilotLost(_Record, frozen=True):
    """A pilot that is up is as good as gone: nothing more may start there.

    The `JobEnded` of each of its jobs follows, then its `PilotEnded`.
    """

    at: float
    pilot: PilotId


class PilotEnded(_Record, frozen=True):
    """An allocation is gone, or could not be had; jobs on it are reported by `JobEnded` first.

    Attributes:
        usable: Whether it ever started; a site whose pilots never start is given up, for longer and longer.
        refused: It never started, and the site is to be asked less and less often, from the first time on.
            (Journals of before have only `usable`, by which a site is asked three times at once.)
    """

    at: float
    pilot: PilotId
    site: SiteName
    cause: str
    usable: bool = True
    refused: bool = False


class TrialProposed(_Record, frozen=True):
    """The searcher has answered a `ProposeTrial`, or the user has added a trial.

    Attributes:
        told: The number of the user's request; None if the searcher has proposed it.
    """

    at: float
    trial: TrialId
    config: Config
    told: int | None = None


class SearchExhausted(_Record, frozen=True):
    """The searcher has no further configuration."""

    at: float


class JobStarted(_Record, frozen=True):
    """A job's ranks have finished their first step: the restart is over.

    Attributes:
        once_s: Part of the start that no later one on that node will need [s].
    """

    at: float
    job: JobId
    once_s: float = 0.0


class EpochReported(_Record, frozen=True):
    """A job has finished an epoch. An interactive job now waits for `ContinueJob` or `EndJob`.

    Attributes:
        checkpoint: Newest whole checkpoint of the attempt, or None if it made none.
        samples: Training samples of an epoch, if that is known.
        noise: Of the gradients in this epoch, if that is known.
        steps: What the trial logged on the way, for curves only: nothing is decided by it.
        includes_startup: Whether the start of a script is in ``seconds``, which nobody could tell apart.
        exact: Whether training gives the same bits at any width, in words; empty if that is not known or new.
        devices: Models of the ranks' GPUs; empty if they are not known or new.
        test: The test metric, which is in no other place: nobody looks at it before the search is over.
    """

    at: float
    job: JobId
    epoch: int
    metrics: Mapping[str, float]
    seconds: float
    checkpoint: Checkpoint | None
    slots: tuple[str, ...] = ()
    samples: int | None = None
    noise: GradientNoise | None = None
    steps: Steps = ()
    includes_startup: bool = False
    exact: str = ""
    devices: tuple[str, ...] = ()
    test: float | None = None


class JobEnded(_Record, frozen=True):
    """A job's processes are gone and its slots are free.

    Attributes:
        checkpoint: Path of the newest whole checkpoint of the attempt, or None if it made none.
        checkpoint_epoch: Epochs done in it; None stands for those that the trial has by then.
        unreadable: The checkpoint it was to go on from, if that is gone or damaged: nothing was trained.
        blame: Whose fault it was; None in records of versions that did not ask, whose rule still holds for
            them.
        phase: How far its ranks got, if that is known.
        finished: The training function has ended its trial by itself: there is no more to train.
        energy_j: What its devices have drawn [J], or None if nobody knows. Nothing is decided by it.
    """

    at: float
    job: JobId
    outcome: Outcome
    cause: str = ""
    checkpoint: str | None = None
    checkpoint_epoch: int | None = None
    unreadable: str | None = None
    blame: Blame | None = None
    phase: Phase | None = None
    finished: bool = False
    energy_j: float | None = None


class TimerFired(_Record, frozen=True):
    """Nothing has happened until a time at which the machine wanted to be woken."""

    at: float


class SiteDegraded(_Record, frozen=True):
    """A site has a fault that may cost time only: what runs there runs on. It is written down."""

    at: float
    site: SiteName
    cause: str


class VersionChanged(_Record, frozen=True):
    """Another version of the product goes on with the journal: what follows, that one decided."""

    at: float
    version: str


class CodeSeen(_Record, frozen=True):
    """Jobs that start from now on run this code of the study's own. It is written down.

    Attributes:
        modules: The digest of what each module of the study does.
    """

    at: float
    modules: Mapping[str, str]


class UserTold(_Record, frozen=True):
    """The user has told a search something (`tell`).

    Attributes:
        told: The number of the request; one that comes a second time changes nothing.
        stop: A trial that is to end.
        at_most: So many trials may run at a time from now on; 0 for any number.
        retry_failed: Trials that failed start afresh.
    """

    at: float
    told: int
    stop: TrialId | None = None
    at_most: int | None = None
    retry_failed: bool = False


class StudyInterrupted(_Record, frozen=True):
    """The user pressed Ctrl-C, or the controller was told to leave."""

    at: float


Event: TypeAlias = (
    StudyStarted
    | PilotStarted
    | PilotQueued
    | PilotLost
    | PilotEnded
    | TrialProposed
    | SearchExhausted
    | JobStarted
    | EpochReported
    | JobEnded
    | TimerFired
    | SiteDegraded
    | VersionChanged
    | CodeSeen
    | UserTold
    | StudyInterrupted
)


def cleaned_event(event: Event) -> Event:
    """Return an event as it may be written down: words of people and programs are short and harmless."""
    match event:
        case PilotStarted():
            return replace(event, warning=cleaned(event.warning))
        case PilotEnded() | JobEnded() | SiteDegraded():
            return replace(event, cause=cleaned(event.cause))
        case PilotQueued():
            return replace(event, reason=cleaned(event.reason), obstacle=cleaned(event.obstacle))
        case _:
            return event


# ------------------------------------------------------------------------------------ instructions


class RequestPilot(_Record, frozen=True):
    """Ask the site for an allocation; answered by `PilotStarted` or `PilotEnded`."""

    pilot: PilotId
    site: SiteName


class ReleasePilot(_Record, frozen=True):
    """Give an allocation back; answered by `PilotEnded`."""

    pilot: PilotId


class ProposeTrial(_Record, frozen=True):
    """Ask the searcher; answered by `TrialProposed` or `SearchExhausted` before anything else."""

    trial: TrialId


class StartJob(_Record, frozen=True):
    """Start an attempt; answered by `JobStarted`, `EpochReported`..., and always by one `JobEnded`.

    Attributes:
        schedule: History of the trial, the coming stretch last.
    """

    job: JobId
    config: Config
    placement: Placement
    epoch: int
    until: int
    schedule: tuple[ScheduleEntry, ...]
    resume_from: str | None


class ContinueJob(_Record, frozen=True):
    """Answer a waiting job: train on in the same processes, to ``until``, with these replicas.

    Attributes:
        batches: How many `batch_size` make a step; None for as many as there are replicas.
    """

    job: JobId
    until: int
    replicas: int
    batches: int | None = None


class EndJob(_Record, frozen=True):
    """Let a job leave. At an epoch boundary its checkpoint is already written.

    Attributes:
        reason: ``stopped``, ``resize``, ``paused``, ``walltime`` or ``interrupted``, for the log.
    """

    job: JobId
    reason: str


class ObserveTrial(_Record, frozen=True):
    """Tell the searcher what a trial reached at a rung."""

    trial: TrialId
    epoch: int
    metric: float


class TrialFinished(_Record, frozen=True):
    """Tell the searcher, the log and the people how a trial ended.

    Attributes:
        metric: Its last metric, or None if it failed.
        reason: Why, in words.
        values: With several metrics or constraints: all last metrics, in the study's order.
        violations: By how much it breaks each constraint; more than 0 is too much.
    """

    trial: TrialId
    state: TrialState
    metric: float | None
    reason: str
    values: tuple[float, ...] = ()
    violations: tuple[float, ...] = ()


class SetAside(_Record, frozen=True):
    """Tell the log and the people that something is not used for a while.

    Attributes:
        what: A slot, a node, a world size on a site or a site, in words.
        cause: The last failure that it is blamed for.
        until: When it is tried again [s].
        times: How often in a row it was set aside.
    """

    what: str
    site: SiteName
    cause: str
    until: float
    times: int = 1


class FinishStudy(_Record, frozen=True):
    """Nothing is left to do; the driver ends."""

    state: StudyState
    cause: str = ""


Instruction: TypeAlias = (
    RequestPilot
    | ReleasePilot
    | ProposeTrial
    | StartJob
    | ContinueJob
    | EndJob
    | ObserveTrial
    | TrialFinished
    | SetAside
    | FinishStudy
)
