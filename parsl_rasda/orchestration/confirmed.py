"""What a confirmation has come to: mean and spread of each candidate, and its chance to be the best."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from parsl_rasda.orchestration.machine import Machine
from parsl_rasda.orchestration.run_names import run_name
from parsl_rasda.orchestration.trial_record import TrialRecord
from parsl_rasda.types import Mode, StudyState, TrialId, TrialState

_DRAWS = 4000
_LEAST = 2  # results without which there is no spread


def confirmation_document(machine: Machine) -> dict[str, Any] | None:
    """Return the candidates with their runs, as `status --json` has them; None if none was trained again.

    ``state`` is running, done, or incomplete where a budget or an interruption has ended it before.
    """
    wanted, candidates = machine.confirmation.wanted, machine.confirmation.candidates
    if wanted is None or not candidates:
        return None
    rows = [_candidate(machine, trial, wanted.seeds) for trial in candidates]
    chances = chances_of_best(tuple(tuple(row["results"]) for row in rows), machine.settings.mode)
    winner = confirmed_winner(machine)
    settled = "done" if winner is not None or machine.confirmation.is_settled else "incomplete"
    return {
        "top": wanted.top,
        "seeds": wanted.seeds,
        "state": "running" if machine.is_confirming else settled,
        "winner": winner,
        "candidates": [
            {**row, "chance": None if chances is None else round(chances[k], 4)} for k, row in enumerate(rows)
        ],
    }


def confirmed_winner(machine: Machine) -> TrialId | None:
    """Return the candidate with the best mean; None unless each of its runs, and of the others', has ended.

    Equal means favour the one that the search found better.
    """
    if not machine.confirmation.is_settled:
        return None
    sign = 1.0 if machine.settings.mode is Mode.MIN else -1.0
    found = [
        (sign * statistics.fmean(results), k, trial)
        for k, trial in enumerate(machine.confirmation.candidates)
        if (results := results_of(machine, trial))
    ]
    return min(found)[2] if found else None


def results_of(machine: Machine, trial: TrialId) -> list[float]:
    """Return what the runs of a candidate have come to; those that failed have no result."""
    return [
        run.result[1]
        for run in _runs(machine, trial)
        if run.state is TrialState.COMPLETED and run.result is not None
    ]


def test_of(machine: Machine, trial: TrialRecord) -> float | None:
    """Return the test metric of a trial at the epoch of its result; None before the search is over."""
    if machine.state is not StudyState.DONE or trial.result is None:
        return None
    return trial.tests.get(trial.result[0])


@lru_cache(maxsize=8)
def chances_of_best(results: tuple[tuple[float, ...], ...], mode: Mode) -> tuple[float, ...] | None:
    """Return the chance of each candidate that its mean over all seeds is the best; None if that is unknown.

    The mean of each is drawn from its posterior under a flat prior of mean and log spread, Student's t with
    n - 1 degrees of freedom; the draws are the same each time. Two results of each are needed.

    Source:
        Gelman et al., Bayesian Data Analysis, 3rd edition (2013), section 3.2.
    """
    if not results or any(len(one) < _LEAST for one in results):
        return None
    rng, wins = random.Random(0), [0.0] * len(results)  # noqa: S311 - not for secrets
    pick = min if mode is Mode.MIN else max
    known = [(statistics.fmean(r), statistics.stdev(r) / math.sqrt(len(r)), len(r) - 1) for r in results]
    for _ in range(_DRAWS):
        means = [mean + error * _student(rng, freedom) for mean, error, freedom in known]
        best = pick(means)
        ties = means.count(best)
        for k, mean in enumerate(means):
            wins[k] += (mean == best) / ties
    return tuple(won / _DRAWS for won in wins)


def _student(rng: random.Random, freedom: int) -> float:
    return rng.gauss(0.0, 1.0) / math.sqrt(rng.gammavariate(freedom / 2, 2.0) / freedom)


def _runs(machine: Machine, trial: TrialId) -> list[TrialRecord]:
    wanted, runs = machine.confirmation.wanted, machine.confirmation.runs
    names = [run_name(trial, n) for n in range(1, wanted.seeds + 1)] if wanted else []
    return [runs[name] for name in names if name in runs]


def _candidate(machine: Machine, trial: TrialId, seeds: int) -> dict[str, Any]:
    record, runs, results = machine.trials[trial], _runs(machine, trial), results_of(machine, trial)
    epoch, metric = record.result or (0, math.nan)
    return {
        "trial": trial,
        "searched": {"epoch": epoch, "metric": metric},
        "mean": statistics.fmean(results) if results else None,
        "spread": statistics.stdev(results) if len(results) >= _LEAST else None,
        "results": results,
        "missing": seeds - len(results),
        "test": _tests(machine, runs),
        "runs": [_run(run) for run in runs],
    }


def _tests(machine: Machine, runs: Sequence[TrialRecord]) -> dict[str, Any] | None:
    found = [t for run in runs if (t := test_of(machine, run)) is not None]
    finite = [t for t in found if math.isfinite(t)]
    if not finite:
        return None
    spread = statistics.stdev(finite) if len(finite) >= _LEAST else None
    return {"mean": statistics.fmean(finite), "spread": spread, "n": len(finite)}


def _run(run: TrialRecord) -> dict[str, Any]:
    epoch, metric = run.last or (0, math.nan)
    return {
        "run": run.id,
        "state": run.state.value,
        "epoch": epoch,
        "metric": metric if math.isfinite(metric) else None,
        "attempts": run.attempt,
        "reason": run.reason,
    }
