"""What an exact sum of gradients costs, with the 25.6 M parameters of ResNet-50.

    python benchmarks/reduction.py [--rounds 5] [--out benchmarks/results/reduction.json]

Two measurements, each with all its kinds interleaved on the same ranks, so that whatever else the machine
does meets all alike. The exchange alone, at W = 2, 4 and 8: gradients of ResNet-50's shapes are there at
once, are packed, and are added by `ExactTree`, which takes their norms too, or by all-reduce in buckets of 25
MB, as in DistributedDataParallel. The whole step, at W = 2 and 4: ResNet-50 for small images (3 x
48 x 48), one replica of 4 samples on each rank, by `reduce: exact`, by `reduce: ddp`, and in
DistributedDataParallel; on one rank in a plain loop. Times are medians.

The claims: the exchange takes at most 1.25 x all-reduce at W = 2 and 4, and 1.6 x at W = 8; the whole step at
most 1.05 x DistributedDataParallel; on one rank at most 1.05 x a plain loop. Exit code 1 if one is false.
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
STEPS, WARM_UP, BATCH = 6, 1, 4
EXCHANGE_MOST = {2: 1.25, 4: 1.25, 8: 1.6}
STEP_MOST = 1.05
BUCKET_ELEMENTS = 25 * 2**20 // 4
MPIEXEC = Path(sys.executable).with_name("mpiexec")
STAGES = ((3, 64, 256), (4, 128, 512), (6, 256, 1024), (3, 512, 2048))  # of ResNet-50: blocks, width, outputs


# ------------------------------------------------------------------------------------------ on the ranks


def resnet_50():
    """Return ResNet-50 without the first pooling, for small images: 25.6 M parameters."""
    import torch
    from torch import nn

    class Bottleneck(nn.Module):
        def __init__(self, inputs, width, outputs, stride):
            super().__init__()
            self.body = nn.Sequential(
                *(nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
                nn.Conv2d(width, width, 3, padding=1, stride=stride, bias=False),
                *(nn.BatchNorm2d(width), nn.ReLU()),
                *(nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)),
            )
            same = inputs == outputs and stride == 1
            shortcut = (nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs))
            self.shortcut = nn.Identity() if same else nn.Sequential(*shortcut)

        def forward(self, x):
            return nn.functional.relu(self.body(x) + self.shortcut(x))

    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    inputs = 64
    for stage, (blocks, width, outputs) in enumerate(STAGES):
        for block in range(blocks):
            layers.append(Bottleneck(inputs, width, outputs, 2 if stage and not block else 1))
            inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 1000))


def exchange(trial):
    """Add the same gradients in each way in turn; report medians [s]."""
    import torch

    from parsl_rasda.runtime.engine.exact_tree import ExactTree

    model, _ = trial.prepare(resnet_50(), torch.optim.SGD, lr=0.0)
    parameters = list(model.parameters())
    grads = [torch.randn_like(p) for p in parameters]
    flat = torch.cat([g.flatten() for g in grads])
    parts = zip(flat.split([p.numel() for p in parameters]), parameters, strict=True)
    views = [part.view_as(p) for part, p in parts]
    tree = ExactTree(trial._group, parameters, 1)

    def exact():
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = grad
        tree.listen(last=True)
        tree.add([], 1.0, 1)
        tree.finish([], halt=False)

    def all_reduce():
        torch._foreach_copy_(views, grads)
        works = [trial._group.start_sum(part) for part in flat.split(BUCKET_ELEMENTS)]
        for work in works:
            trial._group.finish(work)

    times: dict[str, list[float]] = {"exact": [], "all_reduce": []}
    for _ in trial.epochs():
        for _ in range(STEPS):
            for kind, way in (("exact", exact), ("all_reduce", all_reduce)):
                trial._group.agree([0])
                began = time.perf_counter()
                way()
                trial._group.agree([0])
                times[kind].append(time.perf_counter() - began)
        trial.report(**{kind: statistics.median(found[WARM_UP:]) for kind, found in times.items()})


def train(trial):
    """Train by each reduction in turn, and as anybody would write it; report the median of a step [s]."""
    import torch
    from torch.nn.parallel import DistributedDataParallel

    model, _ = trial.prepare(resnet_50(), lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9), lr=0.01)
    beside = resnet_50()
    optimizer = torch.optim.SGD(beside.parameters(), 0.01, momentum=0.9)
    wrapped = DistributedDataParallel(beside) if trial.world_size > 1 else beside
    kinds = ("exact", "ddp", "beside")
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    count = BATCH * trial.world_size * (STEPS + WARM_UP)
    data = torch.randn(count, 3, 48, 48), torch.randint(0, 1000, (count,))
    for epoch in trial.epochs():
        kind = kinds[epoch % len(kinds)]
        if kind == "beside":
            found = plain_steps(wrapped, optimizer, data, rank=trial.rank)
        else:
            trial._engine.training = replace(trial._engine.training, reduce=kind)
            found = trial_steps(trial, model, data)
        if epoch >= len(kinds):  # the first of each kind touches its memory for the first time
            times[kind] += found[WARM_UP:]
        trial.report(**{kind: statistics.median(times[kind] or [0.0]) for kind in kinds})


def trial_steps(trial, model, data) -> list[float]:
    from torch.nn.functional import cross_entropy

    times, began = [], time.perf_counter()
    for x, y in trial.batches(data):
        trial.step(cross_entropy(model(x), y))
        times.append(time.perf_counter() - began)
        began = time.perf_counter()
    return times


def plain_steps(model, optimizer, data, *, rank: int) -> list[float]:
    from torch.nn.functional import cross_entropy

    (x, y), times = data, []
    for step in range(STEPS + WARM_UP):
        began = time.perf_counter()
        at = (rank * (STEPS + WARM_UP) + step) * BATCH
        optimizer.zero_grad()
        cross_entropy(model(x[at : at + BATCH]), y[at : at + BATCH]).backward()
        optimizer.step()
        times.append(time.perf_counter() - began)
    return times


# ------------------------------------------------------------------------------------------ the launches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--widths", type=int, nargs="*", default=[1, 2, 4, 8])
    parser.add_argument("--only", choices=("exchange", "step"))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    from claims import conclude

    exchange_s: dict[int, dict[str, float]] = {}
    step_s: dict[int, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for width in arguments.widths:
            if width in EXCHANGE_MOST and arguments.only != "step":
                exchange_s[width] = measured(Path(folder), "exchange", width, arguments.rounds)
            if width <= 4 and arguments.only != "exchange":
                step_s[width] = measured(Path(folder), "train", width, (arguments.rounds + 1) * 3)
    exchange_ratio = {w: round(t["exact"] / t["all_reduce"], 3) for w, t in exchange_s.items()}
    step_ratio = {w: round(t["exact"] / t["beside"], 3) for w, t in step_s.items()}
    result = {
        "what": "seconds; ResNet-50's 25.6 M parameters in fp32, gloo, one thread a rank",
        "rounds": arguments.rounds,
        "exchange_s": named(exchange_s),
        "exchange_over_all_reduce": {f"W={w}": ratio for w, ratio in exchange_ratio.items()},
        "step_s": named(step_s),
        "step_over_ddp": {f"W={w}": ratio for w, ratio in step_ratio.items()},
        "beside": "DistributedDataParallel; at W=1 a plain loop",
    }
    claims = {
        f"the exchange takes at most {EXCHANGE_MOST[w]} x all-reduce at W={w}": ratio <= EXCHANGE_MOST[w]
        for w, ratio in exchange_ratio.items()
    }
    claims |= {
        f"a step takes at most {STEP_MOST} x {'DDP' if w > 1 else 'a plain loop'} at W={w}": ratio
        <= STEP_MOST
        for w, ratio in step_ratio.items()
    }
    conclude(result, claims, arguments.out)


def named(times: dict[int, dict[str, float]]) -> dict[str, dict[str, float]]:
    return {f"W={w}": {kind: round(t, 4) for kind, t in found.items()} for w, found in times.items()}


def measured(folder: Path, function: str, world_size: int, epochs: int) -> dict[str, float]:
    """Return the median time of each kind."""
    from parsl_rasda.protocol import JobSpec, Training
    from parsl_rasda.types import TrialId

    directory = folder / f"{function}-{world_size}"
    directory.mkdir()
    order = JobSpec(
        study="reduction",
        trial=TrialId("t0"),
        attempt=1,
        config={},
        directory=str(directory),
        seed=1,
        metric="exact",
        mode="min",
        epoch=0,
        until=epochs,
        max_epochs=epochs,
        schedule=((0, world_size),),
        world_size=world_size,
        python=f"benchmarks.reduction:{function}",
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
