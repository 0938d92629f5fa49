"""Forked ranks as steps of a real Slurm."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from pathlib import Path

import pytest
from backend_tools import eventually
from forked_ranks import Node, described, family_of, gone
from rank_launch import HERE, PATIENCE_S, report_of, written_order
from slurm_cluster import SlurmCluster

from parsl_rasda.agent import orphan_reaper
from parsl_rasda.backends.allocation import PilotAllocation
from parsl_rasda.launch.base import LaunchSettings
from parsl_rasda.launch.srun import SrunLauncher
from parsl_rasda.runtime.process.forkserver import client
from parsl_rasda.types import NodeName, NodeSlots, Outcome, PilotId, Placement, SiteName

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(240)]

SRUN = ("srun", "--unbuffered", "--input=0", "--output=0", "--error=all", "--kill-on-bad-exit=1", "--mem=0")


@pytest.fixture(scope="module")
def node(need):
    need("slurm")
    with SlurmCluster(nodes=1) as cluster, Node(**cluster.environment) as it:
        it.cluster = cluster
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
    orphan_reaper.end_marked(orphan_reaper.JOB_VARIABLE, launch.mark, grace_s=0.0)
    eventually(lambda: all(gone(family.values()) for family in families), "all are gone")
    assert len(node.servers()) == 1
    node.cluster.cancel_all()  # the allocation of an srun that was killed before it could give it back


IN_STEPS = (sys.executable, "-S", "-E", "-s", str(HERE / "in_a_step.py"), client.__file__)


def start_as_a_pilot_does(node, orders, *, with_servers):
    """Start launches inside one allocation, one after another; returns the process."""
    slots = (NodeSlots(NodeName("n0"), (0, 1)),)
    placement = Placement(SiteName("site"), PilotId("p"), slots)
    pilot = PilotAllocation(slots, None, sys.executable, client.__file__)
    words = []
    for order in orders:
        program = (*IN_STEPS, str(Path(order.directory) / "order.json"))
        settings = LaunchSettings(accelerator="cuda", gpus_per_node=4, directory=order.directory)
        launch = pilot.with_servers(SrunLauncher().command(placement, program, settings), program, placement)
        words += [launch.before] if with_servers else []
        words += [launch.argv]
    script = "; ".join(shlex.join(part) for part in words)
    allocation = ("salloc", "--quiet", "--nodes=1", "--gres=gpu:4", "--exclusive")
    return node.start(orders[0], launcher=allocation, program=("bash", "-c", script))


@pytest.mark.parametrize("with_servers", [True, False])
def test_ranks_of_steps_find_the_server_that_their_pilot_has_ensured(node, tmp_path, with_servers) -> None:
    with Node(SLURM_CONF=node.environment["SLURM_CONF"], PYTHONUNBUFFERED="1") as fresh:
        orders = [fresh.order(tmp_path / name, world_size=2, slots=("n0:0", "n0:1")) for name in "ab"]
        pilot = start_as_a_pilot_does(fresh, orders, with_servers=with_servers)
        pilot.wait(PATIENCE_S)
        log = (tmp_path / "a/log.txt").read_text()
        assert [report_of(order).outcome for order in orders] == [Outcome.REACHED] * 2, log
        forked = {described(order, rank)["forked"] for order in orders for rank in (0, 1)}
        assert forked == {with_servers}, log
        assert ("plain start, without the fork server: the pilot started none" in log) is not with_servers
