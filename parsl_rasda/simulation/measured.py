"""What training cost in a run, read from its journal to rehearse it again or on another site.

These are means, not medians, so that sums over a study are those of the run. Lost attempts are left out:
a rehearsal has no faults.
"""

from __future__ import annotations

import math
import random
import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from parsl_rasda.orchestration.assembly import assumed_times
from parsl_rasda.orchestration.events import (
    EndJob,
    EpochReported,
    JobEnded,
    PilotStarted,
    RequestPilot,
    StartJob,
)
from parsl_rasda.orchestration.journal import Record
from parsl_rasda.orchestration.replay import ReplayedSearch
from parsl_rasda.placement.times import Times
from parsl_rasda.simulation.costs import Costs
from parsl_rasda.types import GradientNoise, JobId, Mode, PilotId, SiteName, TrialId


def measured_costs(history: ReplayedSearch, *, seed: int) -> Costs:
    """Return the costs measured in a run, and the study's assumptions where nothing was measured.

    A trial of the run keeps its costs, metrics and noise; epochs beyond its last one keep the last of these.
    Any other trial behaves like one of the run, drawn by the seed.

    Args:
        history: The run.
        seed: Seeds the draw.
    """
    seen, times = _measure(history)
    trials = list(history.machine.trials.values())
    sign = 1.0 if history.tune.mode is Mode.MIN else -1.0

    def like(number: int) -> int:
        known = number < len(trials) or not trials
        return number if known else random.Random(f"{seed}/like/{number}").randrange(len(trials))  # noqa: S311

    def metric(number: int, epoch: int) -> float:
        found = trials[like(number)].history if trials else {}
        before = [e for e in found if e <= epoch]
        return sign * found[max(before)] if before else math.nan

    def noise(number: int, epoch: int) -> GradientNoise | None:
        found = trials[like(number)].noise if trials else {}
        before = [e for e in found if e <= epoch]
        return found[max(before)] if before else None

    def epoch_s(number: int, world_size: int) -> float:
        trial = TrialId(f"{like(number):04d}")
        record = history.machine.trials.get(trial)
        return times.epoch_s(trial, world_size, (record and record.site) or SiteName(""))

    launches = {int(trial): s for trial, s in seen.launches.items()}
    known_s = launches.values() or (
        seen.restarts_s if seen.stretches else ()
    )  # a script starts anew each time
    launch_s = _mean(known_s, assumed_times(history.tune).restart_s)
    return Costs(
        epoch_s=epoch_s,
        metric=metric,
        launch_s=lambda number: launches.get(number, launch_s),
        restart_s=_mean(seen.restarts_s, launch_s),
        epoch_of=lambda number, epoch, width: seen.own_epochs.get(
            (TrialId(f"{like(number):04d}"), epoch, width)
        ),
        restart_of=lambda number, attempt: seen.own_restarts.get((TrialId(f"{like(number):04d}"), attempt)),
        boundary_s=_mean(seen.boundaries_s, 0.0),
        leave_s=_mean(seen.leaves_s, 0.0),
        queue_s=_mean(seen.queues_s, 0.0),
        samples=next((t.samples for t in trials if t.samples), history.tune.estimates.samples),
        noise=noise,
        leave_of=lambda number, attempt: seen.own_leaves.get((TrialId(f"{like(number):04d}"), attempt)),
        known_until=lambda number: max(trials[like(number)].history, default=0) if trials else math.inf,
    )


def counted_gpus(histories: Iterable[ReplayedSearch]) -> dict[str, int]:
    """Return the GPUs per node that runs found on their sites."""
    return {
        record.event.site: max(len(n.gpus) for n in record.event.nodes)
        for history in histories
        for record in history.records
        if isinstance(record.event, PilotStarted) and record.event.nodes
    }


def _measure(history: ReplayedSearch) -> tuple[_Measurements, Times]:
    seen, times = _Measurements(), Times(assumed_times(history.tune))
    for record in history.records:
        seen.add(record)
    for (trial, world_size, site), seconds in sorted(seen.epochs.items()):
        times.saw_epoch(trial, world_size, site, statistics.fmean(seconds))
    for stretch in seen.stretches:
        times.saw_stretch(*stretch)
    starts = (times.script_start_s(site) for _, _, site, _, _ in seen.stretches)
    seen.restarts_s += [start_s for start_s in starts if start_s is not None]
    return seen, times


@dataclass(slots=True)
class _Measurements:
    epochs: dict[tuple[TrialId, int, SiteName], list[float]] = field(
        default_factory=lambda: defaultdict(list)
    )
    own_epochs: dict[tuple[TrialId, int, int], float] = field(default_factory=dict)
    launches: dict[TrialId, float] = field(default_factory=dict)
    restarts_s: list[float] = field(default_factory=list)
    own_restarts: dict[tuple[TrialId, int], float] = field(default_factory=dict)
    stretches: list[tuple[TrialId, int, SiteName, int, float]] = field(default_factory=list)
    boundaries_s: list[float] = field(default_factory=list)
    leaves_s: list[float] = field(default_factory=list)
    queues_s: list[float] = field(default_factory=list)
    own_leaves: dict[tuple[TrialId, int], tuple[float, float]] = field(default_factory=dict)
    _handled_at: float = 0.0
    _jobs: dict[JobId, tuple[int, SiteName]] = field(default_factory=dict)
    _starts: dict[JobId, tuple[float, int]] = field(default_factory=dict)
    _boundaries: dict[JobId, float] = field(default_factory=dict)
    _leaving: dict[JobId, float] = field(default_factory=dict)
    _requests: dict[PilotId, float] = field(default_factory=dict)

    def add(self, record: Record) -> None:
        event = record.event
        self._handled_at = max(self._handled_at, event.at)
        match event:
            case EpochReported() if event.job in self._jobs:
                self._add_epoch(event)
            case JobEnded() if event.job in self._leaving:
                told_at = self._leaving.pop(event.job)
                self.leaves_s.append(event.at - told_at)
                # An end is often handled after later events; until then its slots are not free.
                leave = event.at - told_at, self._handled_at - told_at
                self.own_leaves[event.job.trial, event.job.attempt] = leave
            case PilotStarted() if event.pilot in self._requests:
                self.queues_s.append(event.at - self._requests.pop(event.pilot))
            case _:
                pass
        for instruction in record.instructions:
            match instruction:
                case StartJob():
                    place = instruction.placement
                    self._jobs[instruction.job] = (place.world_size, place.site)
                    self._starts[instruction.job] = (event.at, instruction.epoch)
                case EndJob(job):
                    self._leaving[job] = event.at
                case RequestPilot(pilot):
                    self._requests[pilot] = event.at
                case _:
                    pass

    def _add_epoch(self, event: EpochReported) -> None:
        world_size, site = self._jobs[event.job]
        since, before = self._starts.pop(event.job, (None, event.epoch - 1))
        if event.includes_startup and since is not None:
            self.stretches.append((event.job.trial, world_size, site, event.epoch - before, event.at - since))
            return
        began = event.at - event.seconds * max(1, event.epoch - before)
        if since is None:
            self.boundaries_s.append(max(0.0, began - self._boundaries[event.job]))
        elif event.job.attempt == 1:
            self.launches[event.job.trial] = max(0.0, began - since)
        else:
            self.restarts_s.append(max(0.0, began - since))
            self.own_restarts[event.job.trial, event.job.attempt] = self.restarts_s[-1]
        self._boundaries[event.job] = event.at
        self.epochs[event.job.trial, world_size, site].append(event.seconds)
        self.own_epochs[event.job.trial, event.epoch, world_size] = event.seconds


def _mean(seconds: Iterable[float], otherwise: float) -> float:
    found = list(seconds)
    return statistics.fmean(found) if found else otherwise
