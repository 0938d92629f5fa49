"""A real Parsl pilot with real mpiexec launches; only the training is a stand-in."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from backend_tools import eventually, local_site, mark_of, processes_of

from parsl_rasda.agent import orphan_reaper
from parsl_rasda.backends.registry import build_backend
from parsl_rasda.orchestration.backend import Backend, BackendContext
from parsl_rasda.orchestration.events import (
    ContinueJob,
    EndJob,
    EpochReported,
    JobEnded,
    JobStarted,
    PilotEnded,
    PilotLost,
    PilotStarted,
    ReleasePilot,
    RequestPilot,
)
from parsl_rasda.testing.backends import BackendContract, EventLog, RunningPilot
from parsl_rasda.types import JobId, Outcome, PilotId, SiteName

pytestmark = [pytest.mark.parsl, pytest.mark.mpi, pytest.mark.slow]


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Backend, str]]:
    """One pilot for all tests here: each adopts it, as the stages of a pipeline do."""
    run_dir = tmp_path_factory.mktemp("run")
    backend = build_backend(local_site(checkpoint_margin=1.0), BackendContext(run_dir))
    with backend.hold():
        yield backend, mark_of(run_dir)


class TestParsl(BackendContract):
    @pytest.fixture(autouse=True)
    def _held(self, held: tuple[Backend, str]) -> None:
        self.held, self.mark = held

    def build(self, directory: Path) -> Backend:
        return self.held

    def test_three_jobs_fill_four_slots_and_stream_their_epochs(self, tmp_path: Path) -> None:
        with self.stage(tmp_path) as stage:
            jobs = [stage.start("a"), stage.start("b"), stage.start("c", width=2)]
            for job in jobs:
                stage.log.next(JobStarted, job)
                epoch = stage.log.next(EpochReported, job)
                stage.backend.continue_job(ContinueJob(job, until=epoch.epoch + 3, replicas=2))
            for job in jobs:
                eventually(lambda job=job: len(epochs_of(stage.log, job)) == 2)
                stage.backend.end_job(EndJob(job, "stopped"))
                assert stage.log.next(JobEnded, job).outcome is Outcome.REACHED
            slots = [stage.log.next(EpochReported, job).slots for job in jobs]
            assert [len(s) for s in slots] == [1, 1, 2]

    def test_a_rank_killed_from_outside_is_a_loss_that_names_the_signal(self, tmp_path: Path) -> None:
        with self.stage(tmp_path) as stage:
            die = {"epoch": 2, "rank": 1, "signal": int(signal.SIGKILL)}
            job = stage.start("t0", width=2, interactive=False, until=99, config={"die": die})
            ended = stage.log.next(JobEnded, job)
            assert ended.outcome is Outcome.LOST
            assert "a rank died by SIGKILL" in ended.cause
            saved = epochs_of(stage.log, job)[-1].checkpoint
            assert ended.checkpoint == (saved and saved.path)

    def test_an_epoch_that_only_reached_the_disk_is_reported_before_the_end(self, tmp_path: Path) -> None:
        with self.stage(tmp_path) as stage:
            die = {"epoch": 1, "rank": 0, "signal": int(signal.SIGSEGV)}  # before it says a word of it
            job = stage.start("t0", config={"die": die})
            assert "SIGSEGV" in stage.log.next(JobEnded, job).cause
            assert [type(e) for e in stage.log.of(job)] == [JobStarted, EpochReported, JobEnded]

    def test_a_raise_in_the_users_code_fails_with_its_own_line(self, tmp_path: Path) -> None:
        with self.stage(tmp_path) as stage:
            job = stage.start("t0", config={"raise": {"epoch": 1}})
            ended = stage.log.next(JobEnded, job)
            assert (ended.outcome, ended.cause) == (Outcome.FAILED, "ValueError: the user's own line")

    def test_a_job_in_mid_epoch_leaves_as_preempted(self, tmp_path: Path) -> None:
        with self.stage(tmp_path) as stage:
            job = stage.start("t0", config={"epoch_s": 600})
            stage.log.next(JobStarted, job)
            stage.backend.end_job(EndJob(job, "released"))
            assert stage.log.next(JobEnded, job).outcome is Outcome.PREEMPTED

    def test_a_job_without_a_channel_hears_of_its_end_by_a_signal(self, tmp_path: Path) -> None:
        with self.stage(tmp_path) as stage:
            job = stage.start("t0", width=2, interactive=False, config={"epoch_s": 600})
            stage.log.next(JobStarted, job)
            stage.backend.end_job(EndJob(job, "released"))
            assert stage.log.next(JobEnded, job).outcome is Outcome.PREEMPTED

    def test_a_job_that_will_not_leave_is_killed(self, tmp_path: Path) -> None:
        with self.stage(tmp_path) as stage:
            job = stage.start("t0", width=2, config={"epoch_s": 600, "deaf": True})
            stage.log.next(JobStarted, job)
            mark = f"{self.mark}/{job}"
            ranks = orphan_reaper.marked(orphan_reaper.JOB_VARIABLE, mark)
            told_at = time.monotonic()
            stage.backend.end_job(EndJob(job, "stopped"))
            ended = stage.log.next(JobEnded, job)
            assert (ended.outcome, ended.cause) == (Outcome.PREEMPTED, "stopped; they did not end in time")
            assert time.monotonic() - told_at < 20, "the site's margin is a second"
            assert len(ranks) > 2
            assert not orphan_reaper.marked(orphan_reaper.JOB_VARIABLE, mark)

    def test_a_killed_worker_takes_its_launch_along(self, tmp_path: Path) -> None:
        with self.stage(tmp_path) as stage:
            job = stage.start("t0", width=2, config={"epoch_s": 600})
            stage.log.next(JobStarted, job)
            mark = f"{self.mark}/{job}"
            launcher = min(p.pid for p in orphan_reaper.marked(orphan_reaper.JOB_VARIABLE, mark))
            os.kill(parent_of(launcher), signal.SIGKILL)
            ended = stage.log.next(JobEnded, job)
            assert not orphan_reaper.marked(orphan_reaper.JOB_VARIABLE, mark)
            # Its ranks got SIGTERM and may have had the time to save and say so.
            assert ended.outcome in {Outcome.LOST, Outcome.PREEMPTED}
            again = stage.start("t1")
            assert stage.log.next(EpochReported, again).epoch == 1

    def test_a_stage_runs_beside_jobs_that_fill_all_slots(self, tmp_path: Path) -> None:
        with self.stage(tmp_path) as stage:
            job = stage.start("t0", width=4)
            stage.log.next(EpochReported, job)
            assert self.held.submit_stage(self.call(Path(__file__).as_uri())).result(30)["target"]

    def test_an_epoch_is_answered_within_milliseconds(self, tmp_path: Path) -> None:
        with self.stage(tmp_path) as stage:
            job = stage.start("t0", width=2, config={"epoch_s": 0.0})
            stage.log.next(EpochReported)
            rounds = []
            for _ in range(50):
                asked = time.perf_counter()
                stage.backend.continue_job(ContinueJob(job, until=99, replicas=2))
                stage.log.next(EpochReported)
                rounds.append(time.perf_counter() - asked)
            assert sorted(rounds)[25] < 0.1


def is_pool(pid: int) -> bool:
    try:
        return "parsl-rasda-workers" in " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:  # it has gone, or is a zombie
        return False


def helper_of(pool: int) -> int:
    """Return the process that keeps what the workers of a pool share: the first that its fork server made."""
    (server,) = [
        p for p in psutil.Process(pool).children() if "multiprocessing.forkserver" in str(p.cmdline())
    ]
    return min(server.children(), key=lambda p: (p.create_time(), p.pid)).pid


@pytest.mark.parametrize("killed", ["pool", "helper"])
def test_a_pilot_that_dies_ends_its_jobs_and_the_next_one_uses_its_lane(killed: str, tmp_path: Path) -> None:
    """A pool that has lost its helper says that it is well, and none of its jobs ever starts or ends."""
    backend, log = build_backend(local_site(), BackendContext(tmp_path)), EventLog()
    backend.open(log.post)
    try:
        backend.request_pilot(RequestPilot(PilotId("local-0"), SiteName("local")))
        started = log.next(PilotStarted)
        job = RunningPilot(backend, log, started, tmp_path).start("t0", width=2, config={"epoch_s": 600})
        log.next(JobStarted, job)
        pools = [pid for pid in processes_of(mark_of(tmp_path)) if is_pool(pid)]
        for pid in pools if killed == "pool" else [helper_of(min(pools))]:
            os.kill(pid, signal.SIGKILL)
        ended = log.next(PilotEnded)
        assert ended.usable
        assert isinstance(log.of(job)[-1], JobEnded)
        kinds = [type(e) for e in log.events if isinstance(e, PilotLost | JobEnded | PilotEnded)]
        assert kinds == [PilotLost, JobEnded, PilotEnded], "nothing is started there meanwhile"
        backend.request_pilot(RequestPilot(PilotId("local-1"), SiteName("local")))
        assert log.next(PilotStarted).pilot == "local-1"
    finally:
        backend.close()


def test_a_pool_that_outlives_its_pilot_ends_and_is_not_taken_for_the_next_ones(tmp_path: Path) -> None:
    """As where a batch system ends the shell of a job only: the pool would answer before the next one's."""
    apart = {"type": "LocalProvider", "worker_init": "set -m"}  # nothing that the shell starts ends with it
    site = local_site(provider=apart, heartbeat_threshold=3)
    backend, log = build_backend(site, BackendContext(tmp_path)), EventLog()
    backend.open(log.post)
    try:
        backend.request_pilot(RequestPilot(PilotId("local-0"), SiteName("local")))
        log.next(PilotStarted)
        before = pools_of(tmp_path)
        backend.release_pilot(ReleasePilot(PilotId("local-0")))
        log.next(PilotEnded)
        assert before & pools_of(tmp_path), "it lives on"
        backend.request_pilot(RequestPilot(PilotId("local-1"), SiteName("local")))
        started = log.next(PilotStarted)
        eventually(lambda: not before & pools_of(tmp_path), "it ends")
        job = RunningPilot(backend, log, started, tmp_path).start("t0")
        assert log.next(EpochReported, job).epoch == 1
    finally:
        backend.close()


def pools_of(run_dir: Path) -> set[int]:
    return {pid for pid in processes_of(mark_of(run_dir)) if is_pool(pid)}


def test_a_pilot_that_cannot_start_says_why(tmp_path: Path) -> None:
    site = local_site(provider={"type": "LocalProvider", "worker_init": "echo no such module >&2; exit 3"})
    backend, log = build_backend(site, BackendContext(tmp_path)), EventLog()
    backend.open(log.post)
    try:
        backend.request_pilot(RequestPilot(PilotId("local-0"), SiteName("local")))
        ended = log.next(PilotEnded)
        assert not ended.usable
        assert "exit 3" in ended.cause
        assert "no such module" in ended.cause
    finally:
        backend.close()


def test_an_unknown_provider_is_an_error_that_lists_those_there_are(tmp_path: Path) -> None:
    site = local_site(provider={"type": "SlurpProvider"}, address="127.0.0.1")
    backend, log = build_backend(site, BackendContext(tmp_path)), EventLog()
    backend.open(log.post)
    try:
        backend.request_pilot(RequestPilot(PilotId("local-0"), SiteName("local")))
        ended = log.next(PilotEnded)
        assert "SlurmProvider" in ended.cause
    finally:
        backend.close()


def epochs_of(log: EventLog, job: JobId) -> list[EpochReported]:
    return [event for event in log.of(job) if isinstance(event, EpochReported)]


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
