"""What the controller costs per job event, from 16 to 1,024 logical slots, through real Parsl on one machine.

    python benchmarks/slots.py [--slots 16 64 256 1024] [--out benchmarks/results/slots.json]

Nodes of four slots, a process for each trial, emulated training; a trial starts on one node. The same 256
trials at every size, and epochs that get longer with the slots: as many events in about the same time, so
that what the controller does in the background weighs the same. Measured in the controller's process between
the first pilot's start and the study's end: its processor time, with Parsl's threads in it, over the number
of events; and what a fresh machine alone takes for the same events.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from claims import conclude

from parsl_rasda.orchestration.admission import admit
from parsl_rasda.orchestration.assembly import build_machine
from parsl_rasda.orchestration.events import Event, FinishStudy, Instruction, PilotStarted, StartJob
from parsl_rasda.orchestration.journal import read
from parsl_rasda.orchestration.progress import NoProgress
from parsl_rasda.study import StudySpec
from parsl_rasda.study.parsl_site import ParslSiteSpec
from parsl_rasda.workflow import run_study

SLOTS = (16, 64, 256, 1024)
SEED = 11
WIDTH = 4  # slots of a node, and of a trial at its start
MAX_T = 4
TRIALS = 256
EPOCH_S_PER_JOB = 0.15  # so that two cores can start as many processes as end
EFFICIENCY = 0.9
ROOT = Path(__file__).parents[1]
LIMIT_S = 1500


class Meter(NoProgress):
    """Reads the processor's clock where it matters."""

    def __init__(self) -> None:
        self.events = self.jobs = 0
        self.began: tuple[float, float] | None = None
        self.ended = (0.0, 0.0)

    def search(self, stage: str, machine: Any, usage: Any, *, alone: bool) -> Meter:
        return self

    def add(self, event: Event, instructions: tuple[Instruction, ...]) -> None:
        if isinstance(event, PilotStarted) and self.began is None:
            self.began = time.process_time(), time.monotonic()
        if self.began is not None:
            self.events += 1
            self.jobs += sum(isinstance(i, StartJob) for i in instructions)
        if any(isinstance(i, FinishStudy) for i in instructions):
            self.ended = time.process_time(), time.monotonic()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slots", type=int, nargs="+", default=SLOTS)
    parser.add_argument("--one", type=int, help="Measure one number of slots in this process.")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one)))
        return
    rows = [in_a_process_of_its_own(slots) for slots in arguments.slots]
    conclude(document(rows), claims_of(rows), arguments.out)


def claims_of(rows: list[dict[str, Any]]) -> dict[str, bool]:
    """Return whether every trial ended well and the cost per event grew at most logarithmically."""
    first, last = rows[0], rows[-1]
    allowed = math.log2(last["slots"]) / math.log2(first["slots"])
    costs = ("controller_ms_per_event", "machine_us_per_event")
    grown = {f"{cost} grows at most as log n": last[cost] <= allowed * first[cost] for cost in costs}
    return {"every trial ended well": all(row["failed"] == row["losses"] == 0 for row in rows), **grown}


def in_a_process_of_its_own(slots: int) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, __file__, "--one", str(slots)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        timeout=LIMIT_S,
        check=True,
        encoding="utf-8",
        errors="replace",
    )
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(row, file=sys.stderr)
    return row


def measure(slots: int) -> dict[str, Any]:
    """Run a study that fills every slot; return what it cost."""
    single_s = EPOCH_S_PER_JOB * (slots // WIDTH) * (2 * EFFICIENCY) ** math.log2(WIDTH)
    study = StudySpec.model_validate(
        {
            "name": "slots",
            "seed": SEED,
            "with": {"epoch_s": single_s, "efficiency": EFFICIENCY, "spread": 0.3, "seed": SEED},
            "tune": {
                "metric": "val_loss",
                "num_samples": TRIALS,
                "scheduler": {"max_t": MAX_T, "num_workers": WIDTH, "max_workers": min(64, slots)},
                "search_space": {"lr": {"float": [1e-4, 1e-1], "log": True}},
                "training": {"python": "workflows.emulated.train:train"},
                "estimates": {"epoch_s": single_s / WIDTH, "restart_s": 1.0},
            },
        }
    )
    site = ParslSiteSpec.model_validate(
        {
            "name": "logical",
            "provider": {"type": "LocalProvider"},
            "accelerator": "none",
            "mpi_launcher": "process",
            "nodes": slots // WIDTH,
            "gpus_per_node": WIDTH,
            "heartbeat_threshold": 120,
        }
    )
    meter = Meter()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        result = run_study(admit(study, (site,), {}), run, search_path=(ROOT,), progress=meter)
        machine_s, journal_bytes = replayed(study, run)
    assert meter.began is not None
    cpu_s = meter.ended[0] - meter.began[0]
    summary = result.summary
    return {
        "slots": slots,
        "trials": TRIALS,
        "state": result.state.value,
        "failed": summary["trials"]["failed"],
        "losses": sum(t["losses"] for t in summary["trial_list"]),
        "events": meter.events,
        "jobs": meter.jobs,
        "wall_s": round(meter.ended[1] - meter.began[1], 1),
        "controller_cpu_s": round(cpu_s, 2),
        "controller_ms_per_event": round(1e3 * cpu_s / meter.events, 3),
        "controller_ms_per_job": round(1e3 * cpu_s / meter.jobs, 2),
        "machine_us_per_event": round(1e6 * machine_s / meter.events, 1),
        "journal_bytes_per_event": round(journal_bytes / meter.events),
    }


def replayed(study: StudySpec, run: Path) -> tuple[float, int]:
    """Return what a fresh machine takes for the events of a run [s], and the size of its journal."""
    journal = run / "journal.jsonl"
    events = [record.event for record in read(journal)]
    machine = build_machine(next(iter(study.tune_stages.values())).tune)
    began = time.process_time()
    for event in events:
        machine.handle(event)
    return time.process_time() - began, journal.stat().st_size


def document(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures with what they were measured on, and how they grow."""
    first, last = rows[0], rows[-1]
    logarithmic = math.log2(last["slots"]) / math.log2(first["slots"])
    return {
        "what": "controller per job event, real Parsl, logical slots in nodes of four, emulated training",
        "seed": SEED,
        "parsl": version("parsl"),
        "rows": rows,
        "growth": {
            "slots": last["slots"] / first["slots"],
            "logarithmic_would_be": round(logarithmic, 2),
            "controller_per_event": round(
                last["controller_ms_per_event"] / first["controller_ms_per_event"], 2
            ),
            "machine_per_event": round(last["machine_us_per_event"] / first["machine_us_per_event"], 2),
        },
    }


if __name__ == "__main__":
    main()
