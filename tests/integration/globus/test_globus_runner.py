"""A site behind a Globus Compute endpoint keeps the contract of every runner, where it applies."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from backend_tools import eventually

from parsl_rasda.backends.globus.backend import GlobusBackend
from parsl_rasda.orchestration.backend import BackendContext, OpenJob
from parsl_rasda.orchestration.events import (
    EndJob,
    EpochReported,
    JobEnded,
    PilotStarted,
    RequestPilot,
)
from parsl_rasda.study.sites import GlobusSiteSpec
from parsl_rasda.testing.backends import BackendContract, EventLog, RunningPilot
from parsl_rasda.types import Outcome, PilotId, SiteName
from tests.integration.globus.bed import GlobusBed

STAND_IN = Path(__file__).parents[1] / "stand_in_rank.py"

pytestmark = [pytest.mark.globus, pytest.mark.slow]


def site_of(bed: GlobusBed, folder: Path, name: str = "alps", **fields: object) -> GlobusSiteSpec:
    declared = yaml.safe_load(bed.site_file(name, folder / name, python=str(STAND_IN)))
    return GlobusSiteSpec.model_validate({**declared, "checkpoint_margin": 2.0, **fields})


class TestGlobus(BackendContract):
    site = SiteName("alps")

    @pytest.fixture(autouse=True)
    def use(self, bed: GlobusBed, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bed = bed
        bed.await_endpoints()
        for name, value in bed.environment.items():
            monkeypatch.setenv(name, value)

    def build(self, directory: Path) -> GlobusBackend:
        return GlobusBackend(site_of(self.bed, directory), BackendContext(directory / "runner"))

    def test_a_pilot_comes_with_its_slots(self, tmp_path: Path) -> None:
        with self.stage(tmp_path) as stage:
            assert len(stage.pilot.nodes[0].gpus) == 2
            assert not stage.pilot.interactive

    def test_ranks_that_do_not_heed_the_stop_file_are_ended(self, tmp_path: Path) -> None:
        with self.stage(tmp_path) as stage:
            job = stage.start("t0", until=1000, config={"epoch_s": 0.05})
            stage.log.next(EpochReported)
            stage.backend.end_job(EndJob(job, "stopped"))
            assert stage.log.next(JobEnded).outcome is Outcome.PREEMPTED

    def test_the_service_knows_what_a_site_that_is_down_cannot_tell(self, tmp_path: Path) -> None:
        """A controller dies; its job ends; then its site goes down before the next controller comes."""
        first, second = (self.build(tmp_path) for _ in range(2))
        log, waiting = EventLog(), self.bed.waiting()
        first.open(log.post)
        first.request_pilot(RequestPilot(PilotId("local-0"), self.site))
        job = RunningPilot(first, log, log.next(PilotStarted), tmp_path).start("t0", until=2)
        attempt = eventually(lambda: list(tmp_path.glob("alps/*/trials/t0/attempt-1")), deadline_s=60.0)[0]
        die(first)
        eventually(
            lambda: (attempt / "report.json").exists() and self.bed.waiting() <= waiting, deadline_s=60.0
        )
        self.bed.kill_endpoint("alps")
        try:
            eventually(lambda: "alps" not in self.bed.online(), deadline_s=60.0)
            with second.hold():
                found = second.recover([OpenJob(job, self.site, 0)])
        finally:
            self.bed.start_endpoint("alps")
        assert not log.of(job)
        assert [e.epoch for e in found if isinstance(e, EpochReported)] == [1, 2]
        assert isinstance(found[-1], JobEnded)
        assert found[-1].outcome is Outcome.REACHED


def die(runner: GlobusBackend) -> None:
    """Let a runner end as if its process were killed, as far as anybody else can see."""
    assert runner._actor is not None
    runner._actor.end()
    runner._tasks.close()
