"""How long a local pilot takes to join, its first trial to its first step, and a search to go on.

    python benchmarks/starts.py [--repeats 5] [--out benchmarks/results/starts.json]

Real Parsl, mpiexec and gloo ranks on this machine; each try has a controller and fork servers of its own.
``joined_s``: from the request for a pilot to its joining. ``first_step_s``: from the request to the first
step of a trial on two ranks, which starts when the pilot has joined. ``resumed_s``: from the command
`parsl-rasda resume` to the first step of a trial, in a search that Ctrl-C has ended a moment before.
``libraries_s``: a process that imports torch and makes one step of its SGD, which itself imports
`torch._dynamo`; the ranks of a resumed search, whose servers have ended, cannot step sooner.

The claims, medians of a quiet machine: a pilot joins within 1 s, a search goes on within 1 s of libraries.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve()
RANKS = 2
JOINED_S, BEYOND_LIBRARIES_S = 1.0, 1.0
PATIENCE_S = 120.0
LIBRARIES = """
import torch
model = torch.nn.Linear(8, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
model(torch.randn(4, 8)).mean().backward()
optimizer.step()
"""
SITE = {
    "name": "here",
    "provider": {"type": "LocalProvider"},
    "accelerator": "cpu",
    "gpus_per_node": RANKS,
}


# ------------------------------------------------------------------------------------------ on the ranks


def train(trial):
    """A small network whose epochs last; notes when its first step is done."""
    import torch

    model, _ = trial.prepare(torch.nn.Linear(8, 1), torch.optim.SGD, lr=0.01)
    data = torch.randn(64, 8), torch.randn(64, 1)
    for _ in trial.epochs():
        for index, (x, y) in enumerate(trial.batches(data)):
            trial.step(((model(x) - y) ** 2).mean())
            if index == 0 and trial.is_main and not (note := trial.directory / "first-step").exists():
                note.write_text(str(time.time()), encoding="utf-8")
        time.sleep(0.2)
        trial.report(loss=1.0)


# -------------------------------------------------------------------------------------- on the controller


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--once", type=Path, metavar="FOLDER", help="one pilot; print its times")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.once:
        print(json.dumps(pilot(arguments.once)))
        return
    from claims import conclude

    pilots = [in_a_process() for _ in range(arguments.repeats)]
    tries = {name: [found[name] for found in pilots] for name in ("joined_s", "first_step_s")}
    tries |= {"resumed_s": [], "libraries_s": []}
    for _ in range(arguments.repeats):
        tries["resumed_s"].append(resumed())
        tries["libraries_s"].append(libraries())
    medians = {name: round(statistics.median(times), 2) for name, times in tries.items()}
    claims = {
        f"a local pilot joins within {JOINED_S:g} s": medians["joined_s"] <= JOINED_S,
        f"a search goes on within {BEYOND_LIBRARIES_S:g} s of its libraries": (
            medians["resumed_s"] <= medians["libraries_s"] + BEYOND_LIBRARIES_S
        ),
    }
    found = {"what": "starts on one machine, seconds", "medians": medians, "all": tries}
    conclude(found, claims, arguments.out)


def environment(folder: Path) -> dict[str, str]:
    """Return one with fork servers of its own, which end soon."""
    servers = folder / "servers"
    own = {"PARSL_RASDA_FORKSERVERS": str(servers), "PARSL_RASDA_FORKSERVER_IDLE_S": "5"}
    return {**os.environ, **own, "PYTHONPATH": str(HERE.parents[1])}


def in_a_process() -> dict[str, float]:
    """Return the times of one pilot, in a controller that has imported nothing of Parsl."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        words = [sys.executable, HERE, "--once", name]
        done = subprocess.run(words, check=True, stdout=subprocess.PIPE, env=environment(Path(name)))
    return json.loads(done.stdout.splitlines()[-1])


def pilot(folder: Path) -> dict[str, float]:
    """Ask for a pilot, and for a trial once it has joined."""
    from parsl_rasda.backends.registry import build_backend
    from parsl_rasda.orchestration.backend import BackendContext
    from parsl_rasda.orchestration.events import EpochReported, PilotStarted, RequestPilot
    from parsl_rasda.study.parsl_site import ParslSiteSpec
    from parsl_rasda.testing.backends import EventLog
    from parsl_rasda.types import PilotId, SiteName

    context = BackendContext(folder, python_path=(HERE.parents[1],), forks_ranks=True)
    runner = build_backend(ParslSiteSpec.model_validate(SITE), context)
    log = EventLog(PATIENCE_S)
    asked = time.time()
    runner.open(log.post)
    try:
        runner.request_pilot(RequestPilot(PilotId("here-0"), SiteName("here")))
        started = log.next(PilotStarted)
        joined = time.time()
        order, placement = first_job(folder, started)
        runner.start_job(order, placement)
        log.next(EpochReported, order.job)
        first_step = float((Path(order.directory) / "scratch" / "first-step").read_text(encoding="utf-8"))
    finally:
        runner.close()
    return {"joined_s": round(joined - asked, 2), "first_step_s": round(first_step - asked, 2)}


def first_job(folder: Path, pilot):
    from parsl_rasda.protocol import JobSpec, Training
    from parsl_rasda.types import Placement, TrialId

    placement = Placement(pilot.site, pilot.pilot, pilot.nodes[:1])
    order = JobSpec(
        study="starts",
        trial=TrialId("t0"),
        attempt=1,
        config={},
        directory=str(folder / "attempt"),
        seed=1,
        metric="loss",
        mode="min",
        epoch=0,
        until=1,
        max_epochs=1,
        schedule=((0, RANKS),),
        world_size=RANKS,
        python="benchmarks.starts:train",
        training=Training(batch_size=8),
        slots=placement.slots,
        interactive=True,
    )
    return order, placement


def resumed() -> float:
    """Return how long a search takes to go on that Ctrl-C has ended."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        tune = {
            "metric": "loss",
            "num_samples": 1,
            "scheduler": {"max_t": 10_000, "num_workers": RANKS},
            "search_space": {"lr": 0.1},
            "training": {"python": "benchmarks.starts:train", "batch_size": 8},
        }
        (folder / "study.json").write_text(json.dumps({"name": "starts", "tune": tune}), encoding="utf-8")
        site = {key: value for key, value in SITE.items() if key != "name"}
        (folder / "here.json").write_text(json.dumps(site), encoding="utf-8")
        program = Path(sys.executable).with_name("parsl-rasda")
        words = [program, "run", "study.json", "--site", "./here.json", "--dir", "run"]
        until_first_step(words, folder, 1)
        return round(until_first_step([program, "resume", "run"], folder, 2), 2)


def libraries() -> float:
    """Return how long a process takes that imports what a trial needs, and makes a step."""
    began = time.time()
    subprocess.run([sys.executable, "-c", LIBRARIES], check=True)
    return round(time.time() - began, 2)


def until_first_step(words: list[str | Path], folder: Path, attempt: int) -> float:
    """Run a command until the first step of an attempt, and end it by Ctrl-C; return how long that took."""
    asked, log = time.time(), folder / f"log-{attempt}"
    with log.open("wb") as output:
        process = subprocess.Popen(words, cwd=folder, env=environment(folder), stdout=output, stderr=output)
        try:
            while len(steps := list((folder / "run").glob("**/first-step"))) < attempt:
                if process.poll() is not None or time.time() - asked > PATIENCE_S:
                    raise SystemExit(log.read_text(encoding="utf-8"))
                time.sleep(0.02)
            time.sleep(1.0)  # some epochs
            return max(float(step.read_text(encoding="utf-8")) for step in steps) - asked
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(PATIENCE_S)


if __name__ == "__main__":
    main()
