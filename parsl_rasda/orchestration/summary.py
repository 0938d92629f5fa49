"""What a study has come to, in one JSON document: the answer of `run --json` and `status --json`."""

from __future__ import annotations

import math
import statistics
from typing import Any

from parsl_rasda.orchestration.accounts import Accounts
from parsl_rasda.orchestration.machine import Machine
from parsl_rasda.orchestration.trials import TrialRecord, best_trial
from parsl_rasda.vocabulary import TrialState


def summarise(study: str, machine: Machine, accounts: Accounts, now: float | None = None) -> dict[str, Any]:
    """Return the state of a study; keys are part of the stable contract.

    Args:
        study: Its name.
        machine: Where it stands.
        accounts: Its books.
        now: Present time [s] for a study that is running, else None.
    """
    trials = machine.trials.values()
    counts = {state.value: sum(t.state is state for t in trials) for state in TrialState}
    held_gpu_s = accounts.held_gpu_s(now)
    return {
        "study": study,
        "state": machine.state.value,
        "metric": machine.settings.metric,
        "mode": machine.settings.mode.value,
        "best": best(machine),
        "trials": {"total": machine.num_samples, **counts},
        "makespan_s": round(accounts.makespan_s(now), 3),
        "gpus": accounts.gpus,
        "gpus_busy": accounts.busy_gpus,
        "gpu_busy_fraction": round(accounts.busy_gpu_s / held_gpu_s, 4) if held_gpu_s else 0.0,
        "gpu_hours": round(held_gpu_s / 3600, 5),
        "epochs": accounts.epochs,
        "repeated_epochs": accounts.repeated_epochs,
        "restarts": {
            "count": len(accounts.restarts_s),
            "median_s": round(statistics.median(accounts.restarts_s), 3) if accounts.restarts_s else None,
            "max_s": round(max(accounts.restarts_s), 3) if accounts.restarts_s else None,
        },
        "measured": {
            "epoch_s": _epoch_s(machine),
            "efficiency": round(machine.board.times.efficiency, 3),
            "restart_s": round(machine.board.times.restart_s, 3),
        },
        "faults": {
            "count": len(accounts.faults),
            "preemptions": accounts.preemptions,
            "list": [{"at": f.at, "what": f.what, "cause": f.cause} for f in accounts.faults],
        },
        "pilots": [
            {"pilot": p.pilot, "site": p.site, "gpus": sum(len(n.gpus) for n in p.nodes)}
            for p in machine.pilots.up.values()
        ],
        "rungs": _rungs(machine),
        "trial_list": [_trial(t) for t in trials],
    }


def best(machine: Machine) -> dict[str, Any] | None:
    """Return the best trial as the next stage of a pipeline receives it, or None."""
    found = best_trial(machine.trials, machine.settings.mode)
    if found is None or found.last is None:
        return None
    epoch, metric = found.last
    return {
        "trial": found.id,
        "metric": metric,
        "epoch": epoch,
        "config": dict(found.config),
        "checkpoint": found.checkpoint,
        "replicas": found.replicas,
        "site": found.site,
    }


def _rungs(machine: Machine) -> list[dict[str, Any]]:
    rows = []
    for k, milestone in enumerate(machine.scheduler.milestones):
        results = [t.history[milestone] for t in machine.trials.values() if milestone in t.history]
        finite = [r for r in results if math.isfinite(r)]
        pick = min if machine.settings.mode == "min" else max
        rows.append(
            {
                "rung": k,
                "epochs": milestone,
                "replicas": machine.scheduler.replicas(k),
                "reached": len(results),
                "best": pick(finite) if finite else None,
            }
        )
    return rows


def _trial(trial: TrialRecord) -> dict[str, Any]:
    epoch, metric = trial.last or (0, math.nan)
    return {
        "trial": trial.id,
        "state": trial.state.value,
        "epoch": epoch,
        "metric": metric if math.isfinite(metric) else None,
        "replicas": trial.replicas,
        "width": trial.job.placement.width if trial.job else None,
        "slots": list(trial.job.placement.slots) if trial.job else [],
        "attempts": trial.attempt,
        "losses": trial.losses,
        "reason": trial.reason,
        "config": dict(trial.config),
        "history": [[e, m if math.isfinite(m) else None] for e, m in sorted(trial.history.items())],
        "checkpoint": trial.checkpoint,
    }


def _epoch_s(machine: Machine) -> float | None:
    return machine.board.times.typical_epoch_s(machine.settings.num_workers)
