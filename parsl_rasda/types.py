"""The words of the product: ids and small frozen records shared by every layer.

Nothing here decides anything. See the glossary in README.md: a *trial* is one configuration
through its life, a *job* is one attempt to train it on a *placement* of GPU *slots*.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NewType, TypeAlias

from msgspec import Struct

TrialId = NewType("TrialId", str)
SiteName = NewType("SiteName", str)
PilotId = NewType("PilotId", str)
NodeName = NewType("NodeName", str)

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"


class Mode(StrEnum):
    """Whether a smaller or a larger metric is better."""

    MIN = "min"
    MAX = "max"


class JobId(Struct, frozen=True, order=True, gc=False):  # a dataclass takes 3 % more of a replay's time
    """One attempt at one trial; ``attempt`` is the fencing token and only ever grows."""

    trial: TrialId
    attempt: int

    def __str__(self) -> str:
        return f"{self.trial}.{self.attempt}"

    @classmethod
    def parse(cls, text: str) -> JobId:
        """Return the id that `str` wrote."""
        trial, _, attempt = text.rpartition(".")
        return cls(TrialId(trial), int(attempt))


@dataclass(frozen=True, slots=True)
class NodeSlots:
    """Some GPUs of one node, by their places among those that the pilot sees there."""

    node: NodeName
    gpus: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Placement:
    """The slots of one job: part of one node, or several whole nodes, always in one pilot."""

    site: SiteName
    pilot: PilotId
    nodes: tuple[NodeSlots, ...]

    @property
    def world_size(self) -> int:
        """Number of slots, one for each rank."""
        nodes = self.nodes
        return len(nodes[0].gpus) if len(nodes) == 1 else sum(len(n.gpus) for n in nodes)

    @property
    def slots(self) -> tuple[str, ...]:
        """``node:gpu`` of each rank, in rank order."""
        return tuple(f"{n.node}:{gpu}" for n in self.nodes for gpu in n.gpus)

    def minus(self, other: Placement) -> Placement:
        """Return the slots of this placement that another one does not have."""
        if self.pilot != other.pilot:
            return self
        others = {n.node: n.gpus for n in other.nodes}
        nodes: list[NodeSlots] = []
        for part in self.nodes:
            if (gone := others.get(part.node)) is None:
                nodes.append(part)
            elif left := tuple([gpu for gpu in part.gpus if gpu not in gone]):
                nodes.append(NodeSlots(part.node, left))
        return Placement(self.site, self.pilot, tuple(nodes))


@dataclass(slots=True)  # not frozen: two are made at every epoch
class Stretch:
    """Training with the same replicas, from so many finished epochs to so many. Nobody changes one.

    Attributes:
        replicas: Data-parallel replicas that share a step. The world size divides them.
        workers: GPUs that the method gives on this stretch; they divide the replicas.
        batches: How many `batch_size` make a step, all replicas together: the learning rate follows them.
    """

    epoch: int
    until: int
    replicas: int
    workers: int = 0  # 0 stands for as many as replicas, and so below
    batches: int = 0

    def __post_init__(self) -> None:
        self.workers = self.workers or self.replicas
        self.batches = self.batches or self.replicas

    def starting_at(self, epoch: int) -> Stretch:
        """Return the rest of it from an epoch on."""
        return Stretch(epoch, self.until, self.replicas, self.workers, self.batches)

    def ending_at(self, epoch: int) -> Stretch:
        """Return the same up to another epoch."""
        return Stretch(self.epoch, epoch, self.replicas, self.workers, self.batches)

    def is_as_parallel_as(self, other: Stretch) -> bool:
        """Whether it has the same replicas, workers and batches as another one."""
        return (
            self.replicas == other.replicas
            and self.workers == other.workers
            and self.batches == other.batches
        )

    @property
    def entry(self) -> ScheduleEntry:
        """How a job is told of it."""
        return schedule_entry(self.epoch, self.replicas, self.batches)


ScheduleEntry: TypeAlias = tuple[int, ...]
"""``(epoch, replicas, batches)``, of a stretch: from that many finished epochs on. Batches that are as many
as the replicas are left out, as in all records of versions that knew no others: the last number is the
batches in either form."""


def schedule_entry(epoch: int, replicas: int, batches: int) -> ScheduleEntry:
    """Return the entry of a schedule for what is trained from an epoch on."""
    return (epoch, replicas) if batches == replicas else (epoch, replicas, batches)


@dataclass(frozen=True, slots=True)
class GradientNoise:
    """How a sample's gradient varies: the mean over the steps of an epoch, or of several.

    Attributes:
        gradient: Squared norm of the gradient without noise; below 0 where the noise hides it.
        variance: Variance of a sample's gradient, summed over the parameters.

    Source:
        McCandlish et al. 2018 (arXiv 1812.06162), appendix A.1; both are unbiased.
    """

    gradient: float
    variance: float

    @property
    def scale(self) -> float:
        """The samples of a step in which noise and gradient are equal; infinite where noise hides it."""
        return max(0.0, self.variance) / self.gradient if self.gradient > 0 else math.inf


@dataclass(frozen=True, slots=True)
class Capabilities:
    """In what sites and their backends differ.

    Attributes:
        sees_run_directory: The controller and the nodes of the site see one disk, with the run directory.
        has_control: Jobs have a control channel, and may ask at each epoch whether to go on.
    """

    sees_run_directory: bool = True
    has_control: bool = True


class Outcome(StrEnum):
    """How an attempt ended."""

    __hash__ = str.__hash__  # that of `Enum` is ten times as slow

    REACHED = "reached"  # trained to `until`, or left at an epoch boundary as it was told to
    PREEMPTED = "preempted"  # left early with a checkpoint: costs no retry
    LOST = "lost"  # died from outside (signal, node, worker): costs a retry
    FAILED = "failed"  # the user's code raised: a retry would raise again


class Blame(StrEnum):
    """Whose fault the end of an attempt was. Only its own fault ever fails a trial at once."""

    TRIAL = "trial"  # its configuration, or the user's code
    SLOT = "slot"  # a GPU that is broken, busy or missing
    NODE = "node"
    PILOT = "pilot"
    SITE = "site"  # with `Phase.NO_RANK` or `Phase.MET`, perhaps only this world size there
    CONTROLLER = "controller"
    UNSURE = "unsure"  # a signal, an error of the GPU's driver, lost contact


class Phase(StrEnum):
    """How far the ranks of an attempt got."""

    NO_RANK = "no_rank"  # none ran, as far as anybody heard
    MET = "met"  # one ran at least: they set up, and meet
    FIRST_STEP = "first_step"  # they work on the first step, or the first epoch without steps
    TRAINING = "training"
    LEAVING = "leaving"  # they were done, or were told to leave


class Fault(StrEnum):
    """What kind of thing went wrong on a rank, or where the ranks were to be started."""

    STORAGE = "storage"  # a file system that is full, read-only, stale or broken
    CHECKPOINT = "checkpoint"  # the one to resume from is gone or damaged
    SETUP = "setup"  # the ranks that ran are not those of the order
    DEVICE = "device"  # a GPU that is missing, busy or broken
    OUT_OF_MEMORY = "out_of_memory"
    PEERS_LOST = "peers_lost"  # another rank is gone, or could not be reached
    USER_CODE = "user_code"


class TrialState(StrEnum):
    """Where a trial stands."""

    __hash__ = str.__hash__  # that of `Enum` is ten times as slow

    WAITING = "waiting"  # for its first slots, or for new ones after a loss
    RUNNING = "running"
    PAUSED = "paused"  # at a rung, until the scheduler lets it go on
    STOPPED = "stopped"  # by the scheduler, before `max_t`
    COMPLETED = "completed"  # reached `max_t`
    FAILED = "failed"

    @property
    def is_final(self) -> bool:
        """Whether nothing more will happen to the trial."""
        return self in _FINAL


_FINAL = frozenset({TrialState.STOPPED, TrialState.COMPLETED, TrialState.FAILED})


@dataclass(frozen=True, slots=True)
class Method:
    """What of a search's method may change while it stands.

    Attributes:
        milestones: Epochs at which trials are judged, ascending.
        max_workers: Most GPUs of a trial; None for no limit.
        growth: The growth policy, as a study file spells it.
    """

    milestones: tuple[int, ...]
    max_workers: int | None
    growth: Any  # JSON, a type that msgspec does not know


@dataclass(frozen=True, slots=True)
class Budget:
    """What a search may spend; None sets no limit.

    Attributes:
        wall_time_s: Time under a controller, queues included [s].
        until: Unix time [s].
        gpu_hours: Time for which GPUs are held, busy or not.
        node_hours: The same of nodes.
    """

    wall_time_s: float | None = None
    until: float | None = None
    gpu_hours: float | None = None
    node_hours: float | None = None


@dataclass(frozen=True, slots=True)
class Confirm:
    """How a search confirms its winner.

    Attributes:
        top: How many of the best trials are trained again.
        seeds: How often each, with a new seed each time.
    """

    top: int
    seeds: int


class StudyState(StrEnum):
    """Where a study stands."""

    RUNNING = "running"
    DONE = "done"  # at least one successful trial
    FAILED = "failed"  # finished without one successful trial
    NO_SITE = "no_site"  # no site or pilot could be had
    INTERRUPTED = "interrupted"  # resumable


class Keep(StrEnum):
    """Whose checkpoints stay when trials have ended."""

    BEST = "best"
    SURVIVORS = "survivors"
    ALL = "all"


class JudgedBy(StrEnum):
    """Which of its epochs a trial is the best of all by, and whose checkpoint the search returns."""

    LAST = "last"
    EPOCH = "epoch"  # its best one that a checkpoint holds


class StageState(StrEnum):
    """Where a stage of a pipeline stands; the words are those of `StudyState`."""

    WAITING = "waiting"  # for the stages before it
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    NO_SITE = "no_site"
    INTERRUPTED = "interrupted"
