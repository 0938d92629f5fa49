"""A site whose answers are lost, late or repeated: told by a link without a service, on a real disk."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from backend_tools import eventually

from parsl_rasda.agent import endpoint_tasks, orphan_reaper, pilot_lease
from parsl_rasda.backends.globus.backend import GlobusBackend
from parsl_rasda.backends.globus.client import (
    EndpointClient,
    PilotLostError,
    Task,
    TooLargeError,
    UnreachableError,
)
from parsl_rasda.doctor.examination import Doctor
from parsl_rasda.doctor.findings import Rating
from parsl_rasda.errors import InvalidSettingError, StageFailedError
from parsl_rasda.orchestration.backend import BackendContext, OpenJob, StageTask
from parsl_rasda.orchestration.events import (
    EpochReported,
    Event,
    JobEnded,
    PilotEnded,
    PilotLost,
    PilotStarted,
    ReleasePilot,
    RequestPilot,
    SiteDegraded,
)
from parsl_rasda.protocol import JobSpec
from parsl_rasda.study.sites import GlobusSiteSpec
from parsl_rasda.testing.backends import EventLog
from parsl_rasda.types import JobId, NodeSlots, Outcome, PilotId, Placement, SiteName, TrialId
from parsl_rasda.workflow.tasks import call_python

EMULATED = "workflows.emulated.train:train"
ENDPOINT = "11111111-0000-4000-8000-000000000000"


@pytest.fixture(autouse=True)
def claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the node, which this process stands for, a folder of claims of its own."""
    monkeypatch.setattr(pilot_lease, "FOLDER", tmp_path / "claims")
    return tmp_path / "claims"


class DeafLink(EndpointClient):
    """Runs tasks at once, in this process: jobs beside the runner, all else before it goes on.

    What comes of them is the test's to say.

    Attributes:
        runs: Of a call, whether it comes to the site; those that do not are in `lost`.
        says: Of a call, whether its result arrives; those that do not are in `kept`.
        found: What `describe` finds, where that is to differ from what is there.
        block: The pilot that answers looks, if that is to be another one.
    """

    def __init__(self, site: GlobusSiteSpec, group: UUID) -> None:
        self.says: Callable[[str], bool] = lambda call: True
        self.runs: Callable[[str], bool] = lambda call: True
        self.is_online: bool | Exception = True
        self.kept: list[tuple[Task, Any]] = []
        self.found: dict[str, Any] = {}
        self.block: str | None = None
        self.ending = ""
        self.sent: list[str] = []
        self.lost: list[tuple[str, dict[str, Any]]] = []
        self.asked: list[dict[str, Any]] = []
        self.workers = ThreadPoolExecutor(8)

    def submit(self, call: str, arguments: Mapping[str, Any]) -> Task:
        self.sent.append(call)
        task, told = Task(), json.loads(json.dumps(arguments))
        self.asked.append(told)
        task.inner = Accepted()
        if isinstance(self.is_online, Exception):
            task.set_exception(self.is_online)
        elif call == self.ending:
            self.ending = ""
            task.set_exception(PilotLostError(ENDPOINT))
        elif not self.runs(call):
            self.lost.append((call, told))
        elif call == "run":
            self.workers.submit(self.work, task, call, told)
        else:
            self.work(task, call, told)
        return task

    def break_off(self, call: str) -> None:
        """Let the next task of a kind end with its pilot."""
        self.ending = call

    def work(self, task: Task, call: str, told: dict[str, Any]) -> None:
        result = endpoint_tasks.answer(call, told)
        found = {**result, **self.found} if call == "describe" else result
        if call == "poll" and self.block is not None:
            found = {**found, "block": self.block}
        if self.says(call):
            task.set_result(found)
        else:
            self.kept.append((task, found))

    def ask_whether_online(self) -> Future[bool]:
        state: Future[bool] = Future()
        if isinstance(self.is_online, Exception):
            state.set_exception(self.is_online)
        else:
            state.set_result(self.is_online)
        return state

    def mend(self) -> None:
        pass

    def close(self) -> None:
        self.workers.shutdown(wait=True)


class Accepted:
    task_id = "accepted"


class World:
    """A runner with a deaf link, and what it posts."""

    def __init__(self, folder: Path, *, study: str = "", **fields: Any) -> None:
        declared = {
            "name": "alps",
            "endpoint_id": ENDPOINT,
            "work_dir": str(folder / "disk"),
            "accelerator": "none",
            "gpus_per_node": 2,
            "mpi_launcher": "process",
            "python": sys.executable,
            "heartbeat_threshold": 3.0,
            **fields,
        }
        self.folder, self.log, self.links = folder, EventLog(60.0), []
        self.site = GlobusSiteSpec.model_validate(declared)
        self.runner = GlobusBackend(
            self.site, BackendContext(folder / "runner", study=study), connect=self.connect
        )

    def connect(self, site: GlobusSiteSpec, group: UUID) -> EndpointClient:
        self.links.append(DeafLink(site, group))
        return self.links[-1]

    @property
    def link(self) -> DeafLink:
        return self.links[-1]

    def ask(self) -> None:
        self.runner.request_pilot(RequestPilot(PilotId("alps-0"), SiteName("alps")))

    def call(self, target: str, **arguments: Any) -> Future[Any]:
        task = StageTask(SiteName("alps"), "stage", "0000", call_python, target, arguments, key=target)
        return self.runner.submit_stage(task)

    def lose_the_service(self) -> None:
        self.link.is_online = UnreachableError(ENDPOINT, "no route")

    def start(self, on_pilot: Callable[[], None] = lambda: None, **fields: Any) -> JobId:
        pilot = self.log.next(PilotStarted)
        on_pilot()
        return self.send(pilot, **fields)

    def send(self, pilot: PilotStarted, trial: str = "0000", **fields: Any) -> JobId:
        slot = NodeSlots(pilot.nodes[0].node, (0,))
        placement = Placement(SiteName("alps"), pilot.pilot, (slot,))
        order = JobSpec(
            study="s",
            trial=TrialId(trial),
            config={"lr": 0.01},
            directory="elsewhere",
            seed=1,
            metric="val_loss",
            mode="min",
            schedule=((0, 1),),
            world_size=1,
            attempt=1,
            epoch=0,
            slots=placement.slots,
            accelerator="none",
            **{"until": 2, "max_epochs": 2, "inputs": {"epoch_s": 0.0}, "python": EMULATED, **fields},
        )
        self.runner.start_job(order, placement)
        return order.job


@contextmanager
def opened(world: World) -> Iterator[World]:
    world.runner.open(world.log.post)
    try:
        yield world
    finally:
        world.runner.close()


def describe(folder: Path, term: int = 1) -> dict[str, Any]:
    return endpoint_tasks.describe("none", {"folder": str(folder), "mark": "nobody", "term": term})


def ends(log: EventLog) -> list[Event]:
    return [event for event in log.events if isinstance(event, JobEnded)]


def test_a_result_that_is_never_fetched_is_found_on_the_sites_disk(tmp_path: Path) -> None:
    with opened(World(tmp_path)) as world:
        world.link.says = lambda call: call != "run"
        world.ask()
        job = world.start()
        assert [world.log.next(EpochReported).epoch for _ in range(2)] == [1, 2]
        assert world.log.next(JobEnded, job).outcome is Outcome.REACHED
        (late,) = eventually(lambda: world.link.kept)
        late[0].set_result(late[1])
    assert len(ends(world.log)) == 1, "its own result came later and was passed over"


def test_a_job_whose_task_was_lost_on_the_way_is_lost_and_says_so(tmp_path: Path) -> None:
    with opened(World(tmp_path)) as world:
        world.link.runs = lambda call: call != "run"
        world.ask()
        ended = world.log.next(JobEnded, world.start())
    assert ended.outcome is Outcome.LOST
    assert "no worker of the endpoint took it within 9 s" in ended.cause


def test_a_job_that_was_taken_and_dies_is_not_said_to_have_found_no_worker(tmp_path: Path) -> None:
    with opened(World(tmp_path)) as world:
        world.ask()
        job = world.start(inputs={"epoch_s": 60.0})

        def is_to_be_given_up_if_nobody_has_it() -> bool:
            return any(one["abandon"] for asked in world.link.asked for one in asked.get("jobs", []))

        eventually(is_to_be_given_up_if_nobody_has_it)
        mark = next(asked["mark"] for asked in world.link.asked if "order" in asked)
        for process in orphan_reaper.marked(orphan_reaper.JOB_VARIABLE, mark):
            with suppress(ProcessLookupError):  # one takes the others along
                os.kill(process.pid, signal.SIGKILL)
        ended = world.log.next(JobEnded, job)
    assert ended.outcome is Outcome.LOST
    assert "no worker" not in ended.cause


@pytest.mark.parametrize(("is_online", "outcome"), [(False, Outcome.LOST), (True, Outcome.PREEMPTED)])
def test_a_site_that_never_answers_again_is_given_up_with_its_jobs(
    tmp_path: Path, is_online: bool, outcome: Outcome
) -> None:
    """If the endpoint is online, its pilot has ended, by scancel perhaps: that costs no retry."""
    with opened(World(tmp_path)) as world:
        world.link.runs = lambda call: call == "describe"
        world.ask()
        job = world.start()
        world.link.is_online = is_online
        ended = world.log.next(PilotEnded)
        world.link.is_online = True
        assert ended.usable
        assert "has not answered for 9 s" in ended.cause
        assert ended.cause.endswith("is online: its pilot has ended") is is_online
        kinds = [type(e) for e in world.log.events if isinstance(e, PilotLost | JobEnded | PilotEnded)]
        assert kinds == [PilotLost, JobEnded, PilotEnded], "nothing is started there meanwhile"
        assert [event.outcome for event in world.log.of(job)] == [outcome]
        task = next(task for task in world.link.lost if task[0] == "run")
        world.ask()
        world.log.next(PilotStarted)
    (late,) = endpoint_tasks.answer(*task)["jobs"]
    assert late["report"]["cause"] == "a later handshake has been there before it started"
    assert not late["epochs"], "should its task come after all, it does not begin"


def test_a_pilot_that_the_endpoint_has_replaced_is_given_up_without_blame_for_its_jobs(
    tmp_path: Path,
) -> None:
    with opened(World(tmp_path)) as world:
        world.ask()
        job = world.start(inputs={"epoch_s": 60.0})
        eventually(lambda: list((tmp_path / "disk").glob("*/trials/0000/attempt-1/heartbeat")))
        world.link.block = "another"
        ended = world.log.next(PilotEnded)
        assert ended.usable
        assert ended.cause == "the endpoint has replaced its pilot by another one"
        assert [event.outcome for event in world.log.of(job)] == [Outcome.PREEMPTED]
        world.link.block = None
        world.ask()
        world.log.next(PilotStarted)
        (stop,) = (tmp_path / "disk").glob("*/trials/0000/attempt-1/stop")
        assert "given it up" in stop.read_text(), "what still ran there has been stopped"


@pytest.mark.parametrize("call", ["run", "poll"])
def test_what_ends_with_its_pilot_pays_for_nothing(tmp_path: Path, call: str) -> None:
    with opened(World(tmp_path)) as world:
        world.ask()
        job = world.start(on_pilot=lambda: world.link.break_off(call), inputs={"epoch_s": 60.0})
        ended = world.log.next(PilotEnded)
        assert ended.usable
        assert ended.cause == f"endpoint {ENDPOINT}: its pilot has ended"
        assert [event.outcome for event in world.log.of(job)] == [Outcome.PREEMPTED]
        world.ask()
        world.log.next(PilotStarted)


def test_a_handshake_whose_pilot_ends_is_made_with_the_next_one(tmp_path: Path) -> None:
    with opened(World(tmp_path)) as world:
        world.link.break_off("describe")
        world.ask()
        assert world.log.next(PilotStarted)
    assert world.link.sent.count("describe") == 2


def test_a_pilot_that_was_given_back_near_its_end_is_not_offered_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(World(tmp_path)) as world:
        world.ask()
        first = world.log.next(PilotStarted)
        world.runner.release_pilot(ReleasePilot(first.pilot))
        world.log.next(PilotEnded)
        world.ask()
        eventually(lambda: world.link.sent.count("describe") > 2)
        assert [type(event) for event in world.log.events].count(PilotStarted) == 1
        monkeypatch.setenv("PARSL_WORKER_POOL_ID", "the one after it")
        world.log.next(PilotStarted)


def test_two_runs_have_a_pilot_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PARSL_WORKER_POOL_ID", "pool")
    with opened(World(tmp_path / "1", study="heat")) as first, opened(World(tmp_path / "2")) as second:
        first.ask()
        job = first.start(inputs={"epoch_s": 0.5})
        second.ask()
        told = second.log.next(SiteDegraded)
        assert told.cause.startswith("site alps: another study (heat, run ")
        assert told.cause.endswith("a pilot of its own with `study: NAME` in user_endpoint_config")
        assert first.log.next(JobEnded, job).outcome is Outcome.REACHED
        asked = second.link.sent.count("describe")
        eventually(lambda: second.link.sent.count("describe") > asked)
        assert len(second.log.events) == 1, "it waits, and has said so once"
        first.runner.close()
        job = second.start()
        assert second.log.next(JobEnded, job).outcome is Outcome.REACHED
    assert caplog.text.count("another study") == 1


def test_a_pilot_that_another_run_has_got_meanwhile_is_given_up_and_waited_for(
    tmp_path: Path, claims: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARSL_WORKER_POOL_ID", "pool")
    with opened(World(tmp_path)) as world:
        world.ask()
        pilot = world.log.next(PilotStarted)
        for claim in claims.glob("pilot-*"):
            claim.unlink()  # it had no job for long
        assert not pilot_lease.acquire("pool", "theirs", "heat")
        job = world.send(pilot)
        ended = world.log.next(PilotEnded)
        assert (ended.usable, ended.cause) == (True, "another study (heat, run theirs) uses this pilot")
        assert [event.outcome for event in world.log.of(job)] == [Outcome.PREEMPTED]
        world.ask()
        assert "another study" in world.log.next(SiteDegraded).cause
        pilot_lease.release("pool", "theirs")
        assert world.log.next(PilotStarted)


def test_jobs_wait_for_a_worker_where_there_are_fewer_workers_than_slots(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(World(tmp_path, heartbeat_threshold=6.0)) as world:
        world.link.found = {"workers": 3}
        world.ask()
        pilot = world.log.next(PilotStarted)
        jobs = [world.send(pilot, trial, inputs={"epoch_s": 0.5}) for trial in ("0000", "0001")]
        assert [(e.outcome, e.cause) for e in (world.log.next(JobEnded, job) for job in jobs)] == [
            (Outcome.REACHED, "")
        ] * 2
        started = [path.stat().st_mtime for path in sorted((tmp_path / "disk").rglob("claim"))]
        ended = [path.stat().st_mtime for path in sorted((tmp_path / "disk").rglob("report.json"))]
    assert started[1] >= ended[0]
    assert "3 workers, enough for 1 trials at a time, and 2 slots for 2; raise `trials`" in caplog.text


def test_jobs_leave_stages_their_workers_and_both_come_to_their_end(tmp_path: Path) -> None:
    with opened(World(tmp_path)) as world:
        world.link.found = {"workers": 4}
        world.ask()
        pilot = world.log.next(PilotStarted)
        world.link.says = lambda call: "stage" not in call  # it lasts
        stage = world.call("statistics:mean", data=[1, 3])
        jobs = [world.send(pilot, trial, inputs={"epoch_s": 0.5}) for trial in ("0000", "0001")]
        world.log.next(EpochReported)
        assert world.link.sent.count("run") == 1, "two workers answer questions, one has the stage"
        world.link.says = lambda call: True
        assert stage.result(60)["result"] == 2
        assert {world.log.next(JobEnded, job).outcome for job in jobs} == {Outcome.REACHED}


def test_a_site_offers_no_more_gpus_than_it_has_and_trials_leave_before_its_walltime_ends(
    tmp_path: Path,
) -> None:
    options = {"walltime": "01:00:00"}
    declared = {"gpus_per_node": 8, "accelerator": "cuda", "user_endpoint_config": options}
    with opened(World(tmp_path, checkpoint_margin=100.0, **declared)) as world:
        world.link.found = {"gpus": 4, "age_s": 600.0, "deadline": None}
        world.ask()
        pilot = world.log.next(PilotStarted)
    assert len(pilot.nodes[0].gpus) == 4
    assert pilot.deadline == pytest.approx(pilot.at + 3600.0 - 600.0 - 100.0)


def test_a_handshake_that_comes_again_beside_running_jobs_leaves_them_alone(tmp_path: Path) -> None:
    with opened(World(tmp_path)) as world:
        world.ask()
        job = world.start(inputs={"epoch_s": 1.0})
        world.log.next(EpochReported)
        (claim,) = (tmp_path / "disk").glob("*/trials/0000/attempt-1/claim")
        folder = str(claim.parents[3])
        sender = {"folder": folder, "mark": Path(folder).name, "term": int(claim.read_text())}
        endpoint_tasks.describe("none", sender)
        assert not (claim.parent / "stop").exists()
        assert world.log.next(JobEnded, job).outcome is Outcome.REACHED


def test_a_handshake_that_could_not_be_sent_is_sent_as_soon_as_the_service_answers(tmp_path: Path) -> None:
    with opened(World(tmp_path, heartbeat_threshold=5.0)) as world:
        world.lose_the_service()
        world.ask()
        eventually(lambda: "describe" in world.link.sent)
        world.link.is_online = True
        assert world.log.next(PilotStarted)
    assert world.link.sent.count("describe") == 2, "not after ten times the silence that is borne"


def test_while_the_service_is_away_nothing_is_given_up(tmp_path: Path) -> None:
    with opened(World(tmp_path)) as world:
        world.link.says = lambda call: call != "run"
        world.ask()
        job = world.start(on_pilot=world.lose_the_service)
        eventually(lambda: world.link.sent.count("run") > 3)  # it is sent again and again
        assert not ends(world.log)
        world.link.is_online = True
        assert world.log.next(JobEnded, job).outcome is Outcome.REACHED


@pytest.mark.parametrize("where", ["disk", "store"])
def test_an_attempt_that_is_cut_off_keeps_what_its_controller_would_go_on_from(
    tmp_path: Path, where: str
) -> None:
    share_at = f"file://{tmp_path}/store/attempt-1" if where == "store" else None
    with opened(World(tmp_path)) as world:
        world.link.runs = lambda call: call != "poll"  # nobody hears of its epochs
        world.link.says = lambda call: call != "run"
        world.ask()
        world.start(until=5, max_epochs=5, share_at=share_at, inputs={"epoch_s": 0.3})
        found = tmp_path / where
        eventually(lambda: list((tmp_path / "disk").glob("*/trials/0000/attempt-1/report.json")))
    assert {path.name for path in found.rglob("epoch-*")} == {f"epoch-{n:06d}" for n in range(1, 6)}


def test_an_attempt_that_is_heard_of_keeps_no_more_than_it_must(tmp_path: Path) -> None:
    with opened(World(tmp_path)) as world:
        world.ask()
        job = world.start(until=6, max_epochs=6, inputs={"epoch_s": 0.7})
        assert world.log.next(JobEnded, job).outcome is Outcome.REACHED
    kept = {path.name for path in (tmp_path / "disk").rglob("epoch-*")}
    assert {"epoch-000005", "epoch-000006"} <= kept
    assert "epoch-000001" not in kept


def test_a_stage_whose_answers_are_lost_is_answered_from_the_sites_disk(tmp_path: Path) -> None:
    with opened(World(tmp_path)) as world:
        arrived: list[str] = []

        def arrives(call: str) -> bool:  # but for the first of each kind
            arrived.append(call)
            return arrived.count(call) > 1

        world.link.says = arrives
        assert world.call("statistics:mean", data=[1, 3]).result(60)["result"] == 2
    assert arrived == ["stage", "poll_stages", "poll_stages", "stage"]


def test_the_next_controller_waits_for_a_stage_that_a_dead_one_has_begun(tmp_path: Path) -> None:
    made = str(tmp_path / "made")
    with opened(World(tmp_path)) as world:
        world.link.says = lambda call: call != "stage"
        abandoned = world.call("os:mkdir", path=made)
        eventually(lambda: world.link.kept)
        with opened(World(tmp_path)) as other:
            assert other.call("os:mkdir", path=made).result(60)["result"] is None, "made once"
            again = other.call("os:mkdir", path=made)
            with pytest.raises(StageFailedError, match="FileExistsError"):
                again.result(60)
    assert abandoned.done()


def test_a_stage_that_died_with_its_controller_is_begun_again(tmp_path: Path) -> None:
    with opened(World(tmp_path)) as world:
        world.link.runs = lambda call: call != "stage"
        world.call("statistics:mean", data=[1, 3])
        _, sent = eventually(lambda: world.link.lost)[0]
        folder = Path(sent["folder"])
        folder.mkdir(parents=True)
        (folder / "claim").write_text("a dead one")
        (folder / "heartbeat").write_text(str(time.time() - 60))
        with opened(World(tmp_path)) as other:
            assert other.call("statistics:mean", data=[1, 3]).result(60)["result"] == 2
    assert "begun again" in (folder / "stop").read_text()


def test_a_controller_that_leaves_ends_its_stages(tmp_path: Path) -> None:
    with opened(World(tmp_path)) as world:
        world.link.runs = lambda call: call != "stage"
        world.call("statistics:mean", data=[1, 3])
        _, sent = eventually(lambda: world.link.lost)[0]
    assert (Path(sent["folder"]) / "stop").read_text() == "the controller left"


def test_doctor_finds_nothing_wrong_behind_an_endpoint_that_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    world = World(tmp_path)
    build = partial(GlobusBackend, connect=world.connect)
    doctor = Doctor(world.site, build=build)  # type: ignore[arg-type]  # of this kind of site
    findings = list(doctor.examine(lambda _: None))
    assert not [finding for finding in findings if finding.verdict is Rating.BAD], findings
    assert any(finding.what == "all-reduce, 1 node" for finding in findings)
    assert doctor.folder.parent == tmp_path / "here", "its work_dir is no folder of this machine"


def test_a_site_without_the_studys_module_is_refused_and_no_trial_pays_for_it(tmp_path: Path) -> None:
    with opened(World(tmp_path)) as world:
        world.ask()
        job = world.start(python="nowhere.train:train")
        ended = world.log.next(PilotEnded)
        assert not ended.usable
        assert "module 'nowhere' cannot be found there; copy it to the same folder" in ended.cause
        assert [event.outcome for event in world.log.of(job)] == [Outcome.PREEMPTED]


def test_a_site_without_an_input_of_the_study_is_refused_and_no_trial_pays_for_it(tmp_path: Path) -> None:
    with opened(World(tmp_path)) as world:
        world.ask()
        job = world.start(paths=(("labels", str(tmp_path)), ("data", "/nowhere/data")))
        ended = world.log.next(PilotEnded)
        assert not ended.usable
        assert ended.cause.endswith("input 'data' cannot be found there: /nowhere/data")
        assert [event.outcome for event in world.log.of(job)] == [Outcome.PREEMPTED]
        world.ask()
        assert world.log.next(PilotEnded).cause == ended.cause, "for this search it stays refused"
        world.runner.begin_search("-next")
        world.ask()
        assert world.log.next(PilotStarted), "another one has other inputs"


def test_a_site_that_was_refused_is_free_for_the_next_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARSL_WORKER_POOL_ID", "pool")
    with opened(World(tmp_path)) as world:
        world.ask()
        world.log.next(JobEnded, world.start(python="nowhere.train:train"))
    assert not pilot_lease.acquire("pool", "theirs", "heat")


def test_what_keeps_answers_from_coming_is_told_once(tmp_path: Path) -> None:
    with opened(World(tmp_path)) as world:
        world.link.says = lambda call: call != "run"
        world.ask()
        job = world.start(on_pilot=lambda: setattr(world.link, "trouble", "no route"))
        told = world.log.next(SiteDegraded)
        world.log.next(JobEnded, job)
        assert (told.site, told.cause) == ("alps", "no route")
        assert [type(event) for event in world.log.events].count(SiteDegraded) == 1


def test_two_searches_of_a_run_keep_their_trials_apart(tmp_path: Path) -> None:
    with opened(World(tmp_path)) as world:
        for suffix in ("", "-second"):
            world.runner.begin_search(suffix)
            world.ask()
            job = world.start()
            assert [world.log.next(EpochReported).epoch for _ in range(2)] == [1, 2]
            assert world.log.next(JobEnded, job).outcome is Outcome.REACHED
        attempts = {path.parents[1].name for path in (tmp_path / "disk").glob("*/trials*/*/attempt-1")}
    assert attempts == {"trials", "trials-second"}
    marks = [asked["mark"] for asked in world.link.asked if "order" in asked]
    assert len(set(marks)) == 2, "the end of the first one's launch ends what has its mark"


def test_an_offline_endpoint_is_refused_in_words(tmp_path: Path) -> None:
    with opened(World(tmp_path)) as world:
        world.link.runs, world.link.is_online = (lambda call: False), False
        world.ask()
        ended = world.log.next(PilotEnded)
    assert not ended.usable
    assert ended.cause == f"endpoint {ENDPOINT} is offline; start it there"


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"python": "3.10.4"}, "site alps runs Python 3.10.4, the controller 3."),
        ({"versions": {"parsl_rasda": "0.0.1"}}, "site alps has parsl_rasda 0.0.1, the controller"),
        ({"nodes": []}, "the endpoint's pilot has 0 of 1 nodes"),
    ],
)
def test_a_mismatch_that_would_break_is_refused_in_words(
    tmp_path: Path, found: dict[str, Any], words: str
) -> None:
    with opened(World(tmp_path)) as world:
        world.link.found = found
        world.ask()
        ended = world.log.next(PilotEnded)
    assert not ended.usable
    assert words in ended.cause


def test_another_torch_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with opened(World(tmp_path)) as world:
        versions = describe(tmp_path)["versions"]
        world.link.found = {"versions": {**versions, "torch": "1.0.0"}}
        world.ask()
        world.log.next(PilotStarted)
    assert "site alps has torch 1.0.0" in caplog.text


def test_more_than_ten_megabytes_are_refused_before_they_are_sent(tmp_path: Path) -> None:
    site = GlobusSiteSpec.model_validate({"name": "alps", "endpoint_id": ENDPOINT, "work_dir": "/x"})
    with pytest.raises(TooLargeError, match=r"site 'alps' is 12\.0 MB, and Globus Compute takes 10 MB"):
        EndpointClient(site, UUID(int=1)).submit("run", {"order": "x" * 12_000_000})


@pytest.mark.parametrize(("field", "value"), [("work_dir", None), ("pilots", 2)])
def test_a_site_file_without_what_an_endpoint_needs_is_refused(
    tmp_path: Path, field: str, value: object
) -> None:
    with pytest.raises(InvalidSettingError, match=field):
        World(tmp_path, **{field: value})


def test_what_a_job_saves_on_leaving_is_known_to_the_next_controller(tmp_path: Path) -> None:
    with opened(World(tmp_path)) as world:
        world.link.says = lambda call: call == "describe"
        world.ask()
        job = world.start(until=200, max_epochs=200, inputs={"epoch_s": 0.2})
        epochs = eventually(lambda: list((tmp_path / "disk").glob("*/trials/0000/attempt-1/epochs.jsonl")))[0]
        other = World(tmp_path)
        with opened(other):
            events = other.runner.recover([OpenJob(job, SiteName("alps"), 0)])
            found = [event.epoch for event in events if isinstance(event, EpochReported)]
            (ended,) = (event for event in events if isinstance(event, JobEnded))
        assert ended.outcome is Outcome.PREEMPTED
        assert found == list(range(1, len(epochs.read_text().splitlines()) + 1)), "to the last one"
        assert ended.checkpoint is not None


def test_the_next_controller_learns_what_a_job_has_done_meanwhile(tmp_path: Path) -> None:
    with opened(World(tmp_path)) as world:
        world.link.says = lambda call: call == "describe"
        world.ask()
        job = world.start()
        eventually(lambda: list((tmp_path / "disk").glob("*/trials/0000/attempt-1/report.json")))
        assert not ends(world.log)
        other = World(tmp_path)
        with opened(other):
            events = other.runner.recover([OpenJob(job, SiteName("alps"), 1)])
        assert [type(event) for event in events] == [EpochReported, JobEnded]
        assert isinstance(events[0], EpochReported)
        assert events[0].epoch == 2
