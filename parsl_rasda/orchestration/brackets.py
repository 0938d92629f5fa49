"""What people are told of brackets: which one a trial is in, and what came of each."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from parsl_rasda.orchestration.machine import Machine
from parsl_rasda.scheduling.brackets import BracketedScheduler
from parsl_rasda.types import Mode, TrialId, TrialState


def bracket_of(machine: Machine, trial: TrialId) -> int | None:
    """Return the bracket of a trial that was admitted; None where there is but one."""
    scheduler = machine.scheduler
    return scheduler.bracket_of(trial) if isinstance(scheduler, BracketedScheduler) else None


def bracket_rows(machine: Machine) -> Iterator[dict[str, Any]]:
    """Yield each bracket as the summary has it; nothing where there is but one.

    ``agreement`` is the rank agreement by which `auto` chooses; None without it.
    """
    scheduler = machine.scheduler
    if not isinstance(scheduler, BracketedScheduler):
        return
    taus = scheduler.taus
    pick = min if machine.settings.mode is Mode.MIN else max
    for k, grace_period in enumerate(scheduler.grace_periods):
        trials = [t for t in machine.trials.values() if scheduler.bracket_of(t.id) == k]
        ends = [t for t in trials if t.state is TrialState.COMPLETED]
        results = [r[1] for t in ends if (r := t.result) is not None and math.isfinite(r[1])]
        yield {
            "bracket": k,
            "grace_period": grace_period,
            "trials": len(trials),
            "completed": len(ends),
            "best": pick(results, default=None),
            "agreement": None if taus is None else round(taus[k], 3),
        }
