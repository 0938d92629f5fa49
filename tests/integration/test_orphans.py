"""Whatever of a job is killed, nothing of it lives on: hydra and Open MPI here, srun in `test_slurm`."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from runner_tools import eventually, local_site, mark_of

from parsl_rasda.orchestration.events import JobEnded, JobStarted, PilotStarted, RequestPilot
from parsl_rasda.runners import leftovers
from parsl_rasda.runners.parsl_runner import ParslRunner
from parsl_rasda.testing.runners import EventLog, RunningPilot
from parsl_rasda.vocabulary import Outcome, PilotId, SiteName

pytestmark = [pytest.mark.parsl, pytest.mark.mpi, pytest.mark.slow]

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["hydra", "openmpi"])
def pilot(
    request: pytest.FixtureRequest, tmp_path: Path, need: Callable[..., None]
) -> Iterator[RunningPilot]:
    """A pilot whose launches use one of the launchers."""
    provider = {"type": "LocalProvider"}
    if request.param == "openmpi":
        folder = Path(os.environ.get("RASDA_OPENMPI", ROOT / ".venv-openmpi" / "bin"))
        need("openmpi", also_missing="" if (folder / "prterun").exists() else f"prterun in {folder}")
        provider["worker_init"] = f'export PATH={folder}:"$PATH"'
    else:
        need("mpiexec")
    site = local_site(mpi_launcher=request.param, provider=provider, gpus_per_node=2)
    runner, log = ParslRunner(site, tmp_path), EventLog()
    runner.open(log.post)
    try:
        runner.request_pilot(RequestPilot(PilotId("local-0"), SiteName("local")))
        yield RunningPilot(runner, log, log.next(PilotStarted), tmp_path)
    finally:
        runner.close()


def processes_of_job(mark: str) -> dict[int, list[str]]:
    """Return the processes of a launch by pid, with their command lines."""
    found = {}
    for process in leftovers.marked(leftovers.JOB_VARIABLE, mark):
        try:
            found[process.pid] = Path(f"/proc/{process.pid}/cmdline").read_text().split("\0")
        except OSError:
            continue
    return found


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.parametrize("victim", ["rank", "launcher", "worker"])
def test_whatever_of_a_job_is_killed_nothing_of_it_lives_on(pilot: RunningPilot, victim: str) -> None:
    job = pilot.start("t0", width=2, config={"epoch_s": 600})
    pilot.log.next(JobStarted, job)
    mark = f"{mark_of(pilot.directory)}/{job}"
    processes = processes_of_job(mark)
    ranks = [
        pid for pid, words in processes.items() if words[-2].endswith("order.json") and "stand_in" in words[1]
    ]
    launchers = [pid for pid in processes if parent_of(pid) not in processes]
    assert len(ranks) == 2
    assert len(launchers) == 1
    target = {"rank": ranks[-1], "launcher": launchers[0], "worker": parent_of(launchers[0])}[victim]
    os.kill(target, signal.SIGKILL)
    ended = pilot.log.next(JobEnded, job)
    assert ended.outcome in {Outcome.LOST, Outcome.PREEMPTED}
    eventually(lambda: not processes_of_job(mark))
