"""The task that watches over a launch, alone: no Parsl, real processes, a controller's end by hand."""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import uuid
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from backend_tools import STAND_IN
from rank_launch import ENVIRONMENT

from parsl_rasda.agent import job as agent_job
from parsl_rasda.agent import orphan_reaper
from parsl_rasda.agent.control_relay import Message
from parsl_rasda.backends.parsl.control_server import ControlServer
from parsl_rasda.launch.base import LaunchSettings
from parsl_rasda.launch.registry import build_launcher
from parsl_rasda.processes import identify
from parsl_rasda.protocol import JobResult, JobSpec
from parsl_rasda.types import (
    JobId,
    NodeName,
    NodeSlots,
    Outcome,
    Phase,
    PilotId,
    Placement,
    SiteName,
    TrialId,
)

pytestmark = pytest.mark.mpi


class Controller:
    """The other end of the channel: keeps what apps say, answers when it is told to."""

    def __init__(self) -> None:
        self.heard: queue.SimpleQueue[tuple[str, Message]] = queue.SimpleQueue()
        self.server = ControlServer(["127.0.0.1"], lambda job, message: self.heard.put((job, message)))

    def expect(self, op: str) -> Message:
        while True:
            _, message = self.heard.get(timeout=20)
            if message["op"] == op:
                return message

    def say(self, op: str, **fields: Any) -> None:
        self.server.send("t0.1", {"op": op, **fields})


@pytest.fixture
def controller() -> Iterator[Controller]:
    it = Controller()
    yield it
    it.server.close()


@pytest.fixture
def order(tmp_path: Path) -> JobSpec:
    return JobSpec(
        study="s",
        trial=TrialId("t0"),
        attempt=1,
        config={},
        directory=str(tmp_path / "attempt-1"),
        seed=1,
        metric="loss",
        mode="min",
        epoch=0,
        until=2,
        max_epochs=8,
        schedule=((0, 2),),
        world_size=2,
        interactive=True,
        lease_s=30.0,
    )


class RunningTrial:
    """``run_job`` in a thread of its own, as a Parsl worker would run it."""

    def __init__(
        self, order: JobSpec, address: Message | None, program: str = str(STAND_IN), launcher: str = "hydra"
    ) -> None:
        placement = Placement(
            SiteName("s"), PilotId("s-0"), (NodeSlots(NodeName("here"), tuple(range(order.world_size))),)
        )
        words = (program, "-m", "parsl_rasda.runtime", f"{order.directory}/order.json")
        command = build_launcher(launcher).command(placement, words, LaunchSettings(local=True))
        self.mark = uuid.uuid4().hex
        self._arguments = (order.to_json(), asdict(command), self.mark, address)
        self._result: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._thread = threading.Thread(target=lambda: self._result.put(agent_job.run_job(*self._arguments)))
        self._thread.start()

    def end(self) -> tuple[JobResult, list[int]]:
        result = self._result.get(timeout=60)
        self._thread.join()
        assert not orphan_reaper.marked(orphan_reaper.JOB_VARIABLE, self.mark)
        return JobResult.from_json(result["report"]), [epoch["epoch"] for epoch in result["epochs"]]


def test_without_a_controller_the_task_waits_for_the_end_and_tells_it_all(order: JobSpec) -> None:
    report, epochs = RunningTrial(replace(order, interactive=False, until=3), None).end()
    assert (report.outcome, report.epoch, epochs) == (Outcome.REACHED, 3, [1, 2, 3])


def test_an_attempt_that_is_refused_starts_nothing(controller: Controller, order: JobSpec) -> None:
    running = RunningTrial(order, asdict(controller.server.control_address))
    controller.expect("hello")
    controller.say("leave", reason="fenced", grace_s=1.0)
    report, _ = running.end()
    assert (report.outcome, report.cause) == (Outcome.PREEMPTED, "told to leave before it started")
    assert not Path(order.directory).exists()


def test_an_answer_reaches_rank_zero_once(controller: Controller, order: JobSpec) -> None:
    running = RunningTrial(order, asdict(controller.server.control_address))
    controller.expect("hello")
    controller.say("start")
    assert controller.expect("epoch")["epoch"] == 1
    for _ in range(3):  # as a controller does that was asked again
        controller.say("go", epoch=1, until=4, replicas=2)
    assert controller.expect("epoch")["epoch"] == 2
    controller.say("leave", reason="stopped", grace_s=10.0)
    report, epochs = running.end()
    assert (report.outcome, epochs) == (Outcome.REACHED, [1, 2])


def test_an_unanswered_epoch_is_told_again_with_the_next_beat(controller: Controller, order: JobSpec) -> None:
    running = RunningTrial(order, asdict(controller.server.control_address))
    controller.expect("hello")
    controller.say("start")
    first = controller.expect("epoch")
    controller.say("beat")
    assert controller.expect("epoch") == first
    controller.say("leave", reason="stopped", grace_s=10.0)
    running.end()


def test_a_silent_controller_ends_the_lease(controller: Controller, order: JobSpec) -> None:
    endless = replace(order, lease_s=0.5, config={"epoch_s": 600})
    running = RunningTrial(endless, asdict(controller.server.control_address))
    controller.expect("hello")
    controller.say("start")
    report, _ = running.end()
    assert report.outcome is Outcome.PREEMPTED


def test_a_launcher_that_does_not_exist_is_named(order: JobSpec) -> None:
    report, _ = RunningTrial(order, None, program="/no/such/launcher", launcher="process").end()
    assert report.outcome is Outcome.LOST
    assert report.cause == "cannot start '/no/such/launcher': No such file or directory"


def test_a_program_that_does_not_exist_is_a_loss_with_the_launchers_words(order: JobSpec) -> None:
    report, _ = RunningTrial(order, None, program="/no/such/python").end()
    assert report.outcome is Outcome.LOST
    assert "/no/such/python" in report.cause


def test_what_ranks_print_is_kept_in_the_log(order: JobSpec) -> None:
    RunningTrial(replace(order, interactive=False), None).end()
    assert "hello from the ranks" in (Path(order.directory) / "log.txt").read_text()


def in_real_ranks(order: JobSpec, monkeypatch: pytest.MonkeyPatch, function: str, **config: Any) -> JobSpec:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    alone = {"world_size": 1, "accelerator": "none", "schedule": ((0, 1),), "metric": "val_loss"}
    return replace(order, python=f"rank_functions:{function}", config=config, **alone)


def test_an_epoch_that_rank_zero_could_not_send_is_found_on_disk(
    controller: Controller, order: JobSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    closes = in_real_ranks(order, monkeypatch, "close_descriptors", range=(3, 4))  # its way to the agent
    running = RunningTrial(closes, asdict(controller.server.control_address), sys.executable, "process")
    controller.expect("hello")
    controller.say("start")
    assert controller.expect("epoch")["epoch"] == 1
    controller.say("go", epoch=1, until=2, replicas=1)
    assert controller.expect("epoch")["epoch"] == 2
    controller.say("leave", reason="stopped", grace_s=10.0)
    report, epochs = running.end()
    assert (report.outcome, epochs) == (Outcome.REACHED, [1, 2])


@pytest.mark.parametrize("reuse", [False, True])
def test_a_rank_that_closed_its_channel_leaves_by_itself(
    controller: Controller, order: JobSpec, monkeypatch: pytest.MonkeyPatch, reuse: bool
) -> None:
    closes = in_real_ranks(order, monkeypatch, "close_descriptors", range=(3, 4096), reuse=reuse)
    running = RunningTrial(closes, asdict(controller.server.control_address), sys.executable, "process")
    controller.expect("hello")
    controller.say("start")
    report, epochs = running.end()
    assert (report.outcome, report.epoch, epochs) == (Outcome.PREEMPTED, 1, [1])
    own = [p.read_text() for p in Path(order.directory).glob("scratch/own-*")]
    assert not any(own), "nothing of ours was written into the files that got the numbers"


@pytest.mark.parametrize("launcher", ["process", "hydra"])
def test_a_daemon_that_a_rank_leaves_goes_with_the_launch(
    order: JobSpec, monkeypatch: pytest.MonkeyPatch, launcher: str
) -> None:
    leaves = in_real_ranks(replace(order, interactive=False), monkeypatch, "leave_a_daemon")
    report, _ = RunningTrial(leaves, None, sys.executable, launcher).end()
    assert report.outcome is Outcome.REACHED
    pid = int((Path(order.directory) / "scratch" / "daemon-0").read_text())
    assert identify(pid) is None


def test_a_result_says_how_far_the_ranks_got(order: JobSpec) -> None:
    no_rank, _ = RunningTrial(order, None, program="/no/such/launcher", launcher="process").end()
    assert no_rank.phase is Phase.NO_RANK
    dies = {"die": {"epoch": 1, "rank": 0, "signal": int(signal.SIGABRT)}}
    died, _ = RunningTrial(replace(order, config=dies, directory=f"{order.directory}-2"), None).end()
    assert died.phase is Phase.TRAINING


def test_a_death_by_signal_is_named(order: JobSpec) -> None:
    die = {"epoch": 1, "rank": 0, "signal": int(signal.SIGABRT)}
    report, epochs = RunningTrial(replace(order, config={"die": die}), None).end()
    assert "a rank died by SIGABRT" in report.cause
    assert epochs == [1]


def test_checkpoints_that_nobody_needs_any_more_go_while_a_job_runs(tmp_path: Path, order: JobSpec) -> None:
    made = [tmp_path / "trials" / t / f"attempt-{n}" / "epoch-000001" for t in ("t7", "t8") for n in (1, 2)]
    for path in made:
        path.mkdir(parents=True)
    obsolete = (JobId(TrialId("t7"), 1), JobId(TrialId("t9"), 4))
    there = str(tmp_path / "trials" / "t0" / "attempt-1")
    report, _ = RunningTrial(
        replace(order, directory=there, interactive=False, obsolete=obsolete), None
    ).end()
    assert report.outcome is Outcome.REACHED
    assert [path.exists() for path in made] == [False, True, True, True]


NVML = """\
import time
NVMLError = RuntimeError
nvmlInit = nvmlShutdown = lambda: None
nvmlDeviceGetHandleByIndex = int
nvmlDeviceGetTotalEnergyConsumption = lambda handle: int(1e3 * time.monotonic())  # 1 W
"""
SCRIPT = ("sh", "-c", """echo '{{"loss": 1.0}}' > {report}""")


def test_ranks_on_other_nodes_tell_what_the_job_draws_there(
    order: JobSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job on two nodes neither of which is the agent's; a script that knows nothing of it."""
    (tmp_path / "pynvml.py").write_text(NVML)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ENVIRONMENT['PYTHONPATH']}")
    far = replace(
        order,
        command=SCRIPT,
        interactive=False,
        accelerator="cuda",
        world_size=3,
        slots=("a:0", "a:1", "b:0"),
    )
    result, epochs = RunningTrial(far, None, sys.executable).end()
    assert (result.outcome, epochs) == (Outcome.REACHED, [2]), result.cause
    told = [float(path.read_text()) for path in sorted(Path(far.directory).glob("energy-*"))]
    assert len(told) == 2
    assert result.energy_j == sum(told) > 0.0
