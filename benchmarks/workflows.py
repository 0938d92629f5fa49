"""The shipped studies from start to end, as their users run them: time, and how good the best model is.

    python benchmarks/workflows.py [cfd_defiltering ...] [--out benchmarks/results/workflows.json]

The claims, each on two cores; exit code 1 if one is false:

- every study ends within 5 minutes; `make demo` on a fresh clone (``demo``), installation included, within 8;
- CFD: the best validation error is below 0.35 of doing nothing; AM: below 0.5 of predicting the mean;
  CV: below 0.1 of the digits are taken for others; the autoencoder: better than PCA of its size, also
  on unseen flows;
- `plan --from` each finished study foretells its makespan within 10 %.
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

REPOSITORY = Path(__file__).parents[1]
COMMAND = Path(sys.executable).parent / "parsl-rasda"
STUDY_S, DEMO_S, FORETOLD = 300.0, 480.0, 0.10
LIMITS = {  # of what `evaluate` returns
    "cfd_defiltering": {"val_ratio": 0.35},
    "am_meltpool": {"val_ratio": 0.5},
    "cv_resnet": {"val_error": 0.1},
    "cfd_autoencoder": {"val_ratio": 1.0, "unseen_ratio": 1.0},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=["demo", *LIMITS], metavar="NAME")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    found: dict[str, Any] = {
        "what": "shipped studies, from the command to its end",
    }
    with tempfile.TemporaryDirectory() as folder:
        rows = {
            name: demo(Path(folder)) if name == "demo" else study(name, Path(folder)) for name in given.names
        }
    found["studies"] = rows
    found["broken_claims"] = [claim for name, row in rows.items() for claim in broken(name, row)]
    claims = {name: not broken(name, row) for name, row in rows.items()}
    conclude(found, claims, given.out)


def demo(folder: Path) -> dict[str, Any]:
    """Run `make demo` in a fresh clone."""
    subprocess.run(["git", "clone", "-q", str(REPOSITORY), str(folder / "clone")], check=True)
    begin = time.perf_counter()
    done = subprocess.run(
        ["make", "demo"],
        cwd=folder / "clone",
        capture_output=True,
        text=True,
        check=False,
        encoding="utf-8",
        errors="replace",
    )
    row = {"wall_s": round(time.perf_counter() - begin, 1), "exit_code": done.returncode}
    return row if done.returncode == 0 else {**row, "stderr": done.stderr[-2000:]}


def study(name: str, folder: Path) -> dict[str, Any]:
    run = folder / name
    file = str(REPOSITORY / "workflows" / name / "study.yaml")
    begin = time.perf_counter()
    words = [str(COMMAND), "run", file, "--site", "local", "--dir", str(run), "--json"]
    done = subprocess.run(
        words, cwd=REPOSITORY, capture_output=True, text=True, check=False, encoding="utf-8", errors="replace"
    )
    row: dict[str, Any] = {"wall_s": round(time.perf_counter() - begin, 1), "exit_code": done.returncode}
    if done.returncode:
        return {**row, "stderr": done.stderr[-2000:]}
    document = json.loads(done.stdout)
    numbers = document["stages"]["evaluate"]["result"]
    row |= {
        key: document[key] for key in ("makespan_s", "gpu_busy_fraction", "gpu_hours", "restarts", "trials")
    }
    row |= {key: value for key, value in numbers.items() if isinstance(value, float | int)}
    row["foretold_makespan_s"] = foretold(file, run)
    return row


def foretold(file: str, run: Path) -> float:
    """Return the makespan that `plan` foresees with the times of a finished run [s]."""
    words = [str(COMMAND), "plan", file, "--site", "local", "--from", str(run), "--json"]
    plan = json.loads(
        subprocess.run(
            words,
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=True,
            encoding="utf-8",
            errors="replace",
        ).stdout
    )
    (makespan_s,) = [p["makespan_s"] for p in plan["stages"][0]["policies"] if p["is_declared"]]
    return float(makespan_s)


def broken(name: str, row: dict[str, Any]) -> list[str]:
    """Return what does not hold, in words."""
    if row["exit_code"]:
        return [f"{name} ended with {row['exit_code']}"]
    limits = {"wall_s": DEMO_S if name == "demo" else STUDY_S, **LIMITS.get(name, {})}
    found = [
        f"{name}: {key} is {row[key]}, not below {most}" for key, most in limits.items() if row[key] >= most
    ]
    if "foretold_makespan_s" in row:
        error = abs(row["foretold_makespan_s"] / row["makespan_s"] - 1)
        found += [f"{name}: the makespan was foretold {error:.0%} off"] if error > FORETOLD else []
    return found


if __name__ == "__main__":
    main()
