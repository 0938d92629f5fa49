"""A pilot that falls silent: the batch system is asked once, however many jobs ran there."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from parsl_rasda.agent import job as agent_job
from parsl_rasda.agent import node_probe
from parsl_rasda.backends.parsl.backend import ParslBackend
from parsl_rasda.backends.parsl.pilot_source import ExecutorLabel, PilotExit
from parsl_rasda.orchestration.backend import BackendContext
from parsl_rasda.orchestration.events import JobEnded, PilotEnded, PilotStarted, RequestPilot
from parsl_rasda.protocol import JobSpec
from parsl_rasda.study.parsl_site import ParslSiteSpec
from parsl_rasda.testing.backends import EventLog
from parsl_rasda.types import NodeName, NodeSlots, Outcome, PilotId, Placement, SiteName, TrialId

LABEL = ExecutorLabel("site-0")
JOBS = 8


class ManagerLost(Exception):  # noqa: N818  the name is how it is recognised
    """Named as Parsl names its own."""


class SilentPilots:
    """A pilot whose jobs never return by themselves, and a batch system that knows nothing of its end."""

    addresses, is_local = ("127.0.0.1",), False

    def __init__(self) -> None:
        self.jobs: list[Future[Any]] = []
        self.polls = 0
        self.may_answer = threading.Event()
        self.ended: list[ExecutorLabel] = []

    def walltime(self, label: ExecutorLabel) -> None:
        return None

    def start(self) -> ExecutorLabel:
        return LABEL

    def end(self, label: ExecutorLabel) -> None:
        self.ended.append(label)

    def submit(
        self, label: ExecutorLabel, function: Callable[..., Any], *arguments: Any, **named: Any
    ) -> Future[Any]:
        task: Future[Any] = Future()
        if function is agent_job.describe_allocation:
            task.set_result(node_probe.describe_allocation("none") | {"nodes": ["n0"]})
        else:
            self.jobs.append(task)
        return task

    def poll(self, label: ExecutorLabel) -> PilotExit | None:
        self.polls += 1
        assert self.may_answer.wait(60)
        return None

    def close(self) -> None:
        self.may_answer.set()


@pytest.fixture
def pilots() -> SilentPilots:
    return SilentPilots()


@pytest.fixture
def log() -> EventLog:
    return EventLog()


@pytest.fixture
def runner(tmp_path: Path, pilots: SilentPilots, log: EventLog) -> Iterator[ParslBackend]:
    site = {
        "name": "site",
        "provider": {"type": "SlurmProvider"},
        "accelerator": "none",
        "gpus_per_node": JOBS,
    }
    context = BackendContext(tmp_path / "runner")
    runner = ParslBackend(ParslSiteSpec.model_validate(site), context, lambda *_: pilots)
    runner.open(log.post)
    yield runner
    runner.close()


def order(number: int, directory: Path) -> JobSpec:
    return JobSpec(
        study="s",
        trial=TrialId(f"t{number}"),
        attempt=1,
        config={},
        directory=str(directory / f"t{number}"),
        seed=1,
        metric="loss",
        mode="min",
        epoch=0,
        until=2,
        max_epochs=8,
        schedule=((0, 1),),
        world_size=1,
        python="module:function",
        accelerator="none",
    )


def test_eight_jobs_of_a_silent_pilot_cost_one_poll(
    runner: ParslBackend, pilots: SilentPilots, log: EventLog, tmp_path: Path
) -> None:
    pilot, site = PilotId("site-0"), SiteName("site")
    runner.request_pilot(RequestPilot(pilot, site))
    log.next(PilotStarted)
    assert runner._running is not None
    actor = runner._running.actor
    for number in range(JOBS):
        slots = (NodeSlots(NodeName("n0"), (number,)),)
        runner.start_job(order(number, tmp_path), Placement(site, pilot, slots))
    actor.call(lambda: None)
    for job in pilots.jobs:
        job.set_exception(ManagerLost("loss of manager"))
    actor.call(lambda: None)
    pilots.may_answer.set()
    ended = [log.next(JobEnded) for _ in range(JOBS)]
    assert {e.outcome for e in ended} == {Outcome.LOST}
    assert "loss of manager" in log.next(PilotEnded).cause
    assert pilots.polls == 1, "each may take fifteen seconds, in the one thread that also gives pilots back"
    assert pilots.ended == [LABEL]
