"""Runs in which whatever belongs to them is killed, stopped or damaged at random, by a seed.

    python benchmarks/chaos.py [--runs 200] [--first 0] [--kinds emulated trained ...] [--out FILE]

A controller that ended is resumed until its study is done; then the study must have come to what it comes to
undisturbed, with no epoch lost, no slot leaked, nothing left. Exit status 1 if anything is wrong. A file that
is there already is added to, so that runs may be spread over time.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "integration")]

from cage import KINDS, Cage  # noqa: E402 - the tests' own
from claims import conclude  # noqa: E402
from monkey import endure, short  # noqa: E402 - the tests' own

COUNTED = ("epochs_lost", "slots_leaked", "orphans", "trials_failed", "files_left")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--first", type=int, default=0, help="The first seed.")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    before = arguments.out is not None and arguments.out.exists()
    rows = json.loads(arguments.out.read_text(encoding="utf-8"))["seeds"] if before else []
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder, Cage(Path(folder)) as cage:
        for seed in range(arguments.first, arguments.first + arguments.runs):
            kind = arguments.kinds[seed % len(arguments.kinds)]
            found = endure(cage, kind, seed)
            print(seed, kind, f"{found.seconds} s", found.acts, found.codes, found.wrong, file=sys.stderr)
            rows = [row for row in rows if row["seed"] != seed]
            rows.append(
                {
                    **{"seed": seed, "kind": kind, "acts": [short(act) for act in found.acts]},
                    **{"exit_codes": found.codes, "wrong": [short(wrong) for wrong in found.wrong]},
                    **{name: found.counted[name] for name in (*COUNTED, "done")},
                }
            )
            if arguments.out is not None:  # what is found is kept, also if this ends here
                arguments.out.write_text(json.dumps({"seeds": rows}), encoding="utf-8")
    rows.sort(key=lambda row: row["seed"])
    total = Counter({name: sum(row[name] for row in rows) for name in (*COUNTED, "done")})
    result = {
        "what": "runs with random kills, stops and damages, by seed, resumed until done",
        "runs": len(rows),
        "acts": sum(len(row["acts"]) for row in rows),
        **total,
        "seeds": rows,
    }
    claims = {f"no {name}": not total[name] for name in COUNTED}
    claims["all done"] = total["done"] == len(rows)
    claims["nothing else wrong"] = not any(row["wrong"] for row in rows)
    conclude(result, claims, arguments.out)


if __name__ == "__main__":
    main()
