"""How launches end under every launcher: when a rank merely exits, and when whoever started them dies."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator

import pytest
from backend_tools import eventually
from forked_ranks import Node, described, gone
from rank_launch import MPIEXEC, OPENMPI, missing_of, rank_command, report_of, written_order
from slurm_cluster import SlurmCluster

from parsl_rasda.agent import orphan_reaper
from parsl_rasda.agent.launch import Launch
from parsl_rasda.types import Outcome

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(240)]
SRUN = ("srun", "--unbuffered", "--input=0", "--output=0", "--error=all", "--kill-on-bad-exit=1", "--mem=0")
LAUNCH = {
    "hydra": (str(MPIEXEC), "-n", "2"),
    "openmpi": (
        *(str(OPENMPI / "mpiexec"), "--allow-run-as-root", "--host", "localhost:2", "-n", "2"),
        *("--bind-to", "none"),
    ),
    "srun": (*SRUN, "--ntasks=2", "--export=ALL"),
}
AT_ONCE_S = 10.0


@pytest.fixture(scope="module", params=[*LAUNCH])
def place(request, need) -> Iterator[tuple[Node, tuple[str, ...]]]:
    """A node for one launcher, and the words of its launch of two ranks."""
    name, environment = request.param, {}
    with contextlib.ExitStack() as stack:
        if name == "srun":
            need("slurm")
            environment = stack.enter_context(SlurmCluster(nodes=1)).environment
        if name == "openmpi":
            need("openmpi", also_missing=missing_of("openmpi"))
        yield stack.enter_context(Node(**environment)), LAUNCH[name]


@pytest.mark.parametrize("start", ["forked", "plain"])
@pytest.mark.parametrize(
    ("end", "how"),
    [({"exit": 3}, "ended with exit status 3"), ({"signal": signal.SIGKILL}, "died by SIGKILL")],
)
def test_a_rank_that_ends_takes_the_launch_along_at_once(place, tmp_path, start, end, how) -> None:
    node, launcher = place
    act = {"rank": 1, **end, "once": str(tmp_path / "scratch/rank-0.json")}
    order = node.order(tmp_path, world_size=2, config={"epoch_s": 600, "act": act})
    program = None if start == "forked" else rank_command(order)
    launch = node.start(order, launcher=launcher, program=program)
    eventually((tmp_path / "scratch/rank-0.json").exists, "rank 0 trains, and then rank 1 exits")
    began = time.monotonic()
    assert launch.wait(60) != 0
    assert time.monotonic() - began < AT_ONCE_S
    assert described(order)["forked"] == (start == "forked")
    eventually(lambda: gone([described(order)["pid"]]), "rank 0 is gone, and nobody has cleaned up")
    eventually(lambda: not orphan_reaper.marked(orphan_reaper.JOB_VARIABLE, launch.mark), "nothing is left")
    report = report_of(order)
    assert report.outcome is Outcome.LOST, "and rank 0, which the launcher ended, was not called back"
    assert report.cause == f"rank 1 {how}"


def test_a_launch_whose_worker_dies_saves_what_it_has(place, tmp_path) -> None:
    node, launcher = place
    at = {"epoch": 1, "batch": 4, "what": "wait for a signal", "then_s": 3.0}
    order = written_order(tmp_path, world_size=2, config={"lr": 0.02, "at": at})
    command = {"argv": (*launcher, *rank_command(order)), "environment": node.environment, "files": {}}
    launches = []

    def work() -> None:
        launches.append(Launch(command, f"{node.mark}/it", tmp_path / "log.txt"))
        for rank in (0, 1):
            eventually((tmp_path / f"scratch/waiting-{rank}").exists, "the ranks are in mid-epoch")

    worker = threading.Thread(target=work)  # a launch dies with the thread that started it
    worker.start()
    worker.join()
    eventually((tmp_path / "report.json").exists, "rank 0 reports")
    report = report_of(order)
    assert (report.outcome, report.epoch) == (Outcome.PREEMPTED, 1)
    assert report.checkpoint is not None
    assert report.checkpoint.path.endswith("epoch-000001-step-00000003")
    launches[0].close()
