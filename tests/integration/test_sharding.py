"""A sharded model trains as a whole one does, and goes on as one."""

from __future__ import annotations

import sys
from itertools import chain
from pathlib import Path

import pytest
import torch
from rank_launch import HERE, MPIEXEC, epochs_of, finished, metrics_of, report_of, written_order

from parsl_rasda.protocol import Training
from parsl_rasda.runtime.checkpoints.checkpoint import read_header, read_tensors

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(240)]

EPOCHS = 3
OPTIMIZERS = {"sgd": 0.02, "adamw": 2e-3}
# (ranks, sharding, epoch to start from, until, preempted at this batch of epoch 1)
LEGS = [(2, "fsdp", 0, EPOCHS, 2), (4, "fsdp", 1, 2, None), (1, "none", 2, EPOCHS, None)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Train with each optimizer, whole on one rank and sharded in legs; returns the orders."""
    root = tmp_path_factory.mktemp("sharding")
    orders = {}
    launches = [("whole", (1, "none", 0, EPOCHS, None)), *((f"leg-{i}", leg) for i, leg in enumerate(LEGS))]
    for name, (world_size, sharding, begin, until, interrupted) in launches:
        for optimizer, lr in OPTIMIZERS.items():
            at = {"at": {"epoch": 1, "batch": interrupted, "what": "preempt"}} if interrupted else {}
            before = orders.get((f"leg-{int(name[-1]) - 1}", optimizer)) if begin else None
            orders[name, optimizer] = written_order(
                root / name / optimizer,
                world_size=world_size,
                config={"lr": lr, "optimizer": optimizer, "dtype": "float64", **at},
                training=Training(
                    batch_size=8, clip_norm=1.0, warmup_initial=1.0, reduce="ddp", sharding=sharding
                ),
                epoch=begin,
                until=until,
                resume_from=report_of(before).checkpoint.path if before else None,
            )
        words = (sys.executable, str(HERE / "rank_functions.py"), str(root / name))
        status, errors = finished((str(MPIEXEC), "-n", str(world_size), *words))
        assert status == 0, errors
    return orders


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_sharded_trial_that_is_resized_agrees_with_a_whole_one_to_rounding(trained, optimizer) -> None:
    whole, last = (
        read_tensors(Path(report_of(trained[n, optimizer]).checkpoint.path)) for n in ("whole", "leg-2")
    )
    assert whole.keys() == last.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(last[name], tensor, rtol=1e-12, atol=1e-12)
    legs = [metrics_of(trained[f"leg-{i}", optimizer]) for i in range(len(LEGS))]
    for found, expected in zip(chain(*legs), metrics_of(trained["whole", optimizer]), strict=True):
        assert found == pytest.approx(expected, rel=1e-12)


def test_the_first_leg_was_left_in_the_middle_of_an_epoch(trained) -> None:
    header = read_header(Path(report_of(trained["leg-0", "sgd"]).checkpoint.path))
    assert (header["epoch"], header["step"]) == (1, 2)
    assert [report.epoch for report in epochs_of(trained["leg-1", "sgd"])] == [2]


def test_no_rank_holds_more_than_its_part(trained) -> None:
    whole = held(trained["whole", "sgd"], 0)
    for name, world_size in (("leg-0", 2), ("leg-1", 4)):
        parts = [held(trained[name, "sgd"], rank) for rank in range(world_size)]
        assert sum(parts) == whole
        assert max(parts) < 1.5 * whole / world_size


def held(order, rank):
    return int((Path(order.directory) / "scratch" / f"held-{rank}").read_text())
