"""Time of `parsl-rasda plan` at scale, start-up included: three policies rehearsed, nothing run.

    python benchmarks/plan_scale.py [--out benchmarks/results/plan_scale.json]

The claims (eta 2, max_t 16), in seconds of a core, which is what `plan` takes on a machine that does nothing
else: 1,024 trials on 1,024 GPUs in less than 5 s, 16,384 on 16,384 in less than 20 s, 100,000 in less than
120 s and 2 GB. It grows as n log n: an epoch takes no longer at the largest size than at 4,096 trials, but
for that logarithm and what does not fit the processor's caches.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from claims import conclude

SIZES = (  # trials, GPUs
    (64, 64),
    (256, 256),
    (1024, 1024),
    (4096, 1024),
    (4096, 4096),
    (10_000, 64),
    (16_384, 16_384),
    (100_000, 16_384),
)
LIMITS_S = {(1024, 1024): 5.0, (16_384, 16_384): 20.0, (100_000, 16_384): 120.0}
LIMIT_MB = 2000.0
MOST_GROWTH = 1.5  # of the time of an epoch beyond the logarithm, from 4,096 trials to the largest size
GPUS_PER_NODE = 4
REPEATS, LARGE = 3, 20_000  # studies of so many trials are planned once
SEED = 0
ESTIMATES = {"epoch_s": 60, "restart_s": 1, "efficiency": 0.9, "spread": 0.2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    out = parser.parse_args().out
    found = measure()
    conclude(found, claims_of(found["rows"]), out)


def claims_of(measured: Sequence[Mapping[str, Any]]) -> dict[str, bool]:
    """Return the claims, and whether they hold of the rows that were measured."""
    rows = {(row["trials"], row["gpus"]): row for row in measured}
    claims = {
        f"{trials:,} trials on {gpus:,} GPUs in less than {limit_s:g} s of a core": (
            rows[trials, gpus]["processor_s"] < limit_s
        )
        for (trials, gpus), limit_s in LIMITS_S.items()
    }
    claims[f"all in less than {LIMIT_MB:g} MB"] = all(row["peak_mb"] < LIMIT_MB for row in rows.values())
    small, large = rows[4096, 4096], rows[100_000, 16_384]
    allowed = MOST_GROWTH * math.log(large["trials"]) / math.log(small["trials"])
    claims[f"an epoch takes at most {allowed:.1f} times as long with 100,000 trials as with 4,096"] = (
        large["us_per_epoch"] <= allowed * small["us_per_epoch"]
    )
    return claims


def measure() -> dict[str, Any]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for trials, gpus in SIZES:
            rows.append(plan(Path(folder), trials, gpus))
    return {
        "what": "parsl-rasda plan --json, a process from start to end; claims are of processor_s",
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
    words = [program, "plan", study, "--site", "./" + os.path.relpath(site), "--json"]
    runs = [timed(words, folder / "plan.json") for _ in range(REPEATS if trials < LARGE else 1)]
    (stage,) = json.loads((folder / "plan.json").read_bytes())["stages"]
    processor_s = min(run["processor_s"] for run in runs)
    return {
        "trials": trials,
        "gpus": gpus,
        "wall_s": min(run["wall_s"] for run in runs),
        "all_wall_s": [run["wall_s"] for run in runs],
        "processor_s": processor_s,
        "us_per_epoch": round(1e6 * processor_s / sum(p["epochs"] for p in stage["policies"]), 1),
        "peak_mb": max(run["peak_mb"] for run in runs),
        "policies": {
            p["name"]: {k: round(p[k], 2) for k in ("makespan_s", "restarts", "speedup", "epochs")}
            for p in stage["policies"]
        },
    }


def timed(words: list[str | Path], output: Path) -> dict[str, float]:
    """Run a command, its output to a file; return its times and its largest size."""
    begin = time.perf_counter()
    with output.open("wb") as file, subprocess.Popen(words, stdout=file) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{shlex.join(map(str, words))} ended with {process.returncode}")
    return {
        "wall_s": round(time.perf_counter() - begin, 2),
        "processor_s": round(used.ru_utime + used.ru_stime, 2),
        "peak_mb": round(used.ru_maxrss / 1024, 1),
    }


if __name__ == "__main__":
    main()
