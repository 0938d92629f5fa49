"""When a trial changes its world size: `elastic` (default), `strict` (the paper's) and `none`.

`elastic` never lets anybody wait for GPUs: new, resumed and lost trials first; then GPUs that no
trial waits for widen the trial that would end last, if its certain epochs gain more than the
restart costs. It is never slower than ASHA for the same survivors, trials known at the start and
honest restart costs.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Container, Mapping, Sequence
from itertools import islice

from parsl_rasda.placement.cluster_state import (
    NO_CAUTION,
    Allocation,
    ClusterState,
    GrowthPolicy,
    Kind,
    PendingTrial,
    RunningTrial,
)
from parsl_rasda.placement.what_if import WhatIf
from parsl_rasda.plugins import GROWTH_POLICIES, Choice, Plugin
from parsl_rasda.types import Placement, SiteName, TrialId

_EPSILON_S = 1e-9
_CHEAP_TASK = 0.15  # in epochs at the first world size: what a task may cost for stretches to be divided
_TASKS_LEFT = 8  # tasks that a rest of a stretch must be worth to be divided
_LOOK_AHEAD = 16  # running trials for which idle GPUs are kept until they come to a boundary
_NOTHING = Allocation()


def build_growth(choice: Choice) -> GrowthPolicy:
    """Return the growth policy that a study chooses: one of ours, or one of an installed plug-in.

    Raises:
        InvalidFileError: If there is none, or its options are wrong.
    """
    policy: GrowthPolicy = GROWTH_POLICIES.build(choice)
    return policy


class ElasticGrowth:
    """Grow into idle GPUs only, at any epoch boundary, and only if it pays.

    Source: the rule, its proof and its limits are in docs/growth_policy.md.
    """

    def needs(self, workers: int, num_workers: int) -> int:
        """Return the world size at which every trial can start."""
        return min(workers, num_workers)

    def decide(self, cluster: ClusterState, now: float, here: RunningTrial | None = None) -> Allocation:
        """Start whoever waits; then widen into what is left, the longest path first."""
        if not cluster.kinds:
            if cluster.new_trials:  # who are to come go first
                shrunk = _shrunk(cluster, here, ()) if here is not None else None
                return _NOTHING if shrunk is None else Allocation(here=shrunk)
            if not (cluster.ledger.free or (here is not None and cluster.is_anything_leaving)):
                return _NOTHING
        with WhatIf(cluster) as what_if:
            starts: dict[TrialId, Placement] = {}
            started: list[PendingTrial] = []
            awaited: set[SiteName | None] = {None} if cluster.new_trials else set()  # sites; None: any
            refused: set[Kind] = set()  # slots only get fewer here: never ask twice
            for waiting in cluster.queue(refused):
                world_size = self.needs(waiting.stretch.workers, cluster.num_workers)
                what_if.settle()
                placement = cluster.find_start(world_size, waiting.kind)
                if placement is None:
                    refused.add(waiting.kind)
                    awaited.add(waiting.site)
                    continue
                what_if.hold_later(placement)
                starts[waiting.trial] = placement
                started.append(waiting)
            if here is None and None in awaited:
                return Allocation(starts)
            what_if.settle()
            if here is not None and not awaited.isdisjoint({None, here.placement.site}):
                return Allocation(starts, here=_shrunk(cluster, here, started))
            if None in awaited:
                return Allocation(starts)
            fresh = [_as_running(w, starts[w.trial], now) for w in started]
            widened = _widen(cluster, here, fresh, awaited, what_if)
            own = widened.pop(here.trial, None) if here is not None else None
            starts |= widened
            standing = here if own is None else None
            if not (started or standing) or not (leaving := what_if.lend_leaving(now)):
                return Allocation(starts, here=own)
            awaited = self._hold_for_others(cluster, starts, what_if)
            late = {w.trial: now if w.postponed_at is None else w.postponed_at for w in started}
            fresh = [_as_running(w, starts[w.trial], now) for w in started]
            postponed = _postponed(cluster, fresh, {t: now - s for t, s in late.items()}, awaited, what_if)
            requeue = standing is not None and _had_better_return(cluster, standing, awaited)
        until = min(map(cluster.overdue_at, leaving.values()))
        kept = {trial: placement for trial, placement in starts.items() if trial not in postponed}
        return Allocation(kept, own, requeue, dict.fromkeys(postponed, until))

    def _hold_for_others(
        self, cluster: ClusterState, starts: Container[TrialId], what_if: WhatIf
    ) -> set[SiteName | None]:
        """Hold slots for those that cannot start yet; return the sites without enough, None for any."""
        awaited: set[SiteName | None] = set()
        for waiting in [w for w in cluster.queue() if w.trial not in starts]:
            needed = self.needs(waiting.stretch.workers, cluster.num_workers)
            placement = cluster.find_start(needed, waiting.kind)
            if placement is None:
                awaited.add(waiting.site)
            else:
                what_if.hold(placement)
        return awaited

    def returns_at(self, cluster: ClusterState, running: RunningTrial) -> int:
        """Return the middle of a stretch to be trained as one task, if the trial may widen then.

        Half of what is left at a time, rounded up, as long as tasks are cheap: 24 rehearsals on 32
        GPUs take 5 % less time if tasks cost nothing, and 3 % less at 0.05 or 0.1 epochs a task; at
        0.2 they would take 1 % more.
        """
        done, until, site = running.ahead.epoch, running.ahead.until, running.placement.site
        task_s = cluster.times.launch_s(site)
        is_cheap = task_s <= _CHEAP_TASK * cluster.epoch_s(running, cluster.num_workers)
        certain_s = (until - done) * cluster.epoch_s(running, running.placement.world_size)
        wider = (w for w in cluster.world_sizes(running.ahead.replicas) if w > running.placement.world_size)
        if until - done <= 1 or not is_cheap or certain_s <= _TASKS_LEFT * task_s:
            return until
        may_widen = any(cluster.ledger.can_ever_fit(world_size, site) for world_size in wider)
        return done + (until - done + 1) // 2 if may_widen else until


class StrictGrowth:
    """The paper's rule: a trial trains at its full world size or waits for it.

    The deepest trial goes first; any that fits may start before one that does not (backfill), but
    only so often: once as many have as were in the study when the one in front began to wait, nobody
    starts until it has its slots. In a search that is not endless that hardly ever happens.
    """

    def needs(self, workers: int, num_workers: int) -> int:
        """Return the full world size: less is never used."""
        return workers

    def returns_at(self, cluster: ClusterState, running: RunningTrial) -> int:
        """Return the milestone: nobody widens before."""
        return running.ahead.until

    def decide(self, cluster: ClusterState, now: float, here: RunningTrial | None = None) -> Allocation:
        """Start what fits at its full world size; send ``here`` to the queue if it must grow."""
        if here is not None and here.placement.world_size != self._full(cluster, here):
            return Allocation(requeue=True)
        starts: dict[TrialId, Placement] = {}
        with WhatIf(cluster) as what_if:
            in_front: PendingTrial | None = None  # of those who do not fit
            refused: set[Kind] = set()  # slots only get fewer here: never ask twice
            for waiting in cluster.queue(refused):
                if in_front is not None and cluster.starts + len(starts) >= in_front.yields_until:
                    break
                placement = cluster.find_start(waiting.stretch.workers, waiting.kind)
                if placement is None:
                    refused.add(waiting.kind)
                    in_front = in_front or waiting
                    continue
                what_if.hold(placement)
                starts[waiting.trial] = placement
        return Allocation(starts)

    def _full(self, cluster: ClusterState, here: RunningTrial) -> int:
        """Return the full world size, or what is left of it on a site with faults."""
        workers, site = here.ahead.workers, here.placement.site
        return cluster.usable(workers, (workers, site, NO_CAUTION), site)


class NoGrowth:
    """Fixed world size: every trial trains on `num_workers` slots, as ASHA does."""

    def needs(self, workers: int, num_workers: int) -> int:
        """Return the fixed world size."""
        return min(workers, num_workers)

    def returns_at(self, cluster: ClusterState, running: RunningTrial) -> int:
        """Return the milestone: nobody widens before."""
        return running.ahead.until

    def decide(self, cluster: ClusterState, now: float, here: RunningTrial | None = None) -> Allocation:
        """Start what fits."""
        starts: dict[TrialId, Placement] = {}
        with WhatIf(cluster) as what_if:
            refused: set[Kind] = set()
            for waiting in cluster.queue(refused):
                world_size = self.needs(waiting.stretch.workers, cluster.num_workers)
                placement = cluster.find_start(world_size, waiting.kind)
                if placement is None:
                    refused.add(waiting.kind)
                    continue
                what_if.hold(placement)
                starts[waiting.trial] = placement
        return Allocation(starts)


ELASTIC = Plugin(lambda _: ElasticGrowth())
STRICT = Plugin(lambda _: StrictGrowth())
NONE = Plugin(lambda _: NoGrowth())


# ------------------------------------------------------------------------------------------ elastic


def _widen(
    cluster: ClusterState,
    here: RunningTrial | None,
    fresh: Sequence[RunningTrial],
    awaited: Container[SiteName | None],
    what_if: WhatIf,
) -> dict[TrialId, Placement]:
    """Hand idle GPUs to the longest paths; return the new placements of those who act now.

    These are ``here`` and the ``fresh``, who are about to start. The first few of the other running
    trials hold what they will ask for at their boundary, so that nobody behind them takes it: few,
    because the order changes makespans by a tenth of a percent, and looking through all of them at
    each boundary takes a time that grows with the machine. Sites that somebody waits for are left alone.
    """
    starting = {r.trial for r in fresh}

    def wider(running: RunningTrial) -> Placement | None:  # who starts now pays for a start anyway
        cost_s = 0.0 if running.trial in starting else cluster.times.restart_s
        return _wider(cluster, running, cost_s, awaited)

    acts_now = (*fresh, here) if here is not None else fresh
    first = {r.trial: found for r in acts_now if (found := wider(r)) is not None}  # if it is the first
    if not first:
        return {}
    at_point = sorted((cluster.rank(r), r) for r in acts_now if r.trial in first)
    acting = set(first)
    waited_for = islice(cluster.growable(), _LOOK_AHEAD)
    widened: dict[TrialId, Placement] = {}
    is_first = True
    for _, running in heapq.merge(at_point, waited_for):
        if not acting:
            break  # nobody behind them acts now
        what_if.settle()
        if cluster.ledger.free == 0:
            break
        found = first[running.trial] if is_first and running.trial in acting else wider(running)
        is_first = is_first and found is None
        if found is not None and running.trial in starting:
            what_if.swap(running.placement, found)
        elif found is not None:  # its own slots stay its own until it has left
            what_if.hold_later(found.minus(running.placement))
        if running.trial in acting:
            acting.remove(running.trial)
            if found is not None:
                widened[running.trial] = found
    return widened


def _wider(
    cluster: ClusterState, running: RunningTrial, cost_s: float, awaited: Container[SiteName | None]
) -> Placement | None:
    """Return the widest placement that a trial may have instead of its own and that pays, or None."""
    own = running.placement
    if own.site in awaited or not running.may_widen or own.world_size >= running.ahead.replicas:
        return None
    return cluster.widest(running.ahead.replicas, own.site, own, _pays(cluster, running, cost_s))


def _pays(cluster: ClusterState, running: RunningTrial, cost_s: float) -> Callable[[int], bool]:
    """Return whether a world size saves more over the certain epochs than getting there costs [s]."""
    certain = running.ahead.until - running.ahead.epoch
    now_s = cluster.epoch_s(running, running.placement.world_size)
    return lambda world_size: certain * (now_s - cluster.epoch_s(running, world_size)) > cost_s + _EPSILON_S


def _postponed(
    cluster: ClusterState,
    fresh: Sequence[RunningTrial],
    waited_s: Mapping[TrialId, float],
    awaited: Container[SiteName | None],
    what_if: WhatIf,
) -> list[TrialId]:
    """Return those of the ``fresh`` that had better wait for slots about to be free, which count as free.

    What they gain by them makes up for the release, and for the time that they have waited so already.
    """
    found: list[TrialId] = []
    for _, running in sorted((cluster.rank(r), r) for r in fresh if r.may_widen):
        site = running.placement.site
        if site in awaited or None in awaited:
            continue
        pays = _pays(cluster, running, waited_s[running.trial] + cluster.times.release_s(site))
        wider = cluster.widest(running.ahead.replicas, site, running.placement, pays)
        if wider is not None:
            what_if.swap(running.placement, wider)
            found.append(running.trial)
    return found


def _had_better_return(
    cluster: ClusterState, here: RunningTrial, awaited: Container[SiteName | None]
) -> bool:
    """Whether a trial at a boundary should leave, to start again on slots about to be free, too.

    Nobody waits for these, and there are enough for others that return before it.
    """
    own = here.placement
    if own.site in awaited or None in awaited or not here.may_widen:
        return False
    pays = _pays(cluster, here, cluster.times.restart_s + cluster.times.release_s(own.site))
    wider = cluster.widest(here.ahead.replicas, own.site, own, pays)
    if wider is None:
        return False
    more = wider.world_size - own.world_size
    return more + cluster.wanted_at(own.site) <= cluster.ledger.free_at(own.site)


def _as_running(waiting: PendingTrial, placement: Placement, now: float) -> RunningTrial:
    """Return a trial that is about to start, as if at a boundary: its launch is due anyway."""
    may_widen = waiting.caution == NO_CAUTION
    return RunningTrial(waiting.trial, waiting.age, placement, now, waiting.stretch, may_widen)


def _shrunk(cluster: ClusterState, here: RunningTrial, started: Sequence[PendingTrial]) -> Placement | None:
    """Return a narrower placement for a wide trial at a boundary, to let waiting trials in."""
    narrowest, world_size = cluster.num_workers, here.placement.world_size
    if world_size <= narrowest:
        return None
    certain_s = (here.ahead.until - here.ahead.epoch) * cluster.epoch_s(here, world_size)
    if certain_s <= 2 * cluster.times.restart_s:
        return None
    site = here.placement.site
    waiting = cluster.waiting_for(site) - sum(w.site in {None, site} for w in started)
    need = waiting * narrowest - cluster.ledger.free_at(site) - cluster.leaving_at(site)
    target = world_size
    for narrower in reversed(
        [w for w in cluster.world_sizes(here.ahead.replicas) if narrowest <= w < world_size]
    ):
        if world_size - target >= need:
            break
        target = narrower
    if target == world_size:
        return None
    return cluster.ledger.find(target, site=site, own=here.placement)
