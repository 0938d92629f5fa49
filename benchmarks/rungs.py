"""Epochs and regret of what docs/rungs.md offers, on synthetic curves: 54 trials, up to 81 epochs, 20 seeds.

    python benchmarks/rungs.py [--out benchmarks/results/rungs.json]

Curves are power laws with noise. Those that are ordered begin in the order in which they end; those that
cross begin in any. Four places train side by side, and who reports next is drawn, so that it takes seconds:
the schedulers are the product's, and there is no machine. Regret is what the true end of the winner, the best
of those that trained longest, lies above that of the best trial.
"""

from __future__ import annotations

import argparse
import random
import statistics
from pathlib import Path
from typing import Any

from claims import conclude

from parsl_rasda.scheduling import build_scheduler
from parsl_rasda.scheduling.base import Action
from parsl_rasda.types import TrialId

TRIALS, MAX_T, PLACES, SEEDS, NOISE = 54, 81, 4, 20, 0.01
ARMS: dict[str, dict[str, Any]] = {
    "stopping": {},
    "min_compared: 9": {"min_compared": 9},
    "promotion": {"variant": "promotion"},
    "max_t: {auto: 81}": {"max_t": {"auto": MAX_T}},
    "max_t: {auto: 81}, min_compared: 9": {"max_t": {"auto": MAX_T}, "min_compared": 9},
    "grace_period: 9": {"grace_period": 9},
    "grace_period: 9, early: curve": {"grace_period": 9, "early": "curve"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    out = parser.parse_args().out
    rows = {kind: {arm: row_of(kind, more) for arm, more in ARMS.items()} for kind in ("ordered", "crossing")}
    ordered = rows["ordered"]
    claims = {
        "ordered: min_compared trains half the epochs": (
            ordered["min_compared: 9"]["epochs"] <= 0.5 * ordered["stopping"]["epochs"]
        ),
        "ordered: auto trains a third of them": (
            ordered["max_t: {auto: 81}"]["epochs"] <= ordered["stopping"]["epochs"] / 3
        ),
        "ordered: the curve rule trains six tenths of those without it": (
            ordered["grace_period: 9, early: curve"]["epochs"] <= 0.6 * ordered["grace_period: 9"]["epochs"]
        ),
        "ordered: regret stays below 0.01": all(row["regret"] < 0.01 for row in ordered.values()),
    }
    conclude({"trials": TRIALS, "max_t": MAX_T, "seeds": SEEDS, "rows": rows}, claims, out)


def row_of(kind: str, more: dict[str, Any]) -> dict[str, float]:
    """Return medians of epochs and of the longest trial, and the mean regret, of one arm."""
    found = [searched(seed, kind, {"max_t": MAX_T, "reduction_factor": 3, **more}) for seed in range(SEEDS)]
    epochs, regrets, longest = zip(*found, strict=True)
    return {
        "epochs": statistics.median(epochs),
        "regret": round(statistics.fmean(regrets), 4),
        "longest": statistics.median(longest),
    }


def searched(seed: int, kind: str, block: dict[str, Any]) -> tuple[int, float, int]:
    """Return the epochs of one search, its regret, and how long its longest trial trained."""
    rng = random.Random(seed)
    ends, curves = trials_of(rng, kind)
    scheduler, coming = build_scheduler(block), [*curves]
    training: set[TrialId] = set()
    epochs = dict.fromkeys(curves, 0)
    while True:
        while len(training) < PLACES and (resumed := scheduler.resume_next()) is not None:
            training.add(resumed.trial)
        while coming and len(training) < PLACES:
            training.add(scheduler.add(coming.pop(0)).trial)
            if not coming:
                scheduler.close()
        if not coming:
            scheduler.dismiss()
        if not training:
            break
        trial = rng.choice(sorted(training))
        epochs[trial] += 1
        metric = curves[trial][epochs[trial] - 1]
        if scheduler.report(trial, epochs[trial], metric).action is not Action.CONTINUE:
            training.remove(trial)
    longest = max(epochs.values())
    last = {trial: curves[trial][longest - 1] for trial, done in epochs.items() if done == longest}
    return sum(epochs.values()), ends[min(last, key=last.__getitem__)] - min(ends.values()), longest


def trials_of(rng: random.Random, kind: str) -> tuple[dict[TrialId, float], dict[TrialId, list[float]]]:
    """Return where trials end, and their curves."""
    ends, curves = {}, {}
    for number in range(TRIALS):
        trial, quality = TrialId(f"{number:02d}"), rng.random()
        above, pace = (
            (0.3 + 0.7 * quality, 1.0) if kind == "ordered" else (rng.uniform(0, 2), rng.uniform(0.5, 1.5))
        )
        ends[trial] = quality / 2
        curves[trial] = [ends[trial] + above * e**-pace + rng.gauss(0, NOISE) for e in range(1, MAX_T + 1)]
    return ends, curves


if __name__ == "__main__":
    main()
