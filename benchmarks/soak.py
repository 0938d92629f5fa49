"""A long study: does the controller grow, and does what it writes?

    python benchmarks/soak.py [--trials 10000] [--slots 256] [--epoch-s 8] [--out FILE]

Emulated trials on logical slots in nodes of four through real Parsl, by the command line. Memory, descriptors
and threads of the controller are read every second and fitted by lines over the trials that have ended,
without the first fifth of the time. Exit status 1 if one of them grows by more than what a trial leaves
behind, if logs, journal or files grow faster than the trials, or if anything is left in /tmp.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import linear_regression
from typing import Any

import psutil
from claims import conclude

ROOT = Path(__file__).resolve().parents[1]
COMMAND = Path(sys.executable).parent / "parsl-rasda"
EVERY_S = 1.0
NODE = 4
SEED = 11
# What a trial may cost for ever: memory for its history and configuration, and what is kept of it on disk.
MOST = {
    "rss_kb_per_trial": 12.0,
    "descriptors_per_1000_trials": 1.0,
    "threads_per_1000_trials": 1.0,
    "journal_kb_per_trial": 10.0,
    "log_kb_per_trial": 1.0,
    "files_per_trial": 30.0,
}


@dataclass(frozen=True)
class Sample:
    """The controller at a moment."""

    trials: int
    rss: int
    descriptors: int
    threads: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--slots", type=int, default=256)
    parser.add_argument("--epoch-s", type=float, default=8.0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        result = soak(Path(folder), arguments.trials, arguments.slots, arguments.epoch_s)
    claims = {f"{name} at most {most:g}": result[name] <= most for name, most in MOST.items()}
    claims["every trial ended well"] = result["state"] == "done" and not result["failed"] + result["losses"]
    claims["nothing is left in /tmp"] = result["left_in_tmp"] == []
    conclude(result, claims, arguments.out)


def soak(folder: Path, trials: int, slots: int, epoch_s: float) -> dict[str, Any]:
    """Run the study; return what it cost."""
    temporary, run = folder / "tmp", folder / "run"
    temporary.mkdir()
    (folder / "study.yaml").write_text(json.dumps(study_of(trials, epoch_s)), encoding="utf-8")
    (folder / "site.yaml").write_text(json.dumps(site_of(slots)), encoding="utf-8")
    began = time.monotonic()
    with (folder / "out.json").open("w") as out, (folder / "err.txt").open("w") as err:
        controller = subprocess.Popen(
            [str(COMMAND), "run", "study.yaml", "--site", "site.yaml", "--dir", "run", "--json"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)},
            stdout=out,
            stderr=err,
        )
        samples = watched(controller, run / "journal.jsonl")
    seconds = time.monotonic() - began
    summary = json.loads((folder / "out.json").read_text(encoding="utf-8"))
    logs = [*run.rglob("runners/**/*.log"), folder / "err.txt"]
    return {
        "what": "a long emulated study on logical slots, real Parsl: how controller and files grow",
        **{
            "trials": trials,
            "slots": slots,
            "seed": SEED,
            "seconds": round(seconds),
            "state": summary["state"],
        },
        "failed": summary["trials"]["failed"],
        "losses": sum(t["losses"] for t in summary["trial_list"]),
        **slopes(samples),
        "journal_kb_per_trial": round((run / "journal.jsonl").stat().st_size / 1024 / trials, 2),
        "log_kb_per_trial": round(sum(log.stat().st_size for log in logs) / 1024 / trials, 2),
        "files_per_trial": round(sum(1 for _ in run.rglob("*")) / trials, 1),
        "left_in_tmp": sorted(p.name for p in temporary.iterdir()),
    }


def study_of(trials: int, epoch_s: float) -> dict[str, Any]:
    return {
        "name": "soak",
        "seed": SEED,
        "with": {"epoch_s": epoch_s, "efficiency": 0.9, "spread": 0.3, "seed": SEED},
        "tune": {
            "metric": "val_loss",
            "num_samples": trials,
            "scheduler": {"max_t": 4, "max_workers": 4},
            "search_space": {"lr": {"float": [1e-4, 1e-1], "log": True}},
            "training": {"python": "workflows.emulated.train:train"},
            "estimates": {"epoch_s": epoch_s, "restart_s": 1.0},
        },
    }


def site_of(slots: int) -> dict[str, Any]:
    return {
        "provider": {"type": "LocalProvider"},
        "accelerator": "none",
        "mpi_launcher": "process",
        "nodes": slots // NODE,
        "gpus_per_node": NODE,
        "heartbeat_threshold": 120,
    }


def watched(controller: subprocess.Popen[bytes], journal: Path) -> list[Sample]:
    """Return what the controller is like, until it ends."""
    samples, trials, read = [], 0, 0
    process = psutil.Process(controller.pid)
    while controller.poll() is None:
        if journal.exists():
            with journal.open("rb") as file:
                file.seek(read)
                fresh = file.read()
            trials, read = trials + fresh.count(b'"TrialFinished"'), read + len(fresh)
        try:
            with process.oneshot():
                rss, threads = process.memory_info().rss, process.num_threads()
            samples.append(Sample(trials, rss, process.num_fds(), threads))
        except psutil.Error:
            break
        try:
            controller.wait(EVERY_S)
        except subprocess.TimeoutExpired:
            continue
    controller.wait()
    return samples


def slopes(samples: list[Sample]) -> dict[str, Any]:
    """Return how memory, descriptors and threads grow with the trials, and where they end."""
    late = [s for s in samples[len(samples) // 5 :] if s.trials]
    trials = [s.trials for s in late]
    grown = {
        "rss_kb_per_trial": [s.rss / 1024 for s in late],
        "descriptors_per_1000_trials": [1000.0 * s.descriptors for s in late],
        "threads_per_1000_trials": [1000.0 * s.threads for s in late],
    }
    found = {name: round(linear_regression(trials, values).slope, 2) for name, values in grown.items()}
    rows = samples[:: max(1, len(samples) // 20)]
    curve = [[s.trials, s.rss >> 20, s.descriptors, s.threads] for s in rows]
    return {**found, "trials_rss_mb_descriptors_threads": curve}


if __name__ == "__main__":
    main()
