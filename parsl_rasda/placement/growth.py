"""When a trial changes its width: `elastic` (default), `strict` (the paper's) and `none`.

`elastic` never lets anybody wait for GPUs: new, resumed and lost trials first; then GPUs that no
trial waits for widen the trial that would end last, if its certain epochs gain more than the
restart costs. It is never slower than ASHA for the same survivors, trials known at the start and
honest restart costs.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice

from parsl_rasda.placement.cluster_state import (
    Allocation,
    ClusterState,
    GrowthPolicy,
    Kind,
    PendingTrial,
    RunningTrial,
)
from parsl_rasda.plugins import GROWTH_POLICIES, Choice, Plugin
from parsl_rasda.types import Placement, SiteName, TrialId

_EPSILON_S = 1e-9
_CHEAP_TASK = 0.15  # in epochs at the first width: what a task may cost for stretches to be divided
_TASKS_LEFT = 8  # tasks that a rest of a stretch must be worth to be divided
_LOOK_AHEAD = 16  # running trials for which idle GPUs are kept until they come to a boundary


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

    def needs(self, replicas: int, num_workers: int) -> int:
        """Return the width at which every trial can start."""
        return min(replicas, num_workers)

    def decide(self, board: ClusterState, now: float, here: RunningTrial | None = None) -> Allocation:
        """Start whoever waits; then widen into what is left, the longest path first."""
        with _trying(board) as trial_run:
            starts: dict[TrialId, Placement] = {}
            started: list[PendingTrial] = []
            awaited: set[SiteName | None] = {None} if board.new_trials else set()  # sites; None: any
            refused: set[Kind] = set()  # slots only get fewer here: never ask twice
            for waiting in board.queue(refused):
                width = self.needs(waiting.replicas, board.num_workers)
                placement = board.ledger.find(width, site=waiting.site)
                if placement is None:
                    refused.add(waiting.kind)
                    awaited.add(waiting.site)
                    continue
                trial_run.hold(placement)
                starts[waiting.trial] = placement
                started.append(waiting)
            if here is not None and not awaited.isdisjoint({None, here.placement.site}):
                return Allocation(starts, here=_shrunk(board, here, started))
            if None in awaited:
                return Allocation(starts)
            fresh = [_as_running(w, starts[w.trial], now) for w in started]
            widened = _widen(board, here, fresh, awaited, trial_run)
        own = widened.pop(here.trial, None) if here is not None else None
        return Allocation(starts | widened, here=own)

    def returns_at(self, board: ClusterState, running: RunningTrial) -> int:
        """Return the middle of a stretch to be trained as one task, if the trial may widen then.

        Half of what is left at a time, rounded up, as long as tasks are cheap: 24 rehearsals on 32
        GPUs take 5 % less time if tasks cost nothing, and 3 % less at 0.05 or 0.1 epochs a task; at
        0.2 they would take 1 % more.
        """
        done, until, site = running.boundary_epoch, running.until, running.placement.site
        task_s = board.times.launch_s(site)
        is_cheap = task_s <= _CHEAP_TASK * board.epoch_s(running, board.num_workers)
        certain_s = (until - done) * board.epoch_s(running, running.placement.width)
        wider = (w for w in board.widths(running.replicas) if w > running.placement.width)
        if until - done <= 1 or not is_cheap or certain_s <= _TASKS_LEFT * task_s:
            return until
        may_widen = any(board.ledger.can_ever_fit(width, site) for width in wider)
        return done + (until - done + 1) // 2 if may_widen else until


class StrictGrowth:
    """The paper's rule: a trial trains at its full width or waits for it.

    The deepest trial goes first; any that fits may start before one that does not (backfill), but
    only so often: once as many have as were in the study when the one in front began to wait, nobody
    starts until it has its slots. In a search that is not endless that hardly ever happens.
    """

    def needs(self, replicas: int, num_workers: int) -> int:
        """Return the full width: less is never used."""
        return replicas

    def returns_at(self, board: ClusterState, running: RunningTrial) -> int:
        """Return the milestone: nobody widens before."""
        return running.until

    def decide(self, board: ClusterState, now: float, here: RunningTrial | None = None) -> Allocation:
        """Start what fits at its full width; send ``here`` to the queue if it must grow."""
        if here is not None and here.placement.width != here.replicas:
            return Allocation(requeue=True)
        starts: dict[TrialId, Placement] = {}
        with _trying(board) as trial_run:
            in_front: PendingTrial | None = None  # of those who do not fit
            refused: set[Kind] = set()  # slots only get fewer here: never ask twice
            for waiting in board.queue(refused):
                if in_front is not None and board.starts + len(starts) >= in_front.yields_until:
                    break
                placement = board.ledger.find(waiting.replicas, site=waiting.site)
                if placement is None:
                    refused.add(waiting.kind)
                    in_front = in_front or waiting
                    continue
                trial_run.hold(placement)
                starts[waiting.trial] = placement
        return Allocation(starts)


class NoGrowth:
    """Fixed width: every trial trains on `num_workers` slots, as ASHA does."""

    def needs(self, replicas: int, num_workers: int) -> int:
        """Return the fixed width."""
        return min(replicas, num_workers)

    def returns_at(self, board: ClusterState, running: RunningTrial) -> int:
        """Return the milestone: nobody widens before."""
        return running.until

    def decide(self, board: ClusterState, now: float, here: RunningTrial | None = None) -> Allocation:
        """Start what fits."""
        starts: dict[TrialId, Placement] = {}
        with _trying(board) as trial_run:
            refused: set[Kind] = set()
            for waiting in board.queue(refused):
                width = self.needs(waiting.replicas, board.num_workers)
                placement = board.ledger.find(width, site=waiting.site)
                if placement is None:
                    refused.add(waiting.kind)
                    continue
                trial_run.hold(placement)
                starts[waiting.trial] = placement
        return Allocation(starts)


ELASTIC = Plugin(lambda _: ElasticGrowth())
STRICT = Plugin(lambda _: StrictGrowth())
NONE = Plugin(lambda _: NoGrowth())


# ------------------------------------------------------------------------------------------ elastic


def _widen(
    board: ClusterState,
    here: RunningTrial | None,
    fresh: Sequence[RunningTrial],
    awaited: Container[SiteName | None],
    trial_run: _TrialRun,
) -> dict[TrialId, Placement]:
    """Hand idle GPUs to the longest paths; return the new placements of those who act now.

    These are ``here`` and the ``fresh``, who are about to start. The first few of the other running
    trials hold what they will ask for at their boundary, so that nobody behind them takes it: few,
    because the order changes makespans by a tenth of a percent, and looking through all of them at
    each boundary takes a time that grows with the machine. Sites that somebody waits for are left alone.
    """
    starting = {r.trial for r in fresh}

    def wider(running: RunningTrial) -> Placement | None:
        own = running.placement
        if own.site in awaited:
            return None
        pays = _pays(board, running, is_fresh=running.trial in starting)
        return board.widest(running.replicas, own.site, own, pays)

    acts_now = (*fresh, here) if here is not None else fresh
    at_point = sorted((board.rank(r), r) for r in acts_now if wider(r) is not None)
    acting = {r.trial for _, r in at_point}
    waited_for = islice(board.growable(), _LOOK_AHEAD) if acting else ()
    widened: dict[TrialId, Placement] = {}
    for _, running in heapq.merge(at_point, waited_for):
        if not acting or board.ledger.free == 0:
            break  # nobody behind them acts now, or there is nothing left to hand out
        found = wider(running)
        if found is not None and running.trial in starting:
            trial_run.swap(running.placement, found)
        elif found is not None:
            trial_run.hold(found.minus(running.placement))  # its own slots stay its own until it has left
        if running.trial in acting:
            acting.remove(running.trial)
            if found is not None:
                widened[running.trial] = found
    return widened


def _pays(board: ClusterState, running: RunningTrial, *, is_fresh: bool) -> Callable[[int], bool]:
    """Return whether a width saves more over the certain epochs than getting there costs."""
    certain = running.until - running.boundary_epoch
    now_s = board.epoch_s(running, running.placement.width)
    cost_s = 0.0 if is_fresh else board.times.restart_s  # whoever starts now pays for that anyway
    return lambda width: certain * (now_s - board.epoch_s(running, width)) > cost_s + _EPSILON_S


def _as_running(waiting: PendingTrial, placement: Placement, now: float) -> RunningTrial:
    """Return a trial that is about to start, as if at a boundary: its launch is due anyway."""
    return RunningTrial(
        waiting.trial, waiting.age, placement, now, waiting.epoch, waiting.until, waiting.replicas
    )


def _shrunk(board: ClusterState, here: RunningTrial, started: Sequence[PendingTrial]) -> Placement | None:
    """Return a narrower placement for a wide trial at a boundary, to let waiting trials in."""
    narrowest, width = board.num_workers, here.placement.width
    certain_s = (here.until - here.boundary_epoch) * board.epoch_s(here, width)
    if width <= narrowest or certain_s <= 2 * board.times.restart_s:
        return None
    site = here.placement.site
    waiting = board.waiting_for(site) - sum(w.site in {None, site} for w in started)
    need = waiting * narrowest - board.ledger.free_at(site) - board.leaving_at(site)
    target = width
    for narrower in reversed([w for w in board.widths(here.replicas) if narrowest <= w < width]):
        if width - target >= need:
            break
        target = narrower
    if target == width:
        return None
    return board.ledger.find(target, site=site, own=here.placement)


# ------------------------------------------------------------------------------------------ what-if


class _TrialRun:
    """Slots held while a policy thinks; all are given back at the end."""

    def __init__(self, board: ClusterState) -> None:
        self._board = board
        self._undo: list[tuple[bool, Placement]] = []

    def hold(self, placement: Placement) -> None:
        self._board.ledger.take(placement)
        self._undo.append((True, placement))

    def swap(self, old: Placement, new: Placement) -> None:
        self._board.ledger.release(old)
        self._undo.append((False, old))
        self.hold(new)

    def give_back(self) -> None:
        for taken, placement in reversed(self._undo):
            (self._board.ledger.release if taken else self._board.ledger.take)(placement)


@contextmanager
def _trying(board: ClusterState) -> Iterator[_TrialRun]:
    trial_run = _TrialRun(board)
    try:
        yield trial_run
    finally:
        trial_run.give_back()
