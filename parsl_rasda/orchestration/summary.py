"""What a search has come to, in one JSON document: most of the answer of `run --json` and `status --json`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from parsl_rasda.orchestration.brackets import bracket_of, bracket_rows
from parsl_rasda.orchestration.confirmed import (
    confirmation_document,
    confirmed_winner,
    results_of,
    test_of,
)
from parsl_rasda.orchestration.machine import Machine
from parsl_rasda.orchestration.rank_agreement import rank_agreement
from parsl_rasda.orchestration.retention import released
from parsl_rasda.orchestration.run_names import is_run
from parsl_rasda.orchestration.trial_record import TrialRecord, best_trial, front
from parsl_rasda.orchestration.usage import Usage
from parsl_rasda.types import GradientNoise, PilotId, StudyState, TrialState

NOT_TRIED = "not_tried"


def summarise(study: str, machine: Machine, usage: Usage, now: float | None = None) -> dict[str, Any]:
    """Return the state of a search; keys are part of the stable contract.

    Args:
        study: Its name.
        machine: Where it stands.
        usage: What it has used.
        now: Present time [s] for a study that is running, else None.
    """
    trials, gone = machine.trials.values(), released(machine)
    counts = complete_counts({s: sum(t.state is s for t in trials) for s in TrialState}, machine)
    return {
        "study": study,
        "state": machine.state.value,
        "cause": cause(machine, usage),
        "stopped": machine.stop_reason,
        "budget": _budget(machine, now),
        "at_most": machine.at_most or None,
        "metric": machine.settings.metric,
        "mode": machine.settings.mode.value,
        "best": best(machine),
        "confirm": confirmation_document(machine),
        "front": _front(machine),
        "trials": {"total": machine.num_samples, **counts},
        "left_s": time_left(machine, usage),
        **spent([usage], now),
        "energy": energy(machine, usage),
        "measured": {
            "epoch_s": _epoch_s(machine),
            "efficiency": round(machine.cluster_state.times.efficiency, 3),
            "restart_s": round(machine.cluster_state.times.restart_s, 3),
        },
        "pilots": [
            {"pilot": p.pilot, "site": p.site, "gpus": sum(len(n.gpus) for n in p.nodes)}
            for p in machine.pilots.up.values()
        ],
        "awaited": [_awaited(usage, pilot) for pilot in usage.awaited],
        "resting": [{"site": site, "until": at} for site, at in machine.pilots.cooling_down.items()],
        "set_aside": machine.faults.set_aside,
        "rungs": _rungs(machine),
        "rank_agreement": rank_agreement([t.history for t in trials], machine.scheduler.milestones),
        "brackets": [*bracket_rows(machine)],
        "trial_list": [
            {
                **_trial(t, has_checkpoints=t.id not in gone),
                **_judged(machine, t),
                "bracket": bracket_of(machine, t.id),
            }
            for t in trials
        ],
    }


def _budget(machine: Machine, now: float | None) -> dict[str, dict[str, float] | float] | None:
    """Return each limit of the budget with what was spent of it, and when the search must end; or None."""
    watch = machine.budget
    limits = {key: limit for key, limit in asdict(watch.limits).items() if limit is not None}
    if not limits:
        return None
    spent_so_far = watch.spent(now)
    found: dict[str, dict[str, float] | float] = {
        key: {"limit": limit, "spent": round(spent_so_far[key], 6)}
        for key, limit in limits.items()
        if key in spent_so_far
    }
    if "until" in limits:
        found["until"] = limits["until"]
    return found


def complete_counts(counts: Mapping[TrialState, int], machine: Machine) -> dict[str, int]:
    """Return how many trials are in each state, which together are all trials that are wanted.

    Those that have no configuration yet are waiting; if the search is done without them, they are not tried.
    """
    rest = max(0, machine.num_samples - sum(counts.values()))
    found = {state.value: counts.get(state, 0) for state in TrialState} | {NOT_TRIED: 0}
    found[NOT_TRIED if machine.state is StudyState.DONE else TrialState.WAITING.value] += rest
    return found


def time_left(machine: Machine, usage: Usage) -> float | None:
    """Return about how long a search still takes [s], or None if that cannot be told.

    Its trials are taken to train as many epochs as those that have ended, and its slots as many a second as
    so far; but never shorter than the running trial that has come furthest would take to the end.
    """
    trials = machine.trials.values()
    ended = [t.epoch for t in trials if t.state.is_final]
    if machine.is_confirming:
        return None
    if machine.state is not StudyState.RUNNING or not (ended and usage.epochs and usage.gpus):
        return None
    seconds = usage.held_gpu_s() / usage.gpus
    running = [t for t in trials if t.state is TrialState.RUNNING]
    later = machine.num_samples - len(trials) + sum(t.state is TrialState.WAITING for t in trials)
    epochs = sum(max(0, t.until - t.epoch) for t in running) + max(0, later) * sum(ended) / len(ended)
    furthest = max(running, key=lambda t: t.epoch, default=None)
    alone = 0.0 if furthest is None else _alone_s(machine, furthest)
    left_s = min(max(epochs * seconds / usage.epochs, alone), machine.budget.ends_at - usage.last_at)
    return float(round(max(0.0, left_s)))


def _alone_s(machine: Machine, trial: TrialRecord) -> float:
    """Return how long a trial would take to its last epoch at its present width [s]."""
    width = trial.job.placement.world_size if trial.job else machine.settings.num_workers
    epoch_s = machine.cluster_state.times.typical_epoch_s(width) or 0.0
    return max(0, machine.scheduler.milestones[-1] - trial.epoch) * epoch_s


def no_search(study: str) -> dict[str, Any]:
    """Return the document of a study without a search: the keys of `summarise`, and nothing in them."""
    return {
        "study": study,
        "state": StudyState.RUNNING.value,
        "cause": "",
        "stopped": "",
        "budget": None,
        "at_most": None,
        "metric": None,
        "mode": None,
        "best": None,
        "confirm": None,
        "front": [],
        "trials": {"total": 0, **dict.fromkeys(TrialState, 0), NOT_TRIED: 0},
        "left_s": None,
        **spent([]),
        "energy": total_energy([]),
        "measured": {"epoch_s": None, "efficiency": None, "restart_s": None},
        "pilots": [],
        "awaited": [],
        "resting": [],
        "set_aside": [],
        "rungs": [],
        "rank_agreement": rank_agreement((), ()),
        "brackets": [],
        "trial_list": [],
    }


def spent(usages: Sequence[Usage], now: float | None = None) -> dict[str, Any]:
    """Return what searches have cost together: times, GPU time, restarts and faults.

    Args:
        usages: Of each; searches of one run never run at the same time.
        now: Present time [s] for those that are running, else None.
    """
    held_gpu_s = sum(u.held_gpu_s(now) for u in usages)
    restarts_s = [s for u in usages for s in u.restarts_s]
    faults = [f for u in usages for f in u.faults]
    return {
        "makespan_s": round(sum(u.makespan_s(now) for u in usages), 3),
        "gpus": sum(u.gpus for u in usages),
        "gpus_busy": sum(u.busy_gpus for u in usages),
        "gpu_busy_fraction": round(sum(u.busy_gpu_s for u in usages) / held_gpu_s, 4) if held_gpu_s else 0.0,
        "gpu_hours": round(held_gpu_s / 3600, 5),
        "epochs": sum(u.epochs for u in usages),
        "repeated_epochs": sum(u.repeated_epochs for u in usages),
        "restarts": {
            "count": len(restarts_s),
            "median_s": round(statistics.median(restarts_s), 3) if restarts_s else None,
            "max_s": round(max(restarts_s), 3) if restarts_s else None,
        },
        "faults": {
            "count": len(faults),
            "preemptions": sum(u.preemptions for u in usages),
            "list": [{"at": f.at, "what": f.what, "cause": f.cause, "refusal": f.is_refusal} for f in faults],
        },
    }


_J_PER_KWH = 3.6e6


def energy(machine: Machine, usage: Usage) -> dict[str, Any]:
    """Return what jobs that have ended have drawn [kWh], by what became of their trials.

    ``kwh`` is None if none was metered; those that were not are in no sum.
    """
    by_outcome: dict[str, float] = {}
    for trial, joules in usage.energy_j.items():
        state = "confirmation" if is_run(trial) else machine.trials[trial].state.value
        by_outcome[state] = by_outcome.get(state, 0.0) + joules / _J_PER_KWH
    return {
        "kwh": round(sum(by_outcome.values()), 9) if usage.jobs_metered else None,
        "by_outcome": {state: round(kwh, 9) for state, kwh in sorted(by_outcome.items())},
        "jobs": usage.jobs_ended,
        "jobs_metered": usage.jobs_metered,
    }


def total_energy(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the sum of what searches have drawn."""
    known = [part["kwh"] for part in parts if part["kwh"] is not None]
    states = sorted({state for part in parts for state in part["by_outcome"]})
    return {
        "kwh": sum(known) if known else None,
        "by_outcome": {s: sum(part["by_outcome"].get(s, 0.0) for part in parts) for s in states},
        "jobs": sum(part["jobs"] for part in parts),
        "jobs_metered": sum(part["jobs_metered"] for part in parts),
    }


def cause(machine: Machine, usage: Usage) -> str:
    """Return why a search has no result, in words; empty if it has one or goes on."""
    if machine.state is not StudyState.FAILED or usage.cause:
        return usage.cause
    first = next(iter(machine.trials.values()), None)
    return "no trial succeeded" + (f"; trial {first.id}: {first.reason}" if first else "")


def best(machine: Machine) -> dict[str, Any] | None:
    """Return the best trial as the next stage of a pipeline receives it, or None.

    Once it is confirmed, it is the candidate with the best mean, with what the search itself had found of it.
    """
    winner = confirmed_winner(machine)
    found = machine.trials[winner] if winner else best_trial(machine.trials, machine.settings.mode)
    if found is None or found.result is None or found.last is None:
        return None
    epoch, metric = found.result
    checkpoint = found.result_checkpoint
    return {
        "trial": found.id,
        "metric": metric,
        "epoch": epoch,
        "config": dict(found.config),
        "checkpoint": checkpoint.path if checkpoint else None,
        "replicas": found.replicas,
        "site": found.site,
        "last": {"epoch": found.last[0], "metric": found.last[1]},
        **_looked_at_last(machine, found),
    }


def _looked_at_last(machine: Machine, found: TrialRecord) -> dict[str, Any]:
    """Return what the best trial has on top of all others, once the search is over."""
    extra: dict[str, Any] = {}
    if confirmed_winner(machine) == found.id:
        extra["confirmed"] = statistics.fmean(results_of(machine, found.id))
    if (value := test_of(machine, found)) is not None:
        extra["test"] = {"metric": machine.settings.test_metric, "value": value}
    return extra


def _front(machine: Machine) -> list[dict[str, Any]]:
    """Return the front, best by the first metric first; nothing if one metric alone counts."""
    objectives = machine.settings.objectives
    found = front(machine.trials) if objectives is not None else []
    reached = [(t, epoch, t.reached[epoch]) for t in found if t.last for epoch in (t.last[0],)]
    return [
        {
            "trial": trial.id,
            "epoch": epoch,
            "values": dict(zip((n for n, _ in objectives.metrics), objectives.plain(values), strict=True)),
            "keeps_limits": values.violation == 0,
            "config": dict(trial.config),
            "checkpoint": trial.checkpoint.path if trial.checkpoint else None,
        }
        for trial, epoch, values in sorted(reached, key=lambda r: (r[2].costs[0], r[0].age))
        if objectives is not None
    ]


def _awaited(usage: Usage, pilot: PilotId) -> dict[str, Any]:
    """Return how long a pilot is awaited, and where it stands in its queue if that is known."""
    site, since = usage.awaited[pilot]
    found = {"pilot": pilot, "site": site, "since": since}
    if (queued := usage.queued.get(pilot)) is None:
        return {**found, "job": None, "state": "", "reason": "", "starts_at": None, "obstacle": ""}
    said = {"job": queued.job, "state": queued.state, "reason": queued.reason}
    return {**found, **said, "starts_at": queued.starts_at, "obstacle": queued.obstacle}


def _rungs(machine: Machine) -> list[dict[str, Any]]:
    rows, before = [], 0
    for k, milestone in enumerate(machine.scheduler.milestones):
        reached = [t for t in machine.trials.values() if milestone in t.history]
        results = [t.history[milestone] for t in reached]
        noise = [n for t in reached if (n := t.noise_between(before, milestone)) is not None]
        before = milestone
        finite = [r for r in results if math.isfinite(r)]
        pick = min if machine.settings.mode == "min" else max
        rows.append(
            {
                "rung": k,
                "epochs": milestone,
                "replicas": machine.split(k).replicas,
                "reached": len(results),
                "best": pick(finite) if finite else None,
                "batches": sorted({t.batches_of(milestone) for t in reached}),
                "noise_scale": _noise_scale(noise),
            }
        )
    return rows


def _noise_scale(found: Sequence[GradientNoise]) -> dict[str, Any]:
    """Return the median of noise scales; it is None where noise hides the gradient of half the trials.

    An estimate below 0 of the noise itself says nothing of its scale, and is left out.
    """
    scales = [noise.scale for noise in found if noise.variance >= 0]
    median = statistics.median_high(scales) if scales else math.inf
    return {
        "trials": len(found),
        "median": median if math.isfinite(median) else None,
        "hidden": sum(math.isinf(s) for s in scales),
    }


def _trial(trial: TrialRecord, *, has_checkpoints: bool) -> dict[str, Any]:
    epoch, metric = trial.last or (0, math.nan)
    return {
        "trial": trial.id,
        "state": trial.state.value,
        "epoch": epoch,
        "metric": metric if math.isfinite(metric) else None,
        "replicas": trial.replicas,
        "width": trial.job.placement.world_size if trial.job else None,
        "slots": list(trial.job.placement.slots) if trial.job else [],
        "attempts": trial.attempt,
        "losses": trial.retries,
        "reason": trial.reason,
        "code": list(trial.codes),
        "exact": trial.exact or None,
        "devices": list(trial.devices),
        "config": dict(trial.config),
        "history": [[e, m if math.isfinite(m) else None] for e, m in sorted(trial.history.items())],
        "checkpoint": trial.checkpoint.path if trial.checkpoint and has_checkpoints else None,
        "kept": list(trial.kept) if has_checkpoints else [],
    }


def _judged(machine: Machine, trial: TrialRecord) -> dict[str, Any]:
    """Return all that a trial is judged by: nothing if that is one metric alone, None if it lacks any."""
    objectives = machine.settings.objectives
    if objectives is None:
        return {}
    reached = trial.reached.get(trial.last[0]) if trial.last is not None else None
    if reached is None:
        return {"values": None, "violations": None}
    values = dict(zip((n for n, _ in objectives.metrics), objectives.plain(reached), strict=True))
    return {"values": values, "violations": list(reached.violations)}


def _epoch_s(machine: Machine) -> float | None:
    return machine.cluster_state.times.typical_epoch_s(machine.settings.num_workers)
