"""Trials that are trained at 1, 2 and 4 ranks, and resized on the way: for tests and benchmarks."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from rank_functions import samples
from rank_launch import HERE, MPIEXEC, finished, report_of, written_order

from parsl_rasda.data import ShardWriter
from parsl_rasda.protocol import Training
from parsl_rasda.runtime.checkpoints.checkpoint import read_tensors
from parsl_rasda.types import schedule_entry

WIDTHS = (1, 2, 4)


def train_everywhere(root, cases, epochs):
    """Train every case whole at each width, and once in legs: 1 rank, 2, from mid-epoch on 4.

    Args:
        root: Folder of attempts.
        cases: Configurations of `rank_functions.learn` by name; the name begins with the reduction.
        epochs: Epochs of each, unless a case has its own.

    Returns:
        Orders by ``(name, "W=2")`` and ``(name, "legs", 1)``.
    """
    orders = {}
    for leg, world_size in enumerate(WIDTHS):
        place = root / f"w{world_size}"
        for name, case in cases.items():
            config = {"lr": 0.02, **case}
            reduce = name.partition("-")[0]
            whole = case.get("epochs", epochs)
            begin, until, interruption = _legs(whole)[leg]
            common = {
                "world_size": world_size,
                "max_epochs": whole,
                "schedule": (schedule_entry(0, 4, case.get("batches", 4)),),
                "training": Training(batch_size=8, clip_norm=1.0, warmup_initial=1.0, reduce=reduce),
            }
            orders[name, f"W={world_size}"] = written_order(
                place / f"{name}-whole", config=config, until=whole, **common
            )
            stop = {}
            if interruption:
                batch = interruption[1] if config["samples"] > 3 else 0
                stop = {"at": {"epoch": interruption[0], "batch": batch, "what": "preempt"}}
            orders[name, "legs", leg] = written_order(
                place / f"{name}-leg",
                config={**config, **stop},
                epoch=begin,
                until=until,
                resume_from=report_of(orders[name, "legs", leg - 1]).checkpoint.path if leg else None,
                **common,
            )
        words = (sys.executable, str(HERE / "rank_functions.py"), str(place))
        status, errors = finished((str(MPIEXEC), "-n", str(world_size), *words), patience_s=1200)
        if status:
            raise RuntimeError(errors)
    return orders


def _legs(epochs):
    """Return where each leg begins and ends [epochs], and where the second one is interrupted."""
    first, second = epochs // 4 or 1, epochs // 2 + 1
    return [(0, first, None), (first, second, (second - 1, 2)), (second - 1, epochs, None)]


def written_shards(directory, case):
    """Write a case's training samples, 60 in a shard and 16 in a block; returns the index."""
    (x, y), _ = samples(case)
    with ShardWriter(directory, samples_per_shard=60) as shards:
        shards.write("train", x=x.numpy(), y=y.numpy())
    return str(shards.index)


def legs_of(orders, name):
    return [orders[name, "legs", leg] for leg in range(len(WIDTHS))]


def final_state(order):
    return read_tensors(Path(report_of(order).checkpoint.path))


def distance(tensor, expected):
    """Return the Euclidean norm of a tensor's difference to what is expected, relative to the latter's."""
    scale = float(expected.double().norm()) or 1.0
    return float((tensor.double() - expected.double()).norm()) / scale


def differing(left, right):
    """Return the names of tensors that are not the same bits."""
    assert left.keys() == right.keys()
    return [name for name in left if not torch.equal(left[name], right[name])]
