"""What an exact sum of gradients costs, and what accumulation costs, on a network of 1.8 M parameters.

    python benchmarks/reduction.py [--rounds 10] [--out benchmarks/results/reduction.json]

R = 4 replicas of 8 samples. The same ranks train by one reduction after the other, an epoch each, so that
whatever else the machine does meets all of them alike; the time of a step is the median over all rounds.

The claims: `reduce: exact` costs at most 20 % more than torch's DistributedDataParallel with accumulation,
at 2 and at 4 ranks; accumulation costs no more than a plain loop does, noise apart. Exit code 1 if not.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STEPS, WARM_UP = 12, 2
REPLICAS, BATCH = 4, 8
MOST, NOISE = 1.2, 1.1
MPIEXEC = Path(sys.executable).with_name("mpiexec")


# ------------------------------------------------------------------------------------------ on the ranks


def build():
    import torch
    from torch import nn

    def block(inputs, outputs):
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        return (convolution, nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2))

    torch.manual_seed(0)
    return nn.Sequential(
        *(*block(3, 64), *block(64, 128), *block(128, 256), *block(256, 512)),
        *(nn.Flatten(), nn.Linear(512 * 4, 128), nn.ReLU(), nn.Linear(128, 10)),
    )


def samples():
    import torch

    count = REPLICAS * BATCH * (STEPS + WARM_UP)
    return torch.randn(count, 3, 32, 32), torch.randint(0, 10, (count,))


def train(trial):
    """Train by each reduction in turn, and as anybody would write it; time the steps."""
    import torch
    from torch.nn.parallel import DistributedDataParallel

    model, _ = trial.prepare(build(), lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9), lr=0.01)
    kinds = ("ddp", "exact", "torch_ddp" if trial.world_size > 1 else "plain")
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    beside = build()
    optimizer = torch.optim.SGD(beside.parameters(), 0.01, momentum=0.9)
    wrapped = DistributedDataParallel(beside) if trial.world_size > 1 else beside
    data = samples()
    for epoch in trial.epochs():
        kind = kinds[epoch % len(kinds)]
        if kind in {"plain", "torch_ddp"}:
            found = plain_steps(wrapped, optimizer, data, rank=trial.rank, size=trial.world_size)
        else:
            trial._engine.training = replace(trial._engine.training, reduce=kind)
            found = trial_steps(trial, model, data)
        times[kind] += found[WARM_UP:]
        trial.report(**{kind: statistics.median(times[kind] or [0.0]) for kind in kinds})


def trial_steps(trial, model, data) -> list[float]:
    from torch.nn.functional import cross_entropy

    times, began = [], time.perf_counter()
    for done, (x, y) in enumerate(trial.batches(data), start=1):
        trial.step(cross_entropy(model(x), y))
        if done % (REPLICAS // trial.world_size) == 0:
            times.append(time.perf_counter() - began)
            began = time.perf_counter()
    return times


def plain_steps(model, optimizer, data, *, rank: int, size: int) -> list[float]:
    from contextlib import nullcontext

    from torch.nn.functional import cross_entropy

    (x, y), times, own = data, [], REPLICAS // size
    for step in range(STEPS + WARM_UP):
        began = time.perf_counter()
        optimizer.zero_grad()
        for turn in range(own):
            at = (step * REPLICAS + rank * own + turn) * BATCH
            with model.no_sync() if size > 1 and turn < own - 1 else nullcontext():
                (cross_entropy(model(x[at : at + BATCH]), y[at : at + BATCH]) / own).backward()
        optimizer.step()
        times.append(time.perf_counter() - began)
    return times


# ------------------------------------------------------------------------------------------ the launches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    from claims import conclude

    with tempfile.TemporaryDirectory() as folder:
        step_s = {w: steps_at(Path(folder) / str(w), w, arguments.rounds) for w in (1, 2, 4)}
    result = {
        "what": "seconds a step: 4 replicas of 8 samples, 1.8 M parameters, one thread a rank",
        "steps": STEPS * arguments.rounds,
        "step_s": {f"W={w}": {k: round(t, 4) for k, t in times.items()} for w, times in step_s.items()},
        "exact_over_torch_ddp": ratios(step_s, "exact"),
        "ddp_over_torch_ddp": ratios(step_s, "ddp"),
        "accumulation_over_plain_loop": round(step_s[1]["ddp"] / step_s[1]["plain"], 3),
    }
    claims = {
        f"exact costs at most {MOST} x DDP at {w}": ratio <= MOST
        for w, ratio in result["exact_over_torch_ddp"].items()
    }
    claims["accumulation costs what a plain loop does"] = result["accumulation_over_plain_loop"] <= NOISE
    conclude(result, claims, arguments.out)


def ratios(step_s: dict[int, dict[str, float]], kind: str) -> dict[str, float]:
    return {f"W={w}": round(t[kind] / t["torch_ddp"], 3) for w, t in step_s.items() if w > 1}


def steps_at(directory: Path, world_size: int, rounds: int) -> dict[str, float]:
    """Return the median time of a step of each kind."""
    from parsl_rasda.protocol import JobSpec, Training
    from parsl_rasda.types import TrialId

    directory.mkdir()
    epochs = rounds * 3
    order = JobSpec(
        study="reduction",
        trial=TrialId("t0"),
        attempt=1,
        config={},
        directory=str(directory),
        seed=1,
        metric="ddp",
        mode="min",
        epoch=0,
        until=epochs,
        max_epochs=epochs,
        schedule=((0, REPLICAS),),
        world_size=world_size,
        python="benchmarks.reduction:train",
        training=Training(batch_size=BATCH, checkpoint_every=epochs),
    )
    order.save(directory / "order.json")
    rank = (sys.executable, "-m", "parsl_rasda.runtime", str(directory / "order.json"))
    launcher = (MPIEXEC, "-n", str(world_size)) if world_size > 1 else ()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run((*launcher, *rank), env=environment, check=True, stdin=subprocess.DEVNULL)
    last = (directory / "epochs.jsonl").read_text(encoding="utf-8").splitlines()[-1]
    return {k: v for k, v in json.loads(last)["metrics"].items() if k != "train_loss"}


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
