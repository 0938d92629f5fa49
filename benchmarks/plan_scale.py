"""Wall time of `parsl-rasda plan` at scale, start-up included: three policies rehearsed, nothing run.

    python benchmarks/plan_scale.py [--out benchmarks/results/plan_scale.json]

The claim: 1,024 trials on 1,024 GPUs (eta 2, max_t 16) are planned in less than 5 s, and the time
of one event of the search does not grow with the number of trials: 10,000 are planned in seconds, too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from claims import conclude

SIZES = ((64, 64), (256, 256), (1024, 1024), (2048, 1024), (4096, 1024), (10_000, 64))  # trials, GPUs
GPUS_PER_NODE = 4
REPEATS = 3
LIMIT_S = 5.0
SEED = 0
ESTIMATES = {"epoch_s": 60, "restart_s": 1, "efficiency": 0.9, "spread": 0.2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    out = parser.parse_args().out
    found = measure()
    (asked,) = (row for row in found["rows"] if (row["trials"], row["gpus"]) == (1024, 1024))
    conclude(found, {f"1,024 trials in less than {LIMIT_S} s": asked["wall_s"] < LIMIT_S}, out)


def measure() -> dict[str, object]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for trials, gpus in SIZES:
            rows.append(plan(Path(folder), trials, gpus))
    return {
        "what": "parsl-rasda plan --json, a process from start to end",
        "limit_s": {"trials": 1024, "gpus": 1024, "wall_s": LIMIT_S},
        "seed": SEED,
        "max_t": 16,
        "estimates": ESTIMATES,
        "rows": rows,
    }


def plan(folder: Path, trials: int, gpus: int) -> dict[str, object]:
    """Return the times of planning a study; the least of some repeats, and all of them."""
    study, site = folder / "study.json", folder / "site.json"  # JSON is YAML
    tune = {
        "metric": "val_loss",
        "num_samples": trials,
        "scheduler": {"max_t": 16, "reduction_factor": 2},
        "search_space": {"lr": {"float": [0.001, 0.1]}},
        "training": {"python": "workflows.emulated.train:train"},
        "estimates": ESTIMATES,
    }
    study.write_text(json.dumps({"name": "scale", "seed": SEED, "tune": tune}), encoding="utf-8")
    nodes = gpus // GPUS_PER_NODE
    place = {"provider": {"type": "LocalProvider"}, "gpus_per_node": GPUS_PER_NODE, "nodes": nodes}
    site.write_text(json.dumps(place), encoding="utf-8")
    program = Path(sys.executable).with_name("parsl-rasda")
    wall_s, processor_s, output = [], [], b""
    for _ in range(REPEATS):
        before, begin = os.times(), time.perf_counter()
        words = [program, "plan", study, "--site", "./" + os.path.relpath(site), "--json"]
        output = subprocess.run(words, check=True, capture_output=True).stdout
        wall_s.append(round(time.perf_counter() - begin, 2))
        after = os.times()
        spent = after.children_user + after.children_system - before.children_user - before.children_system
        processor_s.append(round(spent, 2))
    (stage,) = json.loads(output)["stages"]
    return {
        "trials": trials,
        "gpus": gpus,
        "wall_s": min(wall_s),
        "all_wall_s": wall_s,
        "processor_s": min(processor_s),
        "policies": {
            p["name"]: {k: round(p[k], 2) for k in ("makespan_s", "restarts", "speedup")}
            for p in stage["policies"]
        },
    }


if __name__ == "__main__":
    main()
