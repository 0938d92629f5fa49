"""Who waits for slots and who holds them: what a growth policy looks at.

The machine keeps the cluster up to date; a policy reads it, and may hold slots on the ledger while
it thinks, as long as it gives them back.
"""

from __future__ import annotations

import bisect
import heapq
from collections import Counter
from collections.abc import Callable, Collection, Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple, Protocol, TypeAlias

from sortedcontainers import SortedDict

from parsl_rasda.placement.ledger import Ledger, Slot
from parsl_rasda.placement.times import Times
from parsl_rasda.types import Placement, SiteName, Stretch, TrialId


class Caution(NamedTuple):
    """Where a trial must not start, because of how its last attempts ended.

    Attributes:
        avoid: Slots that it may have to do with.
        is_narrow: It starts at the narrowest world size, to find out which slot it was.
    """

    avoid: frozenset[Slot] = frozenset()
    is_narrow: bool = False


NO_CAUTION = Caution()
Rank: TypeAlias = tuple[int, int]
Kind: TypeAlias = tuple[int, SiteName | None, Caution]
"""Workers, site and caution of a waiting trial: where one of a kind does not fit, none does."""


@dataclass(slots=True)
class PendingTrial:
    """A trial that needs slots: new, resumed, lost, or (under `strict`) at its next world size.

    Attributes:
        age: Position in the order of creation; older trials have smaller ages.
        stretch: What it trains once it has slots.
        site: The only site it may use, because its checkpoint is there; None if anywhere.
        postponed_at: When it first could have started, and waited for more slots instead [s], or None.
        yields_until: Count of starts (`ClusterState.starts`) up to which others may start before it.
        kind: What decides where it fits.
        rank: Its place in the queue: the deepest first, then the oldest.
    """

    trial: TrialId
    age: int
    stretch: Stretch
    site: SiteName | None = None
    yields_until: int = 0
    caution: Caution = NO_CAUTION
    postponed_at: float | None = None
    kind: Kind = field(init=False, repr=False)
    rank: Rank = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Note where it belongs in the queue."""
        self.kind = self.stretch.workers, self.site, self.caution
        self.rank = -self.stretch.epoch, self.age


class LeavingJob(NamedTuple):
    """Slots whose job was told to leave: they are about to be free.

    Attributes:
        since: When it was told [s].
        returns: The most slots that its trial may use, which waits once it has left; 0 if none does.
    """

    placement: Placement
    since: float
    returns: int = 0


@dataclass(slots=True)
class RunningTrial:
    """A trial that holds slots.

    Attributes:
        boundary_at: When its next epoch ends, as foreseen [s], if it could widen then.
        ahead: What it trains from then on: epochs that are certain, with at most one slot a replica.
        may_widen: Nothing has gone wrong with it that a wider job would hide.
    """

    trial: TrialId
    age: int
    placement: Placement
    boundary_at: float
    ahead: Stretch
    may_widen: bool = True


class Allocation(NamedTuple):
    """What a policy decided, now.

    Attributes:
        starts: Waiting trials that start, each on its placement.
        here: The new placement of the trial at a boundary, or None to keep what it has.
        requeue: The trial at a boundary gives its slots up and waits for its full world size.
        postponed: Trials that could start and wait for slots that are about to be free instead, and
            when to ask again if nothing happens before [s].
    """

    starts: Mapping[TrialId, Placement] = MappingProxyType({})
    here: Placement | None = None
    requeue: bool = False
    postponed: Mapping[TrialId, float] = MappingProxyType({})


class GrowthPolicy(Protocol):
    """Decides on which slots trials start and when they change their world size.

    The executable definition is `parsl_rasda.testing.GrowthPolicyContract`.
    """

    def decide(self, cluster: ClusterState, now: float, here: RunningTrial | None = None) -> Allocation:
        """Return what starts and what becomes of ``here``, the trial at an epoch boundary.

        The same cluster gives the same answer; the ledger is left as it was found.
        """
        ...

    def needs(self, workers: int, num_workers: int) -> int:
        """Return the slots without which a trial cannot start to which the method gives so many workers."""
        ...

    def returns_at(self, cluster: ClusterState, running: RunningTrial) -> int:
        """Return the epoch at which a job that cannot be asked shall come back, at its milestone or before.

        Args:
            cluster: What the policy looks at.
            running: The trial that starts, as at a boundary.
        """
        ...


class ClusterState:
    """The ledger, the times, the waiting queue and the running trials, kept in order."""

    def __init__(self, ledger: Ledger, times: Times, *, num_workers: int, max_epochs: int, step: int) -> None:
        """Create an empty cluster.

        Args:
            ledger: Free and held slots.
            times: Epoch and restart times.
            num_workers: Width at which trials start.
            max_epochs: Epochs of a complete trial.
            step: Ratio between neighbouring world sizes (smallest prime of the scaling factor).
        """
        self.ledger, self.times = ledger, times
        ledger.narrowest = num_workers
        self.num_workers, self.max_epochs, self.step = num_workers, max_epochs, step
        self.new_trials = 0  # wanted, but not proposed yet: they wait as well
        self.starts = 0  # how often a waiting trial got its slots
        self.running: dict[TrialId, RunningTrial] = {}
        self._waiting: dict[TrialId, PendingTrial] = {}
        self._lines: dict[Kind, list[tuple[Rank, PendingTrial]]] = {}  # each in order, and never empty
        self._leaving: dict[TrialId, LeavingJob] = {}  # in the order in which they were told
        self._leaving_at: Counter[SiteName] = Counter()
        self._ends: SortedDict = SortedDict()  # (-end if it stays as wide, age) -> TrialId, growable only
        self._end_keys: dict[TrialId, tuple[float, int]] = {}
        self._unsorted: set[TrialId] = set()  # those that have a key and are not in `_ends` yet

    # ------------------------------------------------------------------------------- waiting

    @property
    def waiting(self) -> tuple[PendingTrial, ...]:
        """Trials that wait, the deepest first, then the oldest."""
        return tuple(self.queue())

    @property
    def kinds(self) -> Collection[Kind]:
        """Kinds of trials that wait: a few, however many wait."""
        return self._lines

    def queue(self, refused: Container[Kind] = ()) -> Iterator[PendingTrial]:
        """Yield trials that wait, in order, but none of a kind that has been added to ``refused``."""
        if not self._lines:
            return
        if len(self._lines) == 1:
            ((kind, line),) = self._lines.items()
            for _, waiting in line:
                if kind in refused:
                    return
                yield waiting
            return
        heads = [(*next(rest := iter(line)), kind, rest) for kind, line in self._lines.items()]
        heapq.heapify(heads)
        while heads:
            _, waiting, kind, rest = heads[0]
            if kind not in refused:
                yield waiting
            behind = next(rest, None) if kind not in refused else None
            if behind is None:
                heapq.heappop(heads)
            else:
                heapq.heapreplace(heads, (*behind, kind, rest))

    def waiting_for(self, site: SiteName) -> int:
        """Return how many trials wait that may use a site, those not proposed yet among them."""
        known = sum(len(line) for (_, where, _), line in self._lines.items() if where in {None, site})
        return known + self.new_trials

    def enqueue(self, waiting: PendingTrial) -> None:
        """Let a trial wait; each of those who are in the study by now may start once before it."""
        if waiting.trial in self._waiting:
            self.dequeue(waiting.trial)
        waiting.yields_until = self.starts + len(self.running) + len(self._waiting) + self.new_trials
        self._waiting[waiting.trial] = waiting
        bisect.insort(self._lines.setdefault(waiting.kind, []), (waiting.rank, waiting))

    def dequeue(self, trial: TrialId) -> None:
        """Take a trial out of the queue, if it is there."""
        waiting = self._waiting.pop(trial, None)
        if waiting is not None:
            line = self._lines[waiting.kind]
            del line[bisect.bisect_left(line, (waiting.rank,))]
            if not line:
                del self._lines[waiting.kind]

    @contextmanager
    def nobody_waiting(self) -> Iterator[None]:
        """Let nobody wait while the block lasts, in which only running trials may be changed."""
        kept = self._waiting, self._lines, self.new_trials
        self._waiting, self._lines, self.new_trials = {}, {}, 0
        try:
            yield
        finally:
            self._waiting, self._lines, self.new_trials = kept

    def postpone(self, trial: TrialId, now: float) -> None:
        """Note that a trial could have started by now."""
        waiting = self._waiting[trial]
        if waiting.postponed_at is None:
            waiting.postponed_at = now

    def admit(self, trial: TrialId) -> None:
        """Take a trial out of the queue because it starts."""
        self.dequeue(trial)
        self.starts += 1

    # ------------------------------------------------------------------------------- running

    def place(self, running: RunningTrial) -> None:
        """Note that a trial runs, or runs differently from before."""
        trial, ahead = running.trial, running.ahead
        if trial in self.running or trial in self._leaving:
            self.unplace(trial)
        self.running[trial] = running
        is_narrower = running.placement.world_size < ahead.replicas
        if is_narrower and running.may_widen and ahead.until > ahead.epoch:
            self._end_keys[trial] = self.rank(running)
            self._unsorted.add(trial)

    def unplace(self, trial: TrialId) -> None:
        """Note that a trial no longer runs, and has left."""
        self.running.pop(trial, None)
        leaving = self._leaving.pop(trial, None)
        if leaving is not None:
            self._leaving_at[leaving.placement.site] -= leaving.placement.world_size
        key = self._end_keys.pop(trial, None)
        if key is None:
            return
        if trial in self._unsorted:
            self._unsorted.remove(trial)
        else:
            del self._ends[key]

    def leave(self, trial: TrialId, placement: Placement, now: float) -> None:
        """Note that a trial runs no longer, and that its slots will be free once its job has left."""
        self.unplace(trial)
        self._leaving[trial] = LeavingJob(placement, now)
        self._leaving_at[placement.site] += placement.world_size

    def return_later(self, trial: TrialId, ahead: Stretch) -> None:
        """Note that a trial whose job is leaving waits again as soon as it has left."""
        if trial in self._leaving:
            self._leaving[trial] = self._leaving[trial]._replace(returns=ahead.replicas)

    def wanted_at(self, site: SiteName) -> int:
        """Return how many slots more the trials may use that return to a site."""
        at_site = (job for job in self._leaving.values() if job.returns and job.placement.site == site)
        return sum(max(0, job.returns - job.placement.world_size) for job in at_site)

    def leaving_at(self, site: SiteName) -> int:
        """Slots of one site that are about to be free."""
        return self._leaving_at[site]

    @property
    def is_anything_leaving(self) -> bool:
        """Whether slots are about to be free."""
        return bool(self._leaving)

    def soon_free(self, now: float) -> Iterator[tuple[TrialId, LeavingJob]]:
        """Yield the jobs that have not taken longer to leave than others did, in the order they were told."""
        return (leaving for leaving in self._leaving.items() if now < self.overdue_at(leaving[1]))

    def overdue_at(self, leaving: LeavingJob) -> float:
        """Return when a job will have taken longer to leave than others did [s]."""
        return leaving.since + self.times.release_s(leaving.placement.site)

    def rank(self, running: RunningTrial) -> tuple[float, int]:
        """Return the place of a trial among those that want to widen: who would end last comes first."""
        placement = running.placement
        epoch_s = self.times.epoch_s(running.trial, placement.world_size, placement.site)
        end = running.boundary_at + epoch_s * (self.max_epochs - running.ahead.epoch)
        return -end, running.age

    def epoch_s(self, running: RunningTrial, world_size: int) -> float:
        """Return the time of one epoch of a trial at a world size [s]."""
        return self.times.epoch_s(running.trial, world_size, running.placement.site)

    def growable(self) -> Iterator[tuple[tuple[float, int], RunningTrial]]:
        """Running trials that could still widen before their next rung, by `rank` when last placed."""
        self._ends.update((self._end_keys[trial], trial) for trial in self._unsorted)
        self._unsorted.clear()
        return ((key, self.running[trial]) for key, trial in self._ends.items())

    # ------------------------------------------------------------------------------- world sizes

    def world_sizes(self, replicas: int) -> tuple[int, ...]:
        """Return the world sizes a trial may have, ascending: divisors of its replicas."""
        return _world_sizes(self.num_workers, self.step, replicas)

    def find_start(self, world_size: int, kind: Kind) -> Placement | None:
        """Return free slots for a waiting trial that wants so many, or None to wait.

        Fewer are found where the site can never give so many, because of what it refuses or has set aside.
        """
        _, site, caution = kind
        if not self.ledger.free:
            return None
        if not self.ledger.is_reduced and (caution is NO_CAUTION or caution == NO_CAUTION):
            return self.ledger.find(world_size, site=site)
        for name in [site] if site is not None else self.ledger.sites_by_free():
            width = self.usable(world_size, kind, name)
            found = self.ledger.find(width, site=name, avoid=caution.avoid)
            if found is not None:
                return found
        return None

    def usable(self, world_size: int, kind: Kind, site: SiteName) -> int:
        """Return the world size at which a trial that wants so many slots may start on a site."""
        workers, _, caution = kind
        most = min(world_size, self.num_workers) if caution.is_narrow else world_size
        if not (self.ledger.is_reduced or caution.avoid):
            return most
        if not self.ledger.can_ever_fit(most, site, whole=True):
            return most
        smaller = (w for w in reversed(self.world_sizes(workers)) if w <= most)
        return next((w for w in smaller if self.ledger.can_ever_fit(w, site, avoid=caution.avoid)), most)

    def can_ever_start(self, world_size: int, kind: Kind) -> bool:
        """Whether a trial that wants so many slots could start on the pilots that are up, were they free."""
        _, bound, caution = kind
        return any(
            self.ledger.can_ever_fit(self.usable(world_size, kind, site), site, avoid=caution.avoid)
            for site in ([bound] if bound is not None else self.ledger.sites_by_free())
        )

    def widest(
        self,
        replicas: int,
        site: SiteName,
        own: Placement | None,
        accept: Callable[[int], bool] = lambda _: True,
    ) -> Placement | None:
        """Return the widest placement above ``own`` that fits and is accepted, or None."""
        ladder = self.world_sizes(replicas)
        floor = own.world_size if own is not None else 0
        room = self.ledger.free_at(site) + floor
        for world_size in reversed(ladder[bisect.bisect_right(ladder, floor) :]):
            if world_size <= room and accept(world_size):
                found = self.ledger.find(world_size, site=site, own=own)
                if found is not None:
                    return found
        return None


@lru_cache(maxsize=1024)
def _world_sizes(start: int, step: int, replicas: int) -> tuple[int, ...]:
    world_sizes, world_size = [], start
    while world_size < replicas:
        if replicas % world_size == 0:
            world_sizes.append(world_size)
        world_size *= step
    return (*world_sizes, replicas)
