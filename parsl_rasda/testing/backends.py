"""A backend without processes, and the contract that every backend keeps, as a suite to inherit.

    class TestMyBackend(BackendContract):
        def build(self, directory: Path) -> Backend:
            return MyBackend(my_site, BackendContext(directory))

The jobs of the contract train `parsl_rasda.testing.training`, on slots without a device. `FakeBackend`
answers every call at once by posting events: a study runs in milliseconds, in an order that depends on
nothing but the calls.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from parsl_rasda.orchestration.backend import Backend, BackendFailed, OpenJob, PostEvent, StageTask
from parsl_rasda.orchestration.events import (
    RELEASED,
    ContinueJob,
    EndJob,
    EpochReported,
    Event,
    JobEnded,
    JobStarted,
    PilotEnded,
    PilotLost,
    PilotStarted,
    ReleasePilot,
    RequestPilot,
)
from parsl_rasda.protocol import Checkpoint, JobSpec, checkpoint_fields
from parsl_rasda.testing import training
from parsl_rasda.types import (
    Capabilities,
    JobId,
    NodeName,
    NodeSlots,
    Outcome,
    PilotId,
    Placement,
    SiteName,
    TrialId,
)

E = TypeVar("E")

_STAGE_S = 60.0
_ANSWER_S = 120.0  # a pilot may be held for a minute by the lease of a controller that died

Curve = Callable[[JobSpec, int], Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Fault:
    """A job does not finish the epoch ``epoch``, but ends like this."""

    epoch: int
    outcome: Outcome = Outcome.LOST
    cause: str = "a rank died by SIGKILL"


@dataclass(slots=True)
class _Training:
    order: JobSpec
    pilot: PilotId
    epoch: int
    until: int
    checkpoint: Checkpoint | None


class FakeBackend:
    """A stateful fake: scripted trainings on slots that exist only in memory.

    Attributes:
        orders: Every order that was started, in order.
        trainings: The jobs that are running now.
    """

    def __init__(
        self,
        curve: Curve,
        *,
        nodes: int = 1,
        gpus_per_node: int = 4,
        faults: Mapping[JobId, Fault] | None = None,
        refusals: int = 0,
        interactive: bool = True,
        directory: Path = Path(),
    ) -> None:
        """Script the world.

        Args:
            curve: Metrics of an order's trial after so many epochs.
            nodes: Nodes of each pilot.
            gpus_per_node: Slots of each node.
            faults: Which attempt fails, and how.
            refusals: How many requests for a pilot fail first.
            interactive: Whether jobs have a control channel.
            directory: Below it are the folders of stages.
        """
        self._curve, self._faults, self._refusals = curve, dict(faults or {}), refusals
        self._nodes, self._gpus, self._interactive = nodes, gpus_per_node, interactive
        self._directory = directory
        self.capabilities = Capabilities(has_control=interactive)
        self._post: PostEvent = _discard
        self._times = count(1)
        self._pilots: dict[PilotId, SiteName] = {}
        self.orders: list[JobSpec] = []
        self.trainings: dict[JobId, _Training] = {}

    def open(self, post: PostEvent) -> None:
        """Begin."""
        self._post = post

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keep nothing: a pilot costs nothing here."""
        yield

    def begin_search(self, suffix: str) -> None:
        """Pass over it: nothing is on a disk."""

    def recover(self, jobs: Iterable[OpenJob]) -> list[Event]:
        """Return nothing."""
        return []

    def directory_of(self, order: JobSpec) -> str:
        """Return where the files of a job would lie."""
        return order.directory

    def submit_stage(self, task: StageTask) -> Future[Any]:
        """Call the function at once, in this thread."""
        future, folder = Future[Any](), str(self._directory / "stages" / task.folder)
        try:
            given = task.with_paths()
            result = task.function(task.stage, task.target, given, folder, task.search_path)
        except Exception as error:  # noqa: BLE001  it becomes the future's
            future.set_exception(error)
        else:
            future.set_result(result)
        return future

    def request_pilot(self, request: RequestPilot) -> None:
        """Start a pilot at once, or refuse it."""
        pilot, site, at = request.pilot, request.site, self._now()
        if self._refusals:
            self._refusals -= 1
            self._post(PilotEnded(at, pilot, site, "the batch system said no", usable=False))
            return
        self._pilots[pilot] = site
        gpus = tuple(range(self._gpus))
        nodes = tuple(NodeSlots(NodeName(f"{pilot}-n{i}"), gpus) for i in range(self._nodes))
        self._post(PilotStarted(at, pilot, site, nodes, interactive=self._interactive))

    def release_pilot(self, release: ReleasePilot) -> None:
        """End a pilot; jobs on it end first."""
        self.lose_pilot(release.pilot, Outcome.PREEMPTED, RELEASED)

    def lose_pilot(self, pilot: PilotId, outcome: Outcome, cause: str) -> None:
        """Let a pilot end as if from outside."""
        site = self._pilots.pop(pilot, None)
        if site is not None:
            if cause != RELEASED:
                self._post(PilotLost(self._now(), pilot))
            for job in [j for j, t in self.trainings.items() if t.pilot == pilot]:
                self._end(job, outcome, cause)
            self._post(PilotEnded(self._now(), pilot, site, cause))

    def start_job(self, order: JobSpec, placement: Placement) -> None:
        """Train the first epoch at once; without a control channel, all of them."""
        self.orders.append(order)
        job = order.job
        self.trainings[job] = _Training(order, placement.pilot, order.epoch, order.until, None)
        if placement.pilot not in self._pilots:
            self._end(job, Outcome.PREEMPTED, "its pilot had gone")
            return
        self._post(JobStarted(self._now(), job))
        self._train(job)
        while not order.interactive and job in self.trainings:
            self._train(job)

    def continue_job(self, answer: ContinueJob) -> None:
        """Train one more epoch."""
        if answer.job in self.trainings:
            self.trainings[answer.job].until = answer.until
            self._train(answer.job)

    def end_job(self, end: EndJob) -> None:
        """End a job at its boundary, where every job of this backend always is."""
        self._end(end.job, Outcome.REACHED, "")

    def close(self) -> None:
        """End everything."""
        for pilot in tuple(self._pilots):
            self.lose_pilot(pilot, Outcome.PREEMPTED, "the controller left")
        self._post = _discard

    def _train(self, job: JobId) -> None:
        training = self.trainings[job]
        fault = self._faults.get(job)
        if fault is not None and fault.epoch == training.epoch + 1:
            self._end(job, fault.outcome, fault.cause)
            return
        training.epoch += 1
        path = f"{training.order.directory}/epoch-{training.epoch:06d}"
        training.checkpoint = Checkpoint(path, training.epoch)
        metrics, slots = self._curve(training.order, training.epoch), training.order.slots
        at = self._now()
        self._post(EpochReported(at, job, training.epoch, metrics, 1.0, training.checkpoint, slots))
        if not training.order.interactive and training.epoch >= training.until:
            self._end(job, Outcome.REACHED, "")

    def _end(self, job: JobId, outcome: Outcome, cause: str) -> None:
        training = self.trainings.pop(job, None)
        if training is not None:
            saved = checkpoint_fields(training.checkpoint, training.epoch)
            self._post(JobEnded(self._now(), job, outcome, cause, **saved))

    def _now(self) -> float:
        return float(next(self._times))


class EventLog:
    """Keeps what a backend posts, and waits for what it will post."""

    def __init__(self, deadline_s: float = _ANSWER_S) -> None:
        """Wait at most ``deadline_s`` [s] for anything."""
        self._deadline_s = deadline_s
        self._changed = threading.Condition()
        self._seen = 0
        self.events: list[Event] = []

    def post(self, event: Event | BackendFailed) -> None:
        """Take an event; called from any thread."""
        if isinstance(event, BackendFailed):
            raise event.error
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def next(self, kind: type[E], job: JobId | None = None) -> E:
        """Return the next event of a kind (and of a job), passing over others.

        Raises:
            TimeoutError: If it does not come in time; says what came instead.
        """
        position = self._seen

        def find() -> tuple[int, E] | None:
            for index in range(position, len(self.events)):
                event = self.events[index]
                if isinstance(event, kind) and job in {None, getattr(event, "job", None)}:
                    return index, event
            return None

        with self._changed:
            found = self._changed.wait_for(find, self._deadline_s)
        if not found:
            raise TimeoutError(
                f"no {kind.__name__} in {self._deadline_s:g} s; came: {self.events[position:]}"
            )
        if job is None:
            self._seen = found[0] + 1
        return found[1]

    def of(self, job: JobId) -> list[Event]:
        """Return every event of a job so far."""
        return [event for event in self.events if getattr(event, "job", None) == job]


@dataclass(frozen=True, slots=True)
class RunningPilot:
    """A backend with one pilot up, and the log of its events."""

    backend: Backend
    log: EventLog
    pilot: PilotStarted
    directory: Path

    def start(self, trial: str, *, width: int = 1, **fields: Any) -> JobId:
        """Start a job on the first slots of the first node."""
        node = self.pilot.nodes[0]
        return self.start_at(trial, (NodeSlots(node.node, node.gpus[:width]),), **fields)

    def start_at(self, trial: str, nodes: tuple[NodeSlots, ...], **fields: Any) -> JobId:
        """Start a job on certain slots; fields are those of its order."""
        placement = Placement(self.pilot.site, self.pilot.pilot, nodes)
        values: dict[str, Any] = {
            "config": {},
            "interactive": self.pilot.interactive,
            "epoch": 0,
            "until": 2,
            "metric": "loss",
            "python": training.TRAINING,
            "accelerator": "none",
            **fields,
        }
        order = JobSpec(
            study="contract",
            trial=TrialId(trial),
            attempt=1,
            directory=str(self.directory / trial / "attempt-1"),
            seed=1,
            mode="min",
            max_epochs=8,
            schedule=((0, placement.world_size),),
            world_size=placement.world_size,
            slots=placement.slots,
            **values,
        )
        self.backend.start_job(order, placement)
        return order.job


class BackendContract:
    """What holds for every backend. Trainings report ``loss`` for each epoch."""

    site = SiteName("local")

    def build(self, directory: Path) -> Backend:
        """Return a backend with at least two slots on a node; overridden by the plug-in's test."""
        raise NotImplementedError

    @contextmanager
    def stage(self, directory: Path) -> Iterator[RunningPilot]:
        """Open a backend and get a pilot."""
        backend, log = self.build(directory), EventLog()
        backend.open(log.post)
        try:
            backend.request_pilot(RequestPilot(PilotId("local-0"), self.site))
            yield RunningPilot(backend, log, log.next(PilotStarted), directory)
        finally:
            backend.close()

    def test_a_pilot_comes_with_its_slots(self, tmp_path: Path) -> None:
        with self.stage(tmp_path) as stage:
            assert (stage.pilot.pilot, stage.pilot.site) == ("local-0", self.site)
            assert len(stage.pilot.nodes[0].gpus) > 1

    def test_its_pilots_are_as_its_capabilities_say(self, tmp_path: Path) -> None:
        with self.stage(tmp_path) as stage:
            assert stage.pilot.interactive == stage.backend.capabilities.has_control

    def test_a_job_asks_at_every_epoch_goes_on_and_leaves(self, tmp_path: Path) -> None:
        with self.stage(tmp_path) as stage:
            if not stage.pilot.interactive:  # it trains to its end
                job = stage.start("t0", until=2)
                assert [stage.log.next(EpochReported).epoch for _ in range(2)] == [1, 2]
                assert stage.log.next(JobEnded, job).outcome is Outcome.REACHED
                return
            job = stage.start("t0", width=2)
            stage.log.next(JobStarted)
            assert stage.log.next(EpochReported).epoch == 1
            stage.backend.continue_job(ContinueJob(job, until=4, replicas=4))
            second = stage.log.next(EpochReported)
            assert second.epoch == 2
            assert "loss" in second.metrics
            stage.backend.end_job(EndJob(job, "stopped"))
            ended = stage.log.next(JobEnded)
            assert ended.outcome is Outcome.REACHED
            assert ended.checkpoint == (second.checkpoint and second.checkpoint.path)

    def test_a_job_without_a_channel_trains_to_its_end(self, tmp_path: Path) -> None:
        with self.stage(tmp_path) as stage:
            job = stage.start("t0", until=3, interactive=False)
            assert stage.log.next(JobEnded).outcome is Outcome.REACHED
            epochs = [event.epoch for event in stage.log.of(job) if isinstance(event, EpochReported)]
            assert epochs == [1, 2, 3]

    def test_two_jobs_run_side_by_side(self, tmp_path: Path) -> None:
        with self.stage(tmp_path) as stage:
            jobs = [stage.start("t0"), stage.start("t1")]
            for job in jobs:
                stage.log.next(EpochReported, job)
            for job in jobs:
                stage.backend.end_job(EndJob(job, "stopped"))
            for job in jobs:
                stage.log.next(JobEnded, job)

    def test_a_job_that_is_ended_at_once_ends_once(self, tmp_path: Path) -> None:
        with self.stage(tmp_path) as stage:
            job = stage.start("t0")
            stage.backend.end_job(EndJob(job, "interrupted"))
            stage.backend.end_job(EndJob(job, "interrupted"))
            stage.log.next(JobEnded, job)
            stage.backend.release_pilot(ReleasePilot(stage.pilot.pilot))
            stage.log.next(PilotEnded)
            assert sum(isinstance(event, JobEnded) for event in stage.log.of(job)) == 1

    def test_answers_to_unknown_jobs_are_passed_over(self, tmp_path: Path) -> None:
        with self.stage(tmp_path) as stage:
            nobody = JobId(TrialId("nobody"), 1)
            stage.backend.continue_job(ContinueJob(nobody, until=4, replicas=1))
            stage.backend.end_job(EndJob(nobody, "stopped"))
            stage.start("t0")
            stage.log.next(EpochReported)
            assert not stage.log.of(nobody)

    def test_jobs_end_before_the_pilot_they_run_on(self, tmp_path: Path) -> None:
        with self.stage(tmp_path) as stage:
            job = stage.start("t0")
            stage.log.next(EpochReported)
            stage.backend.release_pilot(ReleasePilot(stage.pilot.pilot))
            ended = stage.log.next(PilotEnded)
            assert ended.usable
            assert isinstance(stage.log.of(job)[-1], JobEnded)
            assert stage.log.events.index(stage.log.of(job)[-1]) < stage.log.events.index(ended)

    def test_a_job_for_a_pilot_that_has_gone_ends_as_preempted(self, tmp_path: Path) -> None:
        with self.stage(tmp_path) as stage:
            stage.backend.release_pilot(ReleasePilot(stage.pilot.pilot))
            stage.log.next(PilotEnded)
            job = stage.start("t0")
            assert stage.log.next(JobEnded, job).outcome is Outcome.PREEMPTED

    def test_a_call_of_a_stage_runs_beside_jobs_with_its_file(self, tmp_path: Path) -> None:
        file = tmp_path / "mesh.txt"
        file.write_text("coarse", encoding="utf-8")
        with self.stage(tmp_path) as stage:
            stage.start("t0", until=8)
            found = stage.backend.submit_stage(self.call(file.as_uri())).result(_STAGE_S)
            assert (found["stage"], found["target"]) == ("prepare", "module:function")
            assert found["directory"].endswith("prepare/0000")
            assert found["arguments"] == {"points": 8, "file": "coarse"}

    def test_a_call_that_fails_is_an_exception_of_its_future(self, tmp_path: Path) -> None:
        with self.stage(tmp_path) as stage:
            future = stage.backend.submit_stage(self.call((tmp_path / "nowhere").as_uri()))
            assert "nowhere" in str(future.exception(_STAGE_S))

    def call(self, url: str) -> StageTask:
        """Return a call of a stage with a file."""
        given = {"points": 8}
        return StageTask(
            self.site, "prepare", "0000", training.call, "module:function", given, {"file": url}, key=url
        )

    def test_a_held_backend_gives_its_pilot_to_the_next_search(self, tmp_path: Path) -> None:
        backend = self.build(tmp_path)
        with backend.hold():
            for number in range(2):
                log = EventLog()
                backend.begin_search(f"-{number}")
                assert backend.recover([]) == []
                backend.open(log.post)
                backend.request_pilot(RequestPilot(PilotId(f"local-{number}"), self.site))
                assert log.next(PilotStarted).pilot == f"local-{number}"
                backend.close()

    def test_closing_ends_the_jobs_that_are_left(self, tmp_path: Path) -> None:
        with self.stage(tmp_path) as stage:
            job = stage.start("t0")
            stage.log.next(EpochReported)
        assert isinstance(stage.log.of(job)[-1], JobEnded)
        assert isinstance(stage.log.events[-1], PilotEnded)


def _discard(_: object) -> None:
    """Nobody listens."""
