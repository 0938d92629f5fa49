"""Random kills of ranks, supervisors, clients, launchers and fork servers, above all during starts.

    python benchmarks/kills.py [--kills 200] [--seed 0] [--launcher hydra|openmpi] [--out FILE]

Trials are resumed at random widths until they are done, and compared with an undisturbed one bit by bit.
What is left of a launch is counted before anybody cleans up. Exit status 1 if anything is left or wrong.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "integration")]

from claims import conclude  # noqa: E402
from kills import LAUNCHERS, endure  # noqa: E402 - the tests' own


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--launcher", choices=[*LAUNCHERS], default="hydra")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found = endure(Path(folder), arguments.kills, arguments.seed, arguments.launcher)
    result = {
        "what": f"random SIGKILLs during restarts, {arguments.launcher}, CPU",
        "seed": arguments.seed,
        "seconds": round(time.monotonic() - began),
        **found,
    }
    bad = ("orphans", "left_behind", "wrong_reports", "wrong_trials", "processes_left", "files_left")
    conclude(result, {f"no {name}": not found[name] for name in (*bad, "shared_memory_left")}, arguments.out)


if __name__ == "__main__":
    main()
