"""One rung's decisions by our rules and by those of Ray Tune, Optuna and Syne Tune: how alike, and how fast.

    make peers                                             # once: the peers' environment
    python benchmarks/peers/decisions.py [--out benchmarks/results/peers_decisions.json]

Every rule gets the same results in the same order, at one rung that one trial in ``eta`` passes. Ours is
`variant: stopping`. Rules differ by intent where a rung has few results: so the agreement is counted for all
results, and without the first ``4 * eta``. Times are medians of a report when the rung holds so many results;
the peers get them by their public reports as well, and stop where they would take longer than a minute.

The claims: after the first results we agree with Ray's rule, the reference's, in 98 of 100, and decide in
less time than any of them when the rung holds the most that each was filled with.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PEERS = ("ray", "optuna", "syne_tune")
ETAS, SEEDS = (2, 3, 4), range(5)
RESULTS = 1_000
AGREES = 0.98
FILL_S = 60.0


def results(seed: int, count: int) -> list[float]:
    """Return losses in order of arrival."""
    draw = random.Random(seed)
    return [draw.random() for _ in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=Path, default=HERE / ".venv/bin/python")
    parser.add_argument("--of", choices=RULES, help="print what one rule does: how this program calls itself")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.of:
        print(json.dumps(answers(RULES[given.of])))
        return
    sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]
    from claims import conclude

    if not given.peers.exists():
        parser.error(f"{given.peers} is missing: run `make peers`")
    ours = answers(RULES["ours"])
    rows = {"ours": {"median_us": ours["median_us"], "held": ours["held"]}}
    for name in PEERS:
        words = [str(given.peers), __file__, "--of", name]
        found = json.loads(subprocess.run(words, stdout=subprocess.PIPE, check=True).stdout.splitlines()[-1])
        rows[name] = {
            "version": found["version"],
            "agrees": {case: agreement(ours["kept"][case], kept) for case, kept in found["kept"].items()},
            "median_us": found["median_us"],
            "held": found["held"],
        }
    claims = {
        f"agrees with Ray in {AGREES:.0%}": all(a["later"] >= AGREES for a in rows["ray"]["agrees"].values()),
        "faster than each": all(ours["median_us"] < rows[name]["median_us"] for name in PEERS),
    }
    conclude(
        {"what": "decisions at one rung, the same results in the same order", "rules": rows},
        claims,
        given.out,
    )


def agreement(ours: Sequence[bool], theirs: Sequence[bool]) -> dict[str, float]:
    """Return the share of equal decisions, of all and of the later ones."""
    same = [a == b for a, b in zip(ours, theirs, strict=True)]
    return {
        "all": round(statistics.fmean(same), 4),
        "later": round(statistics.fmean(same[4 * max(ETAS) :]), 4),
    }


# ------------------------------------------------------------------------------------------- one rule


def answers(build: Callable[[int], tuple[str, Callable[[float], bool]]]) -> dict[str, Any]:
    """Return who went on, and how long a decision takes at a full rung."""
    kept, version = {}, ""
    for eta in ETAS:
        for seed in SEEDS:
            version, decide = build(eta)
            kept[f"eta {eta}, seed {seed}"] = [decide(loss) for loss in results(seed, RESULTS)]
    _, decide = build(2)
    begin, times = time.perf_counter(), []
    for loss in results(99, 10 * RESULTS):
        before = time.perf_counter()
        decide(loss)
        times.append(time.perf_counter() - before)
        if time.perf_counter() - begin > FILL_S:
            break
    median_us = round(1e6 * statistics.median(times[-300:]), 2)
    return {"version": version, "kept": kept, "median_us": median_us, "held": len(times)}


def ours(eta: int) -> tuple[str, Callable[[float], bool]]:
    sys.path.insert(0, str(HERE.parents[1]))
    from parsl_rasda.scheduling import build_scheduler

    scheduler = build_scheduler({"reduction_factor": eta, "max_t": eta**4, "mode": "min"})
    count = iter(range(10**9))
    return "", lambda loss: scheduler.report(f"t{next(count)}", 1, loss).action == "continue"


def ray(eta: int) -> tuple[str, Callable[[float], bool]]:
    import ray as library
    from ray.tune.schedulers import ASHAScheduler

    rule = ASHAScheduler(metric="loss", mode="min", max_t=eta**4, grace_period=1, reduction_factor=eta)
    count = iter(range(10**9))

    class Trial:
        def __init__(self) -> None:
            self.trial_id = str(next(count))

    def decide(loss: float) -> bool:
        trial = Trial()
        rule.on_trial_add(None, trial)
        return rule.on_trial_result(None, trial, {"training_iteration": 1, "loss": loss}) == "CONTINUE"

    return library.__version__, decide


def optuna(eta: int) -> tuple[str, Callable[[float], bool]]:
    import optuna as library

    library.logging.set_verbosity(library.logging.ERROR)
    pruner = library.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=eta)
    study = library.create_study(direction="minimize", pruner=pruner)

    def decide(loss: float) -> bool:
        trial = study.ask()
        trial.report(loss, 1)
        return not trial.should_prune()

    return library.__version__, decide


def syne_tune(eta: int) -> tuple[str, Callable[[float], bool]]:
    import datetime
    from importlib.metadata import version

    from syne_tune.backend.trial_status import Trial
    from syne_tune.config_space import uniform
    from syne_tune.optimizer.schedulers.asha import AsynchronousSuccessiveHalving

    rule = AsynchronousSuccessiveHalving(
        {"x": uniform(0, 1)},
        metric="loss",
        do_minimize=True,
        time_attr="epoch",
        max_t=eta**4,
        grace_period=1,
        reduction_factor=eta,
        random_seed=0,
    )
    count, day = iter(range(10**9)), datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)

    def decide(loss: float) -> bool:
        trial = Trial(trial_id=next(count), config={"x": 0.5}, creation_time=day)
        rule.on_trial_add(trial)
        return rule.on_trial_result(trial, {"epoch": 1, "loss": loss}) == "CONTINUE"

    return version("syne-tune"), decide


RULES = {"ours": ours, "ray": ray, "optuna": optuna, "syne_tune": syne_tune}


if __name__ == "__main__":
    main()
