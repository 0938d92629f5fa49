"""The first hour on a GPU, in eight minutes: case after case, each in a process of its own.

    python benchmarks/gpu.py [--out gpu.json] [--within 480] [--only NAME ...]
    python benchmarks/gpu.py --accelerator cpu --small      # rehearses all of it in half a minute

Each case prints a line and is stored in ``--out`` as it ends. One that fails, or takes longer than it may, is
told as such, and the next one begins. What remains when the time is up is not begun. The exit status is 1 if
a claim of a case is false or a case failed, after all have been tried.

Several ranks share the one GPU and speak gloo, for NCCL has one rank on each: what widths show is
correctness, and their times are of this arrangement only. In `exchange` the other ranks are made up, and a
swap with one is a copy on the device: what is seen is the work of this rank, without a network.

Needs Linux, Python 3.11 or newer, NumPy, h5py, a torch for the GPU, and ``mpiexec`` on the PATH for several
ranks. This source tree need not be installed, and no network is used. Ranks keep PYTHONPATH. Where there is a
torch already, these are the wheels to carry, under 40 MB in all: mpich (for mpiexec), msgspec, psutil,
google-crc32c, PyYAML, pydantic, pydantic-core, annotated-types, typing-inspection, typing-extensions
(``pip install --no-index --no-deps --find-links wheels --target DIR``; DIR on PYTHONPATH, DIR/bin on PATH).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HERE = Path(__file__).parent
PATHS = (ROOT, HERE, ROOT / "tests" / "integration")
CASES = {  # in this order; how long each may take [s]
    "restarts": 90,
    "bits": 200,
    "steps": 90,
    "exchange": 60,
    "kill": 60,
    "memory": 60,
    "checkpoint": 90,
    "input": 60,
    "compile": 90,
}
RESULT = "result: "  # begins the line in which a case tells what it has found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--accelerator", default="cuda", choices=("cuda", "rocm", "xpu", "cpu"))
    parser.add_argument("--small", action="store_true", help="sizes for a rehearsal")
    parser.add_argument("--within", type=float, default=480.0, help="seconds for all cases")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    end = time.monotonic() + arguments.within
    found: dict[str, dict[str, Any]] = {}
    for name, limit_s in CASES.items():
        if name in arguments.only:
            found[name] = measured(name, arguments, min(limit_s, end - time.monotonic()))
            print(f"{name:12}{summary(found[name])}", flush=True)
            store(found, arguments)
    sys.exit(not all(case["state"] == "done" and all(case["claims"].values()) for case in found.values()))


def measured(name: str, arguments: argparse.Namespace, patience_s: float) -> dict[str, Any]:
    """Run one case; returns its figures and claims, or why there are none."""
    if patience_s < 1:
        return {"state": "not begun", "why": "the time was up"}
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"gpu-{name}-") as folder:
        command = [sys.executable, str(HERE / "gpu_cases.py"), name, arguments.accelerator, folder]
        process = subprocess.Popen(
            [*command, *(["small"] if arguments.small else [])],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, PATHS), *_python_path()])},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # so that a case that is late ends with all its ranks
        )
        try:
            text, _ = process.communicate(timeout=patience_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            text, _ = process.communicate()
            return {"state": "late", "why": f"not done after {patience_s:.0f} s", "log": text[-2000:]}
    took = round(time.monotonic() - began, 1)
    results = [line.removeprefix(RESULT) for line in text.splitlines() if line.startswith(RESULT)]
    if process.returncode or not results:
        return {"state": "failed", "why": f"exit {process.returncode}", "took_s": took, "log": text[-2000:]}
    return {"state": "done", "took_s": took, **json.loads(results[-1])}


def _python_path() -> list[str]:
    return [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]


def summary(case: Mapping[str, Any]) -> str:
    """Return one line on a case."""
    if case["state"] != "done":
        last = str(case.get("log", "")).strip().rpartition("\n")[2][:120]
        return f"{case['state']}: {case['why']} {last}"
    false = [claim for claim, holds in case["claims"].items() if not holds]
    words = f"  FALSE: {', '.join(false)}" if false else ""
    return f"{case['took_s']:6.1f} s  {json.dumps(case['figures'])}{words}"


def store(found: Mapping[str, Any], arguments: argparse.Namespace) -> None:
    """Write what there is so far, whole or not at all."""
    if arguments.out:
        result = {"accelerator": arguments.accelerator, "small": arguments.small, "cases": found}
        part = arguments.out.with_name(arguments.out.name + ".part")
        part.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        part.replace(arguments.out)


if __name__ == "__main__":
    main()
