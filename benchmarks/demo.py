"""The study of `make demo` on two slots, as it is shipped and really under ASHA: the same best, later.

    python benchmarks/demo.py [--out benchmarks/results/demo.json] [--picture docs/demo.svg]

Each run does everything anew, from simulation to evaluation. The claims:

- both have the same winner: trial, epoch, metric, configuration and evaluation, to the last bit;
- ASHA's search takes at least 1.25 times as long;
- what the report of the demo says of ASHA, rehearsed with the demo's own times, is within 15 % of that;
- the demo takes two minutes and a half at most, and leaves at most 0.08 of the error on unseen flows.

``--picture`` keeps the GPU charts that `parsl-rasda report` draws of the demo's run, which begin the README.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from claims import conclude
from study_widths import COMMAND, ran

STUDY, SLOTS = "cfd_defiltering", 2
ASHA = ("kind=asha", "growth=none")
FASTER, FORETOLD, WALL_S, UNSEEN = 1.25, 0.15, 150.0, 0.08


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--picture", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        row, rasda, run = ran(Path(folder), STUDY, SLOTS, (), name="rasda")
        if given.picture:
            subprocess.run([str(COMMAND), "report", str(run)], check=True, stdout=subprocess.DEVNULL)
            shutil.copyfile(run / "asha.svg", given.picture)
        asha_row, asha, _ = ran(Path(folder), STUDY, SLOTS, ASHA, name="asha")
    speedup = asha["makespan_s"] / rasda["makespan_s"]
    error = rasda["asha"]["makespan_s"] / asha["makespan_s"] - 1
    runs = {"RASDA": figures(row, rasda), "ASHA": figures(asha_row, asha)}
    claims = {
        "the same winner, to the last bit": winner(rasda) == winner(asha),
        "the report says the same best": rasda["asha"]["same_best"],
        f"at least {FASTER} x as fast as ASHA": speedup >= FASTER,
        f"ASHA rehearsed within {FORETOLD:.0%}": abs(error) <= FORETOLD,
        f"within {WALL_S:.0f} s": row["wall_s"] <= WALL_S,
        f"at most {UNSEEN} of the error on unseen flows": unseen(rasda) <= UNSEEN,
    }
    found = {
        "what": f"workflows/{STUDY} on {SLOTS} slots",
        "speedup": round(speedup, 3),
        "rehearsed_asha": rasda["asha"],
        "rehearsal_error": round(error, 3),
        "runs": runs,
    }
    conclude(found, claims, given.out)


def winner(document: dict[str, Any]) -> str:
    """Return all that must not depend on who scheduled."""
    best = {key: document["best"][key] for key in ("trial", "epoch", "metric", "config")}
    numbers = document["stages"]["evaluate"]["result"].items()
    return json.dumps([best, {key: value for key, value in numbers if isinstance(value, float)}])


def unseen(document: dict[str, Any]) -> float:
    return float(document["stages"]["evaluate"]["result"]["unseen_ratio"])


def figures(row: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    kept = ("makespan_s", "gpu_busy_fraction", "epochs", "restarts", "measured")
    best = {key: document["best"][key] for key in ("trial", "epoch", "metric", "config")}
    return {**row, **{key: document[key] for key in kept}, "best": best, "unseen_ratio": unseen(document)}


if __name__ == "__main__":
    main()
