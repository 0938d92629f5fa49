"""However a controller ends, nothing of its run lives on."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from backend_tools import eventually, mark_of, processes_of

pytestmark = [pytest.mark.parsl, pytest.mark.mpi, pytest.mark.slow]

CONTROLLER = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background ignores it
from pathlib import Path
sys.path.insert(0, {here!r})
from backend_tools import local_site
from parsl_rasda.orchestration.events import JobStarted, PilotStarted, RequestPilot
from parsl_rasda.backends.registry import build_backend
from parsl_rasda.orchestration.backend import BackendContext
from parsl_rasda.testing.backends import EventLog, RunningPilot
from parsl_rasda.types import PilotId, SiteName

run_dir = Path({run_dir!r})
runner, log = build_backend(local_site(gpus_per_node=2), BackendContext(run_dir)), EventLog()
runner.open(log.post)
try:
    runner.request_pilot(RequestPilot(PilotId("local-0"), SiteName("local")))
    job = RunningPilot(runner, log, log.next(PilotStarted), run_dir).start("t0", width=2, config={config})
    log.next(JobStarted, job)
    print("up", flush=True)
    EventLog(600).next(JobStarted)
finally:
    runner.close()
    print("closed", flush=True)
"""


def controller(run_dir: Path, config: dict[str, object]) -> subprocess.Popen[str]:
    """Start a controller in a process of its own; returns when its job is training."""
    code = CONTROLLER.format(here=str(Path(__file__).parent), run_dir=str(run_dir), config=config)
    process = subprocess.Popen((sys.executable, "-c", code), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


def test_ctrl_c_leaves_no_process_within_seconds(tmp_path: Path) -> None:
    with controller(tmp_path, {"epoch_s": 600}) as process:
        mark = mark_of(tmp_path)
        assert len(processes_of(mark)) > 4
        process.send_signal(signal.SIGINT)
        assert process.wait(20) != 0
        assert process.stdout is not None
        assert process.stdout.read() == "closed\n"
    assert processes_of(mark) == []


def test_ctrl_c_kills_ranks_that_ignore_every_signal(tmp_path: Path) -> None:
    with controller(tmp_path, {"epoch_s": 600, "deaf": True}) as process:
        mark = mark_of(tmp_path)
        process.send_signal(signal.SIGINT)
        process.wait(30)
    assert processes_of(mark) == []


def test_a_killed_controller_takes_everything_along_by_itself(tmp_path: Path) -> None:
    with controller(tmp_path, {"epoch_s": 600}) as process:
        mark = mark_of(tmp_path)
        process.kill()
        process.wait(10)
    eventually(lambda: processes_of(mark) == [])
