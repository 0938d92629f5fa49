"""When a trial changes its width: `elastic` (default), `strict` (the paper's) and `none`.

`elastic` never lets anybody wait for GPUs: new, resumed and lost trials first; then GPUs that no
trial waits for widen the trial that would end last, if its certain epochs gain more than the
restart costs. It is never slower than ASHA for the same survivors, trials known at the start and
honest restart costs.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import cast

from parsl_rasda.placement.board import Allocation, Board, GrowthPolicy, Running, Waiting
from parsl_rasda.plugins import load_plugin
from parsl_rasda.vocabulary import Placement, SiteName, TrialId

_EPSILON_S = 1e-9
_PATIENCE = 8  # starts behind its back after which a waiting trial blocks all others


def build_growth(kind: str) -> GrowthPolicy:
    """Return the growth policy of that name, built in or from the group `parsl_rasda.growth`.

    Raises:
        InvalidSettingError: If there is none; the message lists what there is.
    """
    built_in: dict[str, type[GrowthPolicy]] = {
        "elastic": ElasticGrowth,
        "strict": StrictGrowth,
        "none": NoGrowth,
    }
    if kind in built_in:
        return built_in[kind]()
    plugin = load_plugin("parsl_rasda.growth", kind, key="scheduler.growth", built_in=tuple(built_in))
    return cast("Callable[[], GrowthPolicy]", plugin)()


class ElasticGrowth:
    """Grow into idle GPUs only, at any epoch boundary, and only if it pays.

    Source: the rule, its proof and its limits are in the design note on growth policies.
    """

    def needs(self, replicas: int, num_workers: int) -> int:
        """Return the width at which every trial can start."""
        return min(replicas, num_workers)

    def decide(self, board: Board, now: float, here: Running | None = None) -> Allocation:
        """Start whoever waits; then widen into what is left, the longest path first."""
        with _trying(board) as trial_run:
            starts: dict[TrialId, Placement] = {}
            awaited: set[SiteName | None] = {None} if board.new_trials else set()  # sites; None: any
            refused: set[tuple[int, SiteName | None]] = set()  # slots only get fewer here: never ask twice
            for waiting in board.waiting:
                wanted = (self.needs(waiting.replicas, board.num_workers), waiting.site)
                placement = None if wanted in refused else board.ledger.find(wanted[0], site=wanted[1])
                if placement is None:
                    refused.add(wanted)
                    awaited.add(waiting.site)
                    continue
                trial_run.hold(placement)
                starts[waiting.trial] = placement
            if here is not None and not awaited.isdisjoint({None, here.placement.site}):
                return Allocation(starts, here=_shrunk(board, here, starts))
            if None in awaited:
                return Allocation(starts)
            widened = _widen(board, now, here, starts, awaited, trial_run)
        return Allocation(starts, here=widened)


class StrictGrowth:
    """The paper's rule: a trial trains at its full width or waits for it.

    The deepest trial goes first; any that fits may start before one that does not (backfill), but
    only so often: then nobody starts until the one in front has its slots.
    """

    def needs(self, replicas: int, num_workers: int) -> int:
        """Return the full width: less is never used."""
        return replicas

    def decide(self, board: Board, now: float, here: Running | None = None) -> Allocation:
        """Start what fits at its full width; send ``here`` to the queue if it must grow."""
        if here is not None and here.placement.width != here.replicas:
            return Allocation(requeue=True)
        starts: dict[TrialId, Placement] = {}
        with _trying(board) as trial_run:
            first_behind: Waiting | None = None
            # Slots only get fewer in this loop: what was refused once is not asked for again.
            refused: set[tuple[int, SiteName | None]] = set()
            for waiting in board.waiting:
                if first_behind is not None and first_behind.overtaken >= _PATIENCE:
                    break
                wanted = (waiting.replicas, waiting.site)
                placement = None if wanted in refused else board.ledger.find(wanted[0], site=wanted[1])
                if placement is None:
                    refused.add(wanted)
                    first_behind = first_behind or waiting
                    continue
                trial_run.hold(placement)
                starts[waiting.trial] = placement
        return Allocation(starts)


class NoGrowth:
    """Fixed width: every trial trains on `num_workers` slots, as ASHA does."""

    def needs(self, replicas: int, num_workers: int) -> int:
        """Return the fixed width."""
        return min(replicas, num_workers)

    def decide(self, board: Board, now: float, here: Running | None = None) -> Allocation:
        """Start what fits."""
        starts: dict[TrialId, Placement] = {}
        with _trying(board) as trial_run:
            for waiting in board.waiting:
                width = self.needs(waiting.replicas, board.num_workers)
                placement = board.ledger.find(width, site=waiting.site)
                if placement is not None:
                    trial_run.hold(placement)
                    starts[waiting.trial] = placement
        return Allocation(starts)


# ------------------------------------------------------------------------------------------ elastic


def _widen(
    board: Board,
    now: float,
    here: Running | None,
    starts: dict[TrialId, Placement],
    awaited: set[SiteName | None],
    trial_run: _TrialRun,
) -> Placement | None:
    """Hand idle GPUs to the longest paths; return the new placement of ``here``, if it gets one.

    Running trials that are not at a boundary hold what they will ask for when they get there, so
    that nobody behind them takes it. Sites that somebody waits for are left alone.
    """
    started = [w for w in board.waiting if w.trial in starts] if starts else []
    fresh = {w.trial: _as_running(w, starts[w.trial], now) for w in started}
    at_point = sorted((board.rank(r), r) for r in (*fresh.values(), *([here] if here else ())))
    left = len(at_point)
    widened: Placement | None = None
    for _, running in heapq.merge(at_point, board.growable()):
        if left == 0 or board.ledger.free == 0:
            break  # nobody behind them acts now, or there is nothing left to hand out
        is_fresh, own = running.trial in fresh, running.placement
        left -= is_fresh or running is here
        if own.site in awaited:
            continue
        found = board.widest(running.replicas, own.site, own, _pays(board, running, is_fresh=is_fresh))
        if found is None:
            continue
        if is_fresh:
            trial_run.swap(own, found)
            starts[running.trial] = found
            continue
        trial_run.hold(found.minus(own))  # its own slots stay its own until it has left them
        if running is here:
            widened = found
    return widened


def _pays(board: Board, running: Running, *, is_fresh: bool) -> Callable[[int], bool]:
    """Return whether a width saves more over the certain epochs than getting there costs."""
    certain = running.until - running.boundary_epoch
    now_s = board.epoch_s(running, running.placement.width)
    cost_s = 0.0 if is_fresh else board.times.restart_s  # whoever starts now pays for that anyway
    return lambda width: certain * (now_s - board.epoch_s(running, width)) > cost_s + _EPSILON_S


def _as_running(waiting: Waiting, placement: Placement, now: float) -> Running:
    """Return a trial that is about to start, as if at a boundary: its launch is due anyway."""
    return Running(waiting.trial, waiting.age, placement, now, waiting.epoch, waiting.until, waiting.replicas)


def _shrunk(board: Board, here: Running, starts: Mapping[TrialId, Placement]) -> Placement | None:
    """Return a narrower placement for a wide trial at a boundary, to let waiting trials in."""
    narrowest, width = board.num_workers, here.placement.width
    certain_s = (here.until - here.boundary_epoch) * board.epoch_s(here, width)
    if width <= narrowest or certain_s <= 2 * board.times.restart_s:
        return None
    site = here.placement.site
    waiting = sum(w.trial not in starts and w.site in {None, site} for w in board.waiting) + board.new_trials
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

    def __init__(self, board: Board) -> None:
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
def _trying(board: Board) -> Iterator[_TrialRun]:
    trial_run = _TrialRun(board)
    try:
        yield trial_run
    finally:
        trial_run.give_back()
