"""What good, no and wrong priors do: median regret on four functions, 20 seeds, random and TPE.

Run: python benchmarks/priors.py [benchmarks/results/priors.json]
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from claims import conclude

from parsl_rasda.search import SearchSpace, build_searcher
from parsl_rasda.types import TrialId

SEEDS, TRIALS = 20, 40
WEIGHTS = (1.0, 1.2, 3.0, 3.2)
HARTMANN_3 = (
    ((3.0, 10, 30), (0.1, 10, 35), (3.0, 10, 30), (0.1, 10, 35)),
    (
        (0.3689, 0.1170, 0.2673),
        (0.4699, 0.4387, 0.7470),
        (0.1091, 0.8732, 0.5547),
        (0.0381, 0.5743, 0.8828),
    ),
)
HARTMANN_6 = (
    (
        (10, 3, 17, 3.5, 1.7, 8),
        (0.05, 10, 17, 0.1, 8, 14),
        (3, 3.5, 1.7, 10, 17, 8),
        (17, 8, 0.05, 10, 0.1, 14),
    ),
    (
        (0.1312, 0.1696, 0.5569, 0.0124, 0.8283, 0.5886),
        (0.2329, 0.4135, 0.8307, 0.3736, 0.1004, 0.9991),
        (0.2348, 0.1451, 0.3522, 0.2883, 0.3047, 0.6650),
        (0.4047, 0.8828, 0.8732, 0.5743, 0.1091, 0.0381),
    ),
)
Point = Sequence[float]


def branin(x: Point) -> float:
    bowl = x[1] - 5.1 / (4 * math.pi**2) * x[0] ** 2 + 5 / math.pi * x[0] - 6
    return bowl**2 + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x[0]) + 10


def hartmann(form: tuple[Sequence[Point], Sequence[Point]]) -> Callable[[Point], float]:
    def value(x: Point) -> float:
        inner = [
            sum(a * (v - p) ** 2 for a, v, p in zip(row, x, at, strict=True))
            for row, at in zip(*form, strict=True)
        ]
        return -sum(w * math.exp(-each) for w, each in zip(WEIGHTS, inner, strict=True))

    return value


def ackley(x: Point) -> float:
    spread = math.sqrt(sum(v * v for v in x) / len(x))
    waves = sum(math.cos(2 * math.pi * v) for v in x) / len(x)
    return -20 * math.exp(-0.2 * spread) - math.exp(waves) + 20 + math.e


# name: function, bounds, least value, where it is, where it is not
FUNCTIONS = {
    "Branin": (branin, [(-5, 10), (0, 15)], 0.397887, (math.pi, 2.275), (-4.5, 1.0)),
    "Hartmann-3": (hartmann(HARTMANN_3), [(0, 1)] * 3, -3.86278, (0.115, 0.556, 0.853), (0.9, 0.1, 0.1)),
    "Hartmann-6": (
        hartmann(HARTMANN_6),
        [(0, 1)] * 6,
        -3.32237,
        (0.202, 0.150, 0.477, 0.275, 0.312, 0.657),
        (0.9, 0.9, 0.05, 0.9, 0.95, 0.05),
    ),
    "Ackley-4": (ackley, [(-20, 30)] * 4, 0.0, (0.0,) * 4, (27.0,) * 4),
}


def space_of(function: str, prior: str) -> SearchSpace:
    """Return the space; a good prior is a tenth of the range beside the optimum, as an expert's is."""
    _, bounds, _, best, wrong = FUNCTIONS[function]
    form: dict[str, dict[str, object]] = {}
    for i, (low, high) in enumerate(bounds):
        form[f"x{i}"] = {"float": [float(low), float(high)]}
        beside = best[i] + 0.1 * (high - low) * (1 if best[i] < (low + high) / 2 else -1)
        if prior != "none":
            form[f"x{i}"]["prior"] = float(beside if prior == "good" else wrong[i])
    return SearchSpace.from_mapping(form)  # type: ignore[arg-type]  # dict is invariant


def regret(function: str, kind: str, prior: str, seed: int) -> float:
    value, _, least, _, _ = FUNCTIONS[function]
    searcher = build_searcher({"kind": kind}, space_of(function, prior), mode="min", seed=seed)
    found = []
    for i in range(TRIALS):
        trial = TrialId(f"{i:04d}")
        config = searcher.propose(trial)
        found.append(value(list(config.values())))  # type: ignore[arg-type, union-attr]
        searcher.conclude(trial, found[-1])
    return min(found) - least


def main() -> None:
    """Measure, print and judge."""
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    table = {
        function: {
            kind: {
                prior: round(median(regret(function, kind, prior, s) for s in range(SEEDS)), 4)
                for prior in ("good", "none", "wrong")
            }
            for kind in ("random", "tpe")
        }
        for function in FUNCTIONS
    }
    rows = [of_kind["random"] for of_kind in table.values()]  # a searcher that learns may need no prior
    claims = {
        "with random, a good prior is better than none": all(row["good"] < row["none"] for row in rows),
        "with random, a wrong prior costs at most half of the regret again": all(
            row["wrong"] <= 1.5 * row["none"] for row in rows
        ),
    }
    conclude({"trials": TRIALS, "seeds": SEEDS, "median_regret": table}, claims, out)


if __name__ == "__main__":
    main()
