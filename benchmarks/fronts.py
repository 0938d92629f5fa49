"""Searches by two metrics: time of a decision, and the hypervolume on ZDT1 beside Optuna alone.

    python benchmarks/fronts.py [--out benchmarks/results/fronts.json]

ZDT1 (Zitzler, Deb and Thiele 2000, doi 10.1162/106365600568202) is trained in epochs: after t of T both
metrics are worse by 1/t - 1/T. Both sides have the same epochs: Optuna's samplers alone train each trial
to the end.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from pathlib import Path
from typing import Any

import optuna
from claims import conclude

from parsl_rasda.orchestration.assembly import build_study_searcher
from parsl_rasda.scheduling import VARIANTS, build_scheduler
from parsl_rasda.scheduling.base import Action
from parsl_rasda.scheduling.objectives import Objectives, Values, dominates
from parsl_rasda.study import TuneSpec
from parsl_rasda.types import Mode, TrialId

SIZES = (100, 1_000, 10_000)
SEEDS, MAX_T, EPOCHS, PARAMETERS = 10, 8, 400, 5
METRICS = (("a", Mode.MIN), ("b", Mode.MIN))
OBJECTIVES = Objectives(METRICS)
CORNER = (1.5, 8.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    out = parser.parse_args().out
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    decisions = [{"results": n, **{v: decision_ms(v, n) for v in ("stopping", "promotion")}} for n in SIZES]
    rows: dict[str, list[float]] = {
        **{f"{v} tpe": [ours(v, seed) for seed in range(SEEDS)] for v in VARIANTS if v != "synchronous"},
        "optuna tpe": [alone(optuna.samplers.TPESampler(seed=s)) for s in range(SEEDS)],
        "optuna nsgaii": [alone(optuna.samplers.NSGAIISampler(seed=s)) for s in range(SEEDS)],
    }
    volume = {name: round(statistics.median(found), 4) for name, found in rows.items()}
    growth = decisions[2]["stopping"] / decisions[1]["stopping"]
    claims = {
        "ten times the results cost at most 15 times the decision": growth <= 15,
        "hypervolume at least that of Optuna's TPE alone": volume["stopping tpe"] >= volume["optuna tpe"],
        "hypervolume at least that of NSGA-II alone": volume["stopping tpe"] >= volume["optuna nsgaii"],
    }
    found = {"decision_ms": decisions, "median_hypervolume": volume, "seeds": SEEDS, "epochs": EPOCHS}
    conclude({**found, "optuna": optuna.__version__}, claims, out)


def decision_ms(variant: str, size: int) -> float:
    """Return the median time of a decision [ms] when a rung holds so many results."""
    rng = random.Random(size)
    scheduler: Any = build_scheduler({"max_t": 4, "variant": variant}, OBJECTIVES)
    found = [Values((rng.random(), rng.random())) for _ in range(size)]
    if variant == "stopping":
        scheduler._earlier[0] = list(found)
    else:
        scheduler._here[0] = dict(enumerate(found, 1_000))
    times = []
    for number in range(7):
        began = time.perf_counter()
        scheduler.report_all(TrialId(str(number)), 1, {"a": rng.random(), "b": rng.random()})
        times.append(1e3 * (time.perf_counter() - began))
    return round(statistics.median(times), 3)


def zdt1(x: list[float], epoch: int) -> dict[str, float]:
    g = 1 + 9 * statistics.fmean(x[1:])
    late = 1 / epoch - 1 / MAX_T
    return {"a": x[0] + late, "b": g * (1 - (x[0] / g) ** 0.5) + late}


def names() -> list[str]:
    return [f"x{i}" for i in range(PARAMETERS)]


def ours(variant: str, seed: int) -> float:
    """Return the hypervolume of what a search finds in so many epochs, one trial at a time."""
    space = {name: {"float": [0.0, 1.0]} for name in names()}
    block = {"max_t": MAX_T, "variant": variant}
    spec = TuneSpec.model_validate(
        {
            "metrics": [{"name": "a"}, {"name": "b"}],
            "num_samples": EPOCHS,
            "scheduler": block,
            "searcher": {"kind": "tpe"},
            "search_space": space,
            "training": {"command": ["true"]},
        }
    )
    searcher: Any = build_study_searcher(spec, seed)
    scheduler: Any = build_scheduler(block, OBJECTIVES)
    left, reached, xs, at = EPOCHS, dict[str, dict[str, float]](), dict[str, list[float]](), dict[str, int]()
    while left > 0:
        decision = scheduler.resume_next()
        if decision is None:
            trial = TrialId(str(len(xs)))
            config = searcher.propose(trial)
            xs[trial], at[trial] = [config[n] for n in names()], 0
            decision = scheduler.add(trial)
        while decision.action is Action.CONTINUE and left > 0:
            trial, until = decision.trial, min(decision.until, at[decision.trial] + left)
            left, at[trial] = left - (until - at[trial]), until
            reached[trial] = zdt1(xs[trial], until)
            decision = scheduler.report_all(trial, until, reached[trial])
        if decision.action is not Action.PAUSE:
            searcher.conclude_all(decision.trial, [*reached[decision.trial].values()], [])
    return hypervolume([(r["a"], r["b"]) for r in reached.values()])


def alone(sampler: optuna.samplers.BaseSampler) -> float:
    """Return the hypervolume that a sampler of Optuna's reaches without rungs in as many epochs."""
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)

    def train(trial: optuna.Trial) -> tuple[float, ...]:
        return tuple(zdt1([trial.suggest_float(n, 0, 1) for n in names()], MAX_T).values())

    study.optimize(train, n_trials=EPOCHS // MAX_T)
    return hypervolume([(t.values[0], t.values[1]) for t in study.trials])


def hypervolume(points: list[tuple[float, float]]) -> float:
    front = sorted(p for p in set(points) if not any(dominates(q, p) for q in points))
    inside = [p for p in front if p[0] < CORNER[0] and p[1] < CORNER[1]]
    volume, high = 0.0, CORNER[1]
    for a, b in inside:
        volume, high = volume + (CORNER[0] - a) * (high - b), b
    return volume


if __name__ == "__main__":
    main()
