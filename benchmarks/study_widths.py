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
from collections.abc import Sequence
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
        found = {slots: study(Path(folder), slots) for slots in SLOTS}
    rows = {f"{slots} slots": row for slots, (row, _) in found.items()}
    one = found[1][1]
    claims = {f"the same on {slots} slots as on 1": verdict == one for slots, (_, verdict) in found.items()}
    claims["at 1, 2 and 4 ranks on 4 slots"] = rows["4 slots"]["widths"] == [1, 2, 4]
    what = "workflows/cfd_defiltering with variant: synchronous, max_workers: 4"
    conclude({"what": what, "runs": rows, "verdict": one}, claims, out)


def study(folder: Path, slots: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run the CFD study; return what it took, and what must not depend on that."""
    growth = f"growth={'strict' if slots == max(SLOTS) else 'elastic'}"
    keys = ["variant=synchronous", "max_workers=4", growth]
    row, document, _ = ran(folder, "cfd_defiltering", slots, keys, name=str(slots))
    return row, verdict_of(document)


def ran(
    folder: Path,
    study: str,
    slots: int,
    scheduler: Sequence[str],
    *,
    name: str,
    trials: int | None = None,
) -> tuple[dict[str, Any], dict[str, Any], Path]:
    """Run a shipped study on some slots.

    Args:
        folder: Where.
        study: Which.
        slots: Of the site.
        scheduler: Keys of the scheduler that differ, as ``key=value``.
        name: Of the run.
        trials: Of the search, if not as many as are shipped.

    Returns:
        What it took, the document of the run, and its directory.
    """
    site, run = folder / f"{slots}.yaml", folder / f"run-{name}"
    site.write_text(SITE % slots, encoding="utf-8")
    file = str(REPOSITORY / "workflows" / study / "study.yaml")
    words = [str(COMMAND), "run", file, "--site", str(site), "--dir", str(run), "--json"]
    settings = [f"scheduler.{setting}" for setting in scheduler]
    settings += [] if trials is None else [f"num_samples={trials}"]
    changes = [word for setting in settings for word in ("--set", f"stages.tune.tune.{setting}")]
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
    row = {"wall_s": wall_s, "gpu_hours": document["gpu_hours"], "widths": widths_of(run)}
    return row, document, run


def verdict_of(document: dict[str, Any]) -> dict[str, Any]:
    """Return what must not depend on the slots."""
    best = document["best"]
    return {
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
