"""The state of a search, updated event by event, so that showing it costs nothing."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from parsl_rasda.display.decisions import DecisionLine, DecisionLog
from parsl_rasda.orchestration.events import EpochReported, Event, Instruction
from parsl_rasda.orchestration.machine import Machine
from parsl_rasda.orchestration.run_names import is_run
from parsl_rasda.orchestration.summary import complete_counts
from parsl_rasda.orchestration.trial_record import best_trial
from parsl_rasda.orchestration.usage import Usage
from parsl_rasda.reporting.format import queue_words
from parsl_rasda.simulation.remaining import remaining_s
from parsl_rasda.types import Mode, StudyState, TrialId, TrialState

_SHOWN = 8
_LEFT_EVERY_S = 1.0  # between two estimates of the time that is left, at least
_LEFT_SHARE = 0.02  # of the time, at most, is spent on them


@dataclass(slots=True)
class RungProgress:
    """One rung: how many trials have reached it, and the best metric there."""

    epochs: int
    replicas: int
    reached: int = 0
    best: float | None = None


@dataclass(frozen=True, slots=True)
class BestTrial:
    """The trial with the best result, as in the summary: what the search would return now."""

    trial: TrialId
    epoch: int
    metric: float
    config: dict[str, Any]


@dataclass(frozen=True, slots=True)
class SearchSnapshot:
    """What a display shows of a search."""

    stage: str
    metric: str
    total: int
    states: dict[str, int]
    gpus: int
    busy: int
    epochs: int
    restarts: int
    faults: int
    rungs: tuple[RungProgress, ...]
    best: BestTrial | None
    decisions: tuple[DecisionLine, ...]
    seconds: float
    left_s: float | None
    last_fault: str
    slot_kind: str
    queued: tuple[str, ...] = ()

    @property
    def ended(self) -> int:
        """How many trials have ended."""
        return sum(self.states[state] for state in TrialState if state.is_final)


class SearchProgress:
    """Adds up the events of one search; the display's thread takes snapshots."""

    def __init__(self, stage: str, machine: Machine, usage: Usage, slot_kind: str = "GPUs") -> None:
        """Begin in the state of a machine, which may be in the middle of a search."""
        self._stage, self._machine, self._usage, self._slot_kind = stage, machine, usage, slot_kind
        self._left_s: float | None = None
        self._left_due_at = -math.inf
        self._log = DecisionLog(machine)
        self._lock = threading.Lock()
        self._decisions: deque[DecisionLine] = deque(maxlen=_SHOWN)
        self._states: dict[TrialId, TrialState] = {}
        self._counts: Counter[TrialState] = Counter()
        self._best: BestTrial | None = None
        milestones = machine.scheduler.milestones
        self._rungs = {m: RungProgress(m, machine.split(k).replicas) for k, m in enumerate(milestones)}
        self._reached: set[tuple[TrialId, int]] = set()
        for trial in machine.trials.values():
            for epoch, metric in trial.history.items():
                self._add_metric(trial.id, epoch, metric)
        self._count_states(machine.trials)
        self._find_best()
        self._figures = self._read_figures()
        self._queued: tuple[str, ...] = ()

    def add(self, event: Event, instructions: tuple[Instruction, ...]) -> None:
        """Take note of one event; the machine may be ahead of it."""
        with self._lock:
            self._decisions.extend(self._log.lines(event, instructions))
            if isinstance(event, EpochReported) and not is_run(event.job.trial):
                metric = event.metrics.get(self._machine.settings.metric, math.nan)
                self._add_metric(event.job.trial, event.epoch, float(metric))
            touched = {t for part in (event, *instructions) if (t := _trial_of(part)) is not None}
            self._count_states(touched if touched else tuple(self._machine.trials))
            self._rank(touched)
            self._figures = self._read_figures()
            said = self._usage.queued.values()
            self._queued = tuple(queue_words(q.job, q.state, q.reason, q.starts_at, q.obstacle) for q in said)
            self._estimate(event.at)

    def _estimate(self, at: float) -> None:
        """Rehearse the rest of the search, unless that was done a moment ago."""
        began = time.monotonic()
        if began < self._left_due_at and self._machine.state is StudyState.RUNNING:
            return
        self._left_s = remaining_s(self._machine, self._usage, at)
        now, least_s = time.monotonic(), 0.0 if self._left_s is None else _LEFT_EVERY_S
        self._left_due_at = now + max(least_s, (now - began) / _LEFT_SHARE)

    def snapshot(self) -> SearchSnapshot:
        """Return the state of the search; may be called from any thread."""
        with self._lock:
            gpus, busy, epochs, restarts, faults, total, last_fault = self._figures
            return SearchSnapshot(
                self._stage,
                self._machine.settings.metric,
                total,
                complete_counts(self._counts, self._machine),
                gpus,
                busy,
                epochs,
                restarts,
                faults,
                tuple(RungProgress(r.epochs, r.replicas, r.reached, r.best) for r in self._rungs.values()),
                self._best,
                tuple(self._decisions),
                self._usage.makespan_s(time.time()),
                self._left_s,
                last_fault,
                self._slot_kind,
                self._queued,
            )

    def _read_figures(self) -> tuple[int, int, int, int, int, int, str]:
        a = self._usage
        restarts, faults = len(a.restarts_s), len(a.faults)
        last = f"{a.faults[-1].what}: {a.faults[-1].cause}" if a.faults else ""
        total = self._machine.num_samples
        return a.gpus, a.busy_gpus, a.epochs, restarts, faults, total, last

    def _count_states(self, trials: Iterable[TrialId]) -> None:
        for trial in trials:
            record = self._machine.trials.get(trial)
            if record is None:
                continue
            before = self._states.get(trial)
            if before is not None:
                self._counts[before] -= 1
            self._states[trial] = record.state
            self._counts[record.state] += 1

    def _add_metric(self, trial: TrialId, epoch: int, metric: float) -> None:
        rung = self._rungs.get(epoch)
        if rung is not None and (trial, epoch) not in self._reached:
            self._reached.add((trial, epoch))
            rung.reached += 1
        if not math.isfinite(metric):
            return
        if rung is not None and self._is_better(metric, rung.best):
            rung.best = metric

    def _rank(self, touched: Collection[TrialId]) -> None:
        """Compare the trials of an event with the best one; rank all trials if it is among them."""
        if self._best is None or self._best.trial in touched:
            self._find_best()
            return
        rivals = {t: found for t in touched if (found := self._machine.trials.get(t)) is not None}
        rival = best_trial(rivals, self._machine.settings.mode)
        if (
            rival is not None
            and rival.result is not None
            and not self._is_better(self._best.metric, rival.result[1])
        ):
            self._find_best()

    def _find_best(self) -> None:
        found = best_trial(self._machine.trials, self._machine.settings.mode)
        if found is None or found.result is None:
            self._best = None
        else:
            epoch, metric = found.result
            self._best = BestTrial(found.id, epoch, metric, dict(found.config))

    def _is_better(self, metric: float, than: float | None) -> bool:
        if than is None:
            return True
        return metric < than if self._machine.settings.mode is Mode.MIN else metric > than


def _trial_of(part: Event | Instruction) -> TrialId | None:
    job = getattr(part, "job", None)
    found: TrialId | None = job.trial if job is not None else getattr(part, "trial", None)
    return found
