"""Time of one scheduling decision when a rung already holds n results, against Optuna's pruner.

    python benchmarks/decisions.py [--out benchmarks/results/decisions.json]

Both are fed through their public reports; only Optuna's earlier results are written straight into its
storage, because reporting 100,000 of them one by one takes it most of an hour.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import optuna
from claims import conclude

from parsl_rasda.scheduling import VARIANTS, build_scheduler

SIZES = (1_000, 10_000, 100_000)
DECISIONS = 300
PEER_BUDGET_S = 6.0
SEED = 0
SETTINGS = {"reduction_factor": 2, "max_t": 16, "mode": "max"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    out = parser.parse_args().out
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    found = measure()
    conclude(
        found, {"a hundredth of Optuna's time at 10,000": found["rows"][1]["optuna_over_stopping"] > 100}, out
    )


def measure() -> dict[str, object]:
    """Return microseconds per decision, by rule and number of trials on the rung."""
    rows = []
    for size in SIZES:
        row: dict[str, object] = {"trials_on_rung": size}
        for variant in VARIANTS:
            row[variant] = ours(variant, size)
        row["optuna"] = peer(size)
        row["optuna_over_stopping"] = round(row["optuna"]["median_us"] / row["stopping"]["median_us"])
        rows.append(row)
    return {
        "what": "one report at the first rung, decided",
        "seed": SEED,
        "optuna": optuna.__version__,
        "rows": rows,
    }


def ours(variant: str, size: int) -> dict[str, float]:
    """Fill a rung with reports, then time more of them, with the resumptions and dismissals they cause.

    The synchronous rule decides a rung of ``size`` trials as a whole when the last one reports: its
    figure is the mean over all of them, and the longest is that last report.
    """
    rng = random.Random(SEED)
    is_whole = variant == "synchronous"
    settings = {**SETTINGS, "num_samples": size} if is_whole else SETTINGS
    scheduler = build_scheduler({"variant": variant, **settings})
    trials = [f"t{i}" for i in range(size if is_whole else size + DECISIONS)]
    for trial in trials:
        scheduler.add(trial)

    def decide(trial: str) -> None:
        scheduler.report(trial, 1, rng.random())
        scheduler.resume_next()
        scheduler.dismiss()

    times = timed(decide, trials)
    return summary(times if is_whole else times[size:], mean=is_whole)


def peer(size: int) -> dict[str, float]:
    rng = random.Random(SEED)
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)
    study = optuna.create_study(direction="maximize", pruner=pruner)
    storage = study._storage  # the only way to a rung of 100,000 in seconds
    for _ in range(size):
        trial, value = storage.create_new_trial(study._study_id), rng.random()
        storage.set_trial_intermediate_value(trial, 1, value)
        storage.set_trial_system_attr(trial, "completed_rung_0", value)

    def decide(trial: optuna.Trial) -> None:
        trial.report(rng.random(), 1)
        trial.should_prune()

    return summary(timed(decide, (study.ask() for _ in range(DECISIONS)), PEER_BUDGET_S))


def timed(decide: Callable, trials, budget_s: float = float("inf")) -> list[float]:
    times, started = [], time.perf_counter()
    for trial in trials:
        before = time.perf_counter()
        decide(trial)
        times.append(time.perf_counter() - before)
        if times and before - started > budget_s:
            break
    return times


def summary(times: list[float], *, mean: bool = False) -> dict[str, float]:
    middle = statistics.mean(times) if mean else statistics.median(times)
    return {
        "mean_us" if mean else "median_us": round(1e6 * middle, 2),
        "longest_us": round(1e6 * max(times), 1),
        "decisions": len(times),
    }


if __name__ == "__main__":
    main()
