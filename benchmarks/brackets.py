"""Regret of the winner by when trials are first judged, at the same epochs: one bracket, several, and auto.

    python benchmarks/brackets.py [--out benchmarks/results/brackets.json]

Two worlds of synthetic curves: `ordered` ones keep from the first epoch on the order that they end in,
`crossing` ones do not, for what learns fast ends worse. Each search has 250 epochs, four trials at a time,
the stopping rule and the searcher `tpe`; its regret is that of the trial whose last metric is best of those
that reached `max_t`, without noise.

The rule of `auto` was chosen on seeds 300 to 499, after a first one, chosen on seeds 100 to 159, had missed
the claim for crossing curves on seeds 0 to 19 (1.29 x). Seeds 1000 to 1199 have chosen nothing. A minute.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
from collections import Counter
from pathlib import Path

import optuna
from claims import conclude

from parsl_rasda.scheduling import build_scheduler
from parsl_rasda.scheduling.base import Action
from parsl_rasda.search import SearchSpace, build_searcher

EPOCHS, AT_A_TIME, MAX_T = 250, 4, 16
SEEDS = (range(20), range(1000, 1200))
NOISE = 0.01
AUTO = "brackets auto"
WORLDS = ("ordered", "crossing")
COLUMNS = {
    "grace 1": {"grace_period": 1},
    "grace 4": {"grace_period": 4},
    "brackets 3": {"brackets": 3},
    AUTO: {"brackets": "auto"},
}
NAMES = ("speed", "width", "depth")
SPACE = SearchSpace.from_mapping({name: {"float": [0.0, 1.0]} for name in NAMES})


class World:
    """Curves that fall to the distance of a configuration from the best one."""

    def __init__(self, kind: str, seed: int) -> None:
        rng = random.Random(seed)
        self.seed, self.is_ordered = seed, kind == "ordered"
        self.best = {name: rng.uniform(0.2, 0.8) for name in NAMES}
        if not self.is_ordered:
            self.best["speed"] = rng.uniform(0.0, 0.3)

    def regret(self, config: dict[str, float]) -> float:
        return statistics.fmean(abs(config[name] - best) for name, best in self.best.items())

    def loss(self, trial: str, config: dict[str, float], epoch: int) -> float:
        height, rate = (1.0, 0.5) if self.is_ordered else (3.0, 0.6 + 1.5 * config["speed"])
        noise = random.Random(f"{self.seed} {trial} {epoch}").gauss(0.0, NOISE)
        return self.regret(config) + height * math.exp(-rate * epoch) + noise


def search(kind: str, method: dict[str, object], seed: int) -> tuple[float, Counter[int]]:
    """Return the regret of the best trial by its last metric, and how many trials each bracket had."""
    world = World(kind, seed)
    scheduler = build_scheduler({"kind": "asha", "max_t": MAX_T, "metric": "loss", **method})
    searcher = build_searcher({"kind": "tpe"}, SPACE, mode="min", seed=seed)
    running: list[tuple[str, int, int]] = []
    brackets: Counter[int] = Counter()
    configs: dict[str, dict[str, float]] = {}
    completed: list[tuple[float, str]] = []
    for _ in range(EPOCHS):
        while len(running) < AT_A_TIME:
            trial = f"{len(configs):04d}"
            configs[trial] = searcher.propose(trial)
            running.append((trial, 0, scheduler.add(trial).until))
            brackets[scheduler.bracket_of(trial) if "brackets" in method else 0] += 1
        trial, epoch, until = running.pop(0)
        loss = world.loss(trial, configs[trial], epoch + 1)
        decision = scheduler.report(trial, epoch + 1, loss)
        goes_on = decision.action is Action.CONTINUE
        if not goes_on or decision.until != until:
            searcher.observe(trial, epoch + 1, loss)
        if goes_on:
            running.append((trial, epoch + 1, decision.until))
            continue
        searcher.conclude(trial, loss)
        if decision.completed:
            completed.append((loss, trial))
    return world.regret(configs[min(completed)[1]]), brackets


def measure(seeds: range) -> dict[str, dict[str, dict[str, object]]]:
    """Return the median regret by world and column, with the quartiles and the mean trials of a search."""
    table: dict[str, dict[str, dict[str, object]]] = {}
    for world in WORLDS:
        row = table[world] = {}
        for name, method in COLUMNS.items():
            found = [search(world, method, seed) for seed in seeds]
            low, median, high = statistics.quantiles((regret for regret, _ in found), n=4)
            trials = sum((brackets for _, brackets in found), Counter())
            row[name] = {
                "regret": round(median, 4),
                "quartiles": [round(low, 4), round(high, 4)],
                "trials": [round(trials[k] / len(found), 1) for k in sorted(trials)],
            }
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    out = parser.parse_args().out
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    found = {
        "what": "median regret",
        "epochs": EPOCHS,
        "at_a_time": AT_A_TIME,
        "max_t": MAX_T,
        "optuna": optuna.__version__,
    }
    claims: dict[str, bool] = {}
    for seeds in SEEDS:
        name = f"seeds {seeds.start} to {seeds.stop - 1}"
        found[name] = table = measure(seeds)
        for world, row in table.items():
            best = min(cell["regret"] for column, cell in row.items() if column != AUTO)
            claims[f"{name}, {world}: auto within 1.2 x the best other"] = row[AUTO]["regret"] <= 1.2 * best
    conclude(found, claims, out)


if __name__ == "__main__":
    main()
