"""Forked ranks as steps of a real Slurm."""

from __future__ import annotations

import os
import signal

import pytest
from forked_ranks import Node, described, family_of, gone
from rank_launch import eventually, report_of, written_order
from slurm_cluster import SlurmCluster

from parsl_rasda.runners import leftovers
from parsl_rasda.vocabulary import Outcome

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(240)]

SRUN = ("srun", "--unbuffered", "--input=0", "--output=0", "--error=all", "--kill-on-bad-exit=1", "--mem=0")


@pytest.fixture(scope="module")
def node(need):
    need("slurm")
    with SlurmCluster(nodes=1) as cluster, Node(**cluster.environment) as it:
        yield it


def start(node, order):
    return node.start(order, launcher=(*SRUN, f"--ntasks={order.world_size}", "--export=ALL"))


def test_ranks_of_a_step_are_forked_and_train_together(node, tmp_path) -> None:
    for name in ("first", "second"):
        order = written_order(tmp_path / name, world_size=2, until=1)
        assert start(node, order).wait(90) == 0, (tmp_path / name / "log.txt").read_text()
        assert report_of(order).outcome is Outcome.REACHED
        assert "plain start" not in (tmp_path / name / "log.txt").read_text()
    assert len(node.servers()) == 1


@pytest.mark.parametrize("victim", ["rank", "supervisor", "client", "launcher"])
def test_whoever_is_killed_takes_the_step_along(node, tmp_path, victim) -> None:
    order = node.order(tmp_path, world_size=2, config={"epoch_s": 600})
    launch = start(node, order)
    families = [family_of(order, rank) for rank in (0, 1)]
    assert all(described(order, rank)["forked"] for rank in (0, 1))
    os.kill(launch.pid if victim == "launcher" else families[1][victim], signal.SIGKILL)
    assert launch.wait(30) != 0
    leftovers.end_marked(leftovers.JOB_VARIABLE, launch.mark, grace_s=0.0)
    eventually(lambda: all(gone(family.values()) for family in families), "all are gone")
    assert len(node.servers()) == 1
