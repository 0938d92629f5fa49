"""Orders and launches for the runtime tests."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from parsl_rasda.protocol import EpochReport, JobResult, JobSpec, Training
from parsl_rasda.types import TrialId

HERE = Path(__file__).parent
BESIDE = Path(sys.executable).parent
MPIEXEC = Path(
    shutil.which("mpiexec", path=f"{BESIDE}{os.pathsep}{os.environ.get('PATH', '')}") or BESIDE / "mpiexec"
)
OPENMPI = Path(os.environ.get("RASDA_OPENMPI", HERE.parents[1] / ".venv-openmpi" / "bin"))
FOLDERS = [str(HERE.parents[1]), str(HERE), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(FOLDERS), "OMP_NUM_THREADS": "1"}
PATIENCE_S = 90.0


def missing_of(launcher):
    """Return what a launcher lacks here, in words; Open MPI has a place of its own."""
    return f"prterun in {OPENMPI}" if launcher == "openmpi" and not (OPENMPI / "prterun").exists() else ""


def written_order(directory, **changes):
    """Write an order for a trial of the test function `learn`, and return it."""
    directory.mkdir(parents=True, exist_ok=True)
    world_size = changes.get("world_size", 1)
    order = JobSpec(
        **{
            "study": "test",
            "trial": TrialId("t0"),
            "attempt": 1,
            "config": {"lr": 0.02},
            "directory": str(directory),
            "seed": 7,
            "metric": "val_loss",
            "mode": "min",
            "epoch": 0,
            "until": 3,
            "max_epochs": 9,
            "schedule": ((0, 4),),
            "world_size": world_size,
            "python": "rank_functions:learn",
            "training": Training(batch_size=8, clip_norm=1.0, warmup_initial=1.0, warmup_rescale=0.5),
            "slots": tuple(f"n0:{gpu}" for gpu in range(world_size)),
            **changes,
        }
    )
    order.save(directory / "order.json")
    return order


def rank_command(order):
    return [sys.executable, "-m", "parsl_rasda.runtime", str(Path(order.directory) / "order.json")]


def mpi_command(order):
    return [str(MPIEXEC), "-n", str(order.world_size), *rank_command(order)]


def finished(command, environment=None, patience_s=PATIENCE_S):
    """Run a launch to its end; returns its exit status and stderr."""
    done = subprocess.run(
        command,
        env={**ENVIRONMENT, **(environment or {})},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        timeout=patience_s,
        check=False,
    )
    return done.returncode, done.stderr.decode()


def report_of(order):
    return JobResult.from_json(json.loads((Path(order.directory) / "report.json").read_text()))


def epochs_of(order):
    lines = (Path(order.directory) / "epochs.jsonl").read_text().splitlines()
    return [EpochReport.from_json(json.loads(line)) for line in lines]


def metrics_of(*orders):
    return [dict(report.metrics) for order in orders for report in epochs_of(order)]


def is_alive(pid):
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    return False


class Conversation:
    """The controller's end of a launch."""

    def __init__(self, command):
        self.process = subprocess.Popen(
            command, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()

    def hear(self, op):
        """Return the next message, which must be of this kind."""
        for line in self.process.stdout:
            if b"\x1e" in line:
                message = json.loads(line.rpartition(b"\x1e")[2])
                if message["op"] in {"phase", "step"} - {op}:  # how far it is, at any time
                    continue
                assert message["op"] == op, message
                return message
        raise AssertionError(f"the launch ended without {op!r}")

    def say(self, **message):
        self.process.stdin.write(json.dumps(message).encode() + b"\n")
        self.process.stdin.flush()

    def ended(self):
        return self.process.wait(PATIENCE_S)
