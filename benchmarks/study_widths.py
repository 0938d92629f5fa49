"""The whole CFD study that is shipped, judged synchronously, on 1, 2 and 4 slots: the same to the last bit.

    python benchmarks/study_widths.py [--out benchmarks/results/study_widths.json]

Each run does everything anew, from the simulation to the evaluation on the unseen flow. The claims: the same
survivors, the same best configuration, the same metric and the same evaluation, all bits of them, though the
trials ran at other widths: on 4 slots each waits for its full width (`growth: strict`),
so that 4 replicas are the most.
`tests/integration/test_study_widths.py` shows it on a smaller study.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from claims import conclude

REPOSITORY = Path(__file__).resolve().parents[1]
COMMAND = Path(sys.executable).with_name("parsl-rasda")
SLOTS = (1, 2, 4)
SITE = "provider: {type: LocalProvider}\naccelerator: cpu\ngpus_per_node: %d\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as folder:
        found = {slots: ran(Path(folder), slots) for slots in SLOTS}
    rows = {f"{slots} slots": row for slots, (row, _) in found.items()}
    one = found[1][1]
    claims = {f"the same on {slots} slots as on 1": verdict == one for slots, (_, verdict) in found.items()}
    claims["at 1, 2 and 4 ranks on 4 slots"] = rows["4 slots"]["widths"] == [1, 2, 4]
    what = "workflows/cfd_defiltering with variant: synchronous, max_workers: 4"
    conclude({"what": what, "runs": rows, "verdict": one}, claims, out)


def ran(folder: Path, slots: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run the study; return what it took, and what must not depend on that."""
    site, run = folder / f"{slots}.yaml", folder / f"run-{slots}"
    site.write_text(SITE % slots, encoding="utf-8")
    study = str(REPOSITORY / "workflows" / "cfd_defiltering" / "study.yaml")
    words = [str(COMMAND), "run", study, "--site", str(site), "--dir", str(run), "--json"]
    settings = [
        "variant=synchronous",
        "max_workers=4",
        f"growth={'strict' if slots == max(SLOTS) else 'elastic'}",
    ]
    changes = [word for setting in settings for word in ("--set", f"stages.tune.tune.scheduler.{setting}")]
    began = time.perf_counter()
    done = subprocess.run(
        [*words, *changes],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        encoding="utf-8",
        errors="replace",
    )
    wall_s = round(time.perf_counter() - began, 1)
    document = json.loads(done.stdout)
    best = document["best"]
    row = {"wall_s": wall_s, "gpu_hours": document["gpu_hours"], "widths": widths_of(run)}
    return row, {
        "trials": {t["trial"]: [t["state"], t["epoch"], t["metric"]] for t in document["trial_list"]},
        "best": {key: best[key] for key in ("trial", "epoch", "metric", "config")},
        "evaluation": {
            key: value
            for key, value in document["stages"]["evaluate"]["result"].items()
            if isinstance(value, float)
        },
    }


def widths_of(run: Path) -> list[int]:
    """Return the numbers of ranks that jobs had."""
    orders = (
        json.loads(order.read_text(encoding="utf-8")) for order in run.glob("trials/*/attempt-*/order.json")
    )
    return sorted({order["world_size"] for order in orders})


if __name__ == "__main__":
    main()
