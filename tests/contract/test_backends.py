from __future__ import annotations

from pathlib import Path

from parsl_rasda.backends.multi_site import MultiSiteBackend
from parsl_rasda.orchestration.backend import Backend
from parsl_rasda.orchestration.events import EpochReported, JobEnded, PilotEnded, RequestPilot
from parsl_rasda.testing.backends import BackendContract, EventLog, FakeBackend, Fault
from parsl_rasda.types import JobId, Outcome, PilotId, SiteName, TrialId


class TestFake(BackendContract):
    def build(self, directory: Path) -> Backend:
        return FakeBackend(lambda order, epoch: {"loss": 1.0 / epoch}, directory=directory)


class TestWithoutControl(BackendContract):
    def build(self, directory: Path) -> Backend:
        curve = {"loss": 0.5}
        return FakeBackend(lambda order, epoch: curve, interactive=False, directory=directory)


class TestMultiSite(BackendContract):
    def build(self, directory: Path) -> Backend:
        sites = [self.site, SiteName("other")]
        return MultiSiteBackend(
            {name: FakeBackend(lambda _, epoch: {"loss": 1.0 / epoch}, directory=directory) for name in sites}
        )


class TestFakeWithFaults(BackendContract):
    def build(self, directory: Path) -> Backend:
        fault = Fault(epoch=2, cause="node down")
        return FakeBackend(lambda _, epoch: {"loss": 1.0 / epoch}, faults={JobId(TrialId("bad"), 1): fault})

    def test_a_scripted_fault_ends_the_job_with_its_cause_and_last_checkpoint(self, tmp_path: Path) -> None:
        with self.stage(tmp_path) as stage:
            job = stage.start("bad", until=4, interactive=False)
            first = stage.log.next(EpochReported)
            ended = stage.log.next(JobEnded, job)
            assert (ended.outcome, ended.cause) == (Outcome.LOST, "node down")
            assert ended.checkpoint == (first.checkpoint and first.checkpoint.path)


def test_a_fake_refuses_pilots_as_often_as_it_was_told() -> None:
    runner, log = FakeBackend(lambda _o, _e: {}, refusals=1), EventLog()
    runner.open(log.post)
    runner.request_pilot(RequestPilot(PilotId("a-0"), SiteName("a")))
    assert not log.next(PilotEnded).usable
