"""Whatever is killed, nothing of a job lives on: each launcher on this machine, and inside a Slurm job."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest
from backend_tools import STAND_IN, eventually, mark_of, processes_of
from rank_launch import OPENMPI, missing_of
from slurm_cluster import SlurmCluster

from parsl_rasda.agent import orphan_reaper

pytestmark = [pytest.mark.parsl, pytest.mark.mpi, pytest.mark.slow]

DEADLINE_S = 120.0
VICTIMS = ("rank", "launcher", "worker", "manager", "pilot", "controller")
CONTROLLER = """
import json, sys
from pathlib import Path
from parsl_rasda.orchestration.events import JobEnded, JobStarted, PilotStarted, RequestPilot
from parsl_rasda.backends.registry import build_backend
from parsl_rasda.orchestration.backend import BackendContext
from parsl_rasda.study.parsl_site import ParslSiteSpec
from parsl_rasda.testing.backends import EventLog, RunningPilot
from parsl_rasda.types import PilotId, SiteName

folder = Path(sys.argv[1])
log = EventLog(120)
runner = build_backend(ParslSiteSpec.model_validate(json.loads(sys.argv[2])), BackendContext(folder))
runner.open(log.post)
try:
    runner.request_pilot(RequestPilot(PilotId("site-0"), SiteName("site")))
    pilot = RunningPilot(runner, log, log.next(PilotStarted), folder)
    job = pilot.start_at("t0", pilot.pilot.nodes[: int(sys.argv[3])], config={"epoch_s": 600})
    log.next(JobStarted, job)
    print("up", flush=True)
    print(log.next(JobEnded, job).outcome, flush=True)
    sys.stdin.read()
finally:
    runner.close()
"""


def site_of(launcher: str, provider: dict[str, Any], **fields: Any) -> dict[str, Any]:
    if launcher == "openmpi":  # before MPICH's on the pilot's PATH
        provider = {**provider, "worker_init": f'export PATH={OPENMPI}:"$PATH"'}
    return {
        "name": "site",
        "provider": provider,
        "gpus_per_node": 2,
        "accelerator": "none",
        "mpi_launcher": launcher,
        "python": str(STAND_IN),
        "heartbeat_threshold": 5,
        "checkpoint_margin": 5,
        **fields,
    }


class Controller:
    """A controller in a process of its own, whose one job is training on two ranks a node."""

    def __init__(self, folder: Path, site: dict[str, Any], nodes: int, environment: dict[str, str]) -> None:
        self._words = (sys.executable, "-c", CONTROLLER, str(folder), json.dumps(site), str(nodes))
        self._environment = {**os.environ, **environment}
        self.folder, self.width = folder, 2 * nodes

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            self._words,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.said() == "up"
        self.mark = mark_of(self.folder)
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:  # the test has failed
            self.process.kill()
            self.process.communicate()

    def said(self) -> str:
        """Return the next line of its output."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def processes_of_job(self) -> dict[int, list[str]]:
        """Return the processes of the launch by pid, with their command lines."""
        return _with_words(
            p.pid for p in orphan_reaper.marked(orphan_reaper.JOB_VARIABLE, f"{self.mark}/t0.1")
        )

    def _ranks(self) -> list[int]:
        job = self.processes_of_job()
        return [
            pid
            for pid, words in job.items()
            if len(words) > 2 and "stand_in" in words[1] and words[-2].endswith("order.json")
        ]

    def pids_of(self, victim: str) -> list[int]:
        """Return what to kill."""
        # The first rank has spoken; those of srun trickle in.
        eventually(lambda: len(self._ranks()) == self.width, deadline_s=DEADLINE_S)
        job, ranks = self.processes_of_job(), self._ranks()
        roots = [pid for pid in job if _parent_of(pid) not in job]
        pool = [
            pid
            for pid, words in _with_words(processes_of(self.mark)).items()
            if "python" in words[0] and any(word.endswith("parsl-rasda-workers") for word in words)
        ]
        (worker,) = {_parent_of(pid) for pid in roots} & set(processes_of(self.mark))
        launchers = [pid for pid in roots if _parent_of(pid) == worker]
        managers = [pid for pid in pool if _parent_of(pid) not in pool]
        assert len(launchers) == len(managers) == 1
        return {
            "rank": ranks[-1:],
            "launcher": launchers,
            "worker": [worker],
            "manager": managers,
            "pilot": sorted({*pool, worker}),
            "controller": [self.process.pid],
        }[victim]


def _with_words(pids: Any) -> dict[int, list[str]]:
    found = {}
    for pid in pids:
        try:
            found[pid] = Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8").split("\0")
        except OSError:
            continue
    return found


def _parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])


def kill(controller: Controller, victim: str) -> None:
    """Kill it, and see that the job ends, that nothing of it is left, and then nothing of the run."""
    for pid in controller.pids_of(victim):
        os.kill(pid, signal.SIGKILL)
    see_the_end(controller, is_controller=victim == "controller")


def see_the_end(controller: Controller, *, is_controller: bool = False) -> None:
    if not is_controller:
        assert controller.said() in {"lost", "preempted"}
    eventually(lambda: not controller.processes_of_job(), deadline_s=DEADLINE_S)
    if not is_controller:
        controller.process.communicate(timeout=DEADLINE_S)
    eventually(lambda: not processes_of(controller.mark), deadline_s=DEADLINE_S)


def need_launcher(need: Callable[..., None], launcher: str) -> None:
    if launcher == "srun":
        return
    need("openmpi" if launcher == "openmpi" else "mpiexec", also_missing=missing_of(launcher))


@pytest.mark.parametrize("victim", VICTIMS)
@pytest.mark.parametrize("launcher", ["hydra", "openmpi"])
def test_whatever_is_killed_nothing_of_the_job_lives_on(
    tmp_path: Path, need: Callable[..., None], launcher: str, victim: str
) -> None:
    need_launcher(need, launcher)
    site = site_of(launcher, {"type": "LocalProvider"})
    with Controller(tmp_path, site, nodes=1, environment={}) as controller:
        kill(controller, victim)


@pytest.fixture(scope="module")
def cluster(need: Callable[..., None]) -> Iterator[SlurmCluster]:
    need("slurm")
    with SlurmCluster(nodes=2) as cluster:
        yield cluster


@pytest.mark.slurm
@pytest.mark.parametrize("victim", VICTIMS)
@pytest.mark.parametrize("launcher", ["srun", "hydra", "openmpi"])
def test_whatever_is_killed_inside_a_slurm_job_nothing_of_the_job_lives_on(
    tmp_path: Path, need: Callable[..., None], cluster: SlurmCluster, launcher: str, victim: str
) -> None:
    need_launcher(need, launcher)
    cluster.revive()
    provider = {"type": "SlurmProvider", "partition": "main", "nodes_per_block": 2, "walltime": "00:10:00"}
    site = site_of(launcher, provider, address="127.0.0.1")
    with Controller(tmp_path, site, nodes=2, environment=cluster.environment) as controller:
        if victim == "pilot":
            cluster.run("scancel", *cluster.jobs("RUNNING"))
            see_the_end(controller)
        else:
            kill(controller, victim)
    eventually(lambda: not cluster.jobs("PENDING,RUNNING"), deadline_s=DEADLINE_S)
