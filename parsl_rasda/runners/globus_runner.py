"""Carries the machine's instructions out on one Globus Compute site.

Each job is one task, for one stretch of training: there is no control channel. What happens there is
known from the task's result or, when that does not come, from the site's disk: every few seconds one
task looks at what all open jobs have left (`globus_site.look`), brings their new epochs, and says
which are over. Silence is judged twice: a job's by its heartbeat, on the site's own clock, and the
site's by looks that the service has taken and nobody answers.

One thread owns the books and never waits for the service.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from parsl_rasda.errors import InvalidSettingError, RasdaError
from parsl_rasda.handoff import EpochReport, JobOrder, JobReport
from parsl_rasda.launch.base import LaunchSettings
from parsl_rasda.launch.registry import build_launcher
from parsl_rasda.orchestration.events import (
    ContinueJob,
    EndJob,
    EpochReported,
    Event,
    JobEnded,
    PilotEnded,
    PilotStarted,
    ReleasePilot,
    RequestPilot,
)
from parsl_rasda.orchestration.ports import PostEvent
from parsl_rasda.orchestration.rundir import replace_file
from parsl_rasda.runners import handshake
from parsl_rasda.runners.allocations import Allocation
from parsl_rasda.runners.app import Named
from parsl_rasda.runners.globus_link import GlobusLink, RefusedError, Task, TooLargeError, UnreachableError
from parsl_rasda.study.sites import GlobusSiteSpec
from parsl_rasda.vocabulary import JobId, Outcome, PilotId, Placement

Message = dict[str, Any]

_TICK_S = 0.25
_RESEND_S = 2.0
_CLOSE_WAIT_S = 15.0
_RECOVER_S = 60.0
_WALLTIME_GRACE_S = 10.0

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Job:
    order: JobOrder
    task_arguments: Message
    pilot: PilotId
    task: Task | None = None
    since: float = field(default_factory=time.monotonic)
    epoch: int = 0  # the last one posted
    stop: str | None = None  # why it is to leave
    abandon: str | None = None  # why it should be over, if no task has claimed it

    @property
    def id(self) -> JobId:
        return self.order.job

    @property
    def mark(self) -> str:
        return str(self.task_arguments["mark"])


@dataclass(slots=True, eq=False)
class _Pilot:
    request: RequestPilot
    asked_at: float = -1e9  # when the handshake was last sent
    offline_since: float | None = None
    cause: str = ""
    allocation: Allocation | None = None
    is_leaving: bool = False


class GlobusRunner:
    """The runner of one site behind a Globus Compute endpoint."""

    def __init__(
        self,
        site: GlobusSiteSpec,
        directory: Path,
        *,
        python_path: tuple[Path, ...] = (),
        grace_s: float = 30.0,
        connect: Callable[[GlobusSiteSpec, uuid.UUID], GlobusLink] = GlobusLink,
    ) -> None:
        """Prepare; nothing is imported or started before `open`.

        Args:
            site: Where to run.
            directory: A folder of its own, in the run directory, which remembers the task group.
            python_path: Folders of user modules, where the site has them under the same names.
            grace_s: How long a job that was told to leave may take [s].
            connect: Opens the way to the endpoint, in a task group.

        Raises:
            InvalidSettingError: If the site file lacks what only a Globus Compute site needs.
        """
        if site.work_dir is None:
            raise InvalidSettingError(f"site {site.name}: work_dir", None, "a folder on the site")
        if site.pilots != 1:
            raise InvalidSettingError(
                f"site {site.name}: pilots", site.pilots, "1: an endpoint has one pilot; give it more nodes"
            )
        self._site, self._directory, self._grace_s = site, directory, grace_s
        self._python_path = [str(path) for path in python_path]
        self._launcher = build_launcher(site.mpi_launcher)
        silence_s = site.heartbeat_threshold_s
        self._silence_s, self._patience_s = silence_s, 3 * silence_s
        self._look_every_s = min(max(silence_s / 3, 1.0), 20.0)
        self._group = _task_group(directory)
        self._folder = f"{site.work_dir}/{self._group}"
        self._post: PostEvent = _discard
        self._connect = connect
        self._link: GlobusLink | None = None
        self._inbox: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._thread: threading.Thread | None = None
        self._changed = threading.Condition()
        self._jobs: dict[JobId, _Job] = {}
        self._pilot: _Pilot | None = None
        self._refusal = ""  # why no pilot of this site can be of use
        self._given_up: list[str] = []  # attempts that must never begin, or end, when the site answers again
        self._looks: list[Task] = []
        self._look_at = self._unanswered_since = 0.0
        self._holds = 0

    # ------------------------------------------------------------------------ the Runner protocol

    def open(self, post: PostEvent) -> None:
        """Begin: events go to ``post`` from now on."""
        self._post = post
        if self._link is not None:
            return  # held open by a pipeline
        self._link = self._connect(self._site, self._group)
        self._inbox = queue.Queue()
        self._thread = threading.Thread(target=self._work, name=f"rasda-{self._site.name}", daemon=True)
        self._thread.start()

    def request_pilot(self, request: RequestPilot) -> None:
        """Ask the endpoint what it has; answered when its pilot is up."""
        self._inbox.put(lambda: self._request(request))

    def release_pilot(self, release: ReleasePilot) -> None:
        """Let every job leave, and the pilot to the endpoint, which ends it when it is idle."""
        self._inbox.put(lambda: self._release(release.pilot))

    def start_job(self, order: JobOrder, placement: Placement) -> None:
        """Send a job to the site; it trains to its milestone without asking."""
        self._inbox.put(lambda: self._start(order, placement))

    def continue_job(self, answer: ContinueJob) -> None:
        """Pass over an answer: no job here ever asks."""

    def end_job(self, end: EndJob) -> None:
        """Let a job leave at its next step."""
        self._inbox.put(lambda: self._end(end.job, end.reason))

    def close(self) -> None:
        """End every job; returns when they are gone, or have been told to go."""
        if self._link is None:
            return
        self._inbox.put(self._end_all)
        with self._changed:
            self._changed.wait_for(lambda: not self._jobs and self._inbox.empty(), _CLOSE_WAIT_S)
        done = threading.Event()
        self._inbox.put(self._give_up)
        self._inbox.put(done.set)
        done.wait()
        self._post = _discard
        if not self._holds:
            self._inbox.put(None)
            if self._thread is not None:
                self._thread.join()
            self._link.close()
            self._link = None

    # ---------------------------------------------------------------------------- beyond the port

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keep the connection through ``open`` and ``close`` of single stages."""
        self.open(_discard)
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1
            self.close()

    def folder_there(self, folder: Path) -> Path:
        """Return what stands on the site for the folder of a stage's call, ``.../<stage>/<number>``."""
        return Path(self._folder) / "stages" / folder.parent.name / folder.name

    def submit_stage(self, function: Callable[..., Any], /, *args: Any) -> Future[Any]:
        """Run a plain function of a module on the site; its arguments must be plain JSON."""
        plain = function.function if isinstance(function, Named) else function
        name = f"{plain.__module__}:{plain.__qualname__}"
        try:
            return self._tasks.submit("stage", {"target": name, "arguments": list(args)})
        except TooLargeError as error:
            failed: Future[Any] = Future()
            failed.set_exception(error)
            return failed

    def recover(self, jobs: Iterable[tuple[JobId, int]]) -> list[Event]:
        """Return what jobs of a controller that is gone have left on the site's disk, and stop them.

        Args:
            jobs: Each with the epochs it is known to have finished.
        """
        asked = [
            {
                "directory": self._attempt(job),
                "job": str(job),
                "epoch": epoch,
                "mark": f"{self._group}/{job}",
                "stop": "the controller has gone",
                "abandon": None,
            }
            for job, epoch in jobs
        ]
        events: list[Event] = []
        if not asked:
            return events
        try:
            arguments = {"jobs": asked, "silence_s": self._silence_s}
            states = self._tasks.submit("look", arguments).result(_RECOVER_S)
        except (RasdaError, TimeoutError) as error:
            logger.warning("site %s cannot say what it has: %s", self._site.name, error)
            return events
        for state in states:
            events += [_epoch_event(EpochReport.from_json(e)) for e in state["epochs"]]
            if state["report"] is not None:
                events.append(_end_event(JobReport.from_json(state["report"])))
        return events

    # ------------------------------------------------------------------------------ the thread

    @property
    def _tasks(self) -> GlobusLink:
        if self._link is None:
            raise RuntimeError("the runner is not open")
        return self._link

    def _work(self) -> None:
        while True:
            try:
                task = self._inbox.get(timeout=_TICK_S)
                if task is None:
                    return
            except queue.Empty:
                task = self._tick
            try:
                task()
            except Exception:  # a bug; ending the thread would leave the study waiting for ever
                logger.exception("could not act on an event")
            with self._changed:
                self._changed.notify_all()

    def _when(self, task: Future[Any], then: Callable[[Any], None]) -> None:
        task.add_done_callback(lambda _: self._inbox.put(lambda: then(task)))

    def _tick(self) -> None:
        self._tasks.mend()
        pilot = self._pilot
        if pilot is None:
            return
        if pilot.allocation is None:
            self._shake_hands(pilot)
            return
        deadline = pilot.allocation.deadline
        if deadline is not None and time.time() > deadline + _WALLTIME_GRACE_S:
            self._bury(Outcome.PREEMPTED, "the pilot's walltime has ended")
            return
        for job in tuple(self._jobs.values()):
            if job.task is None and time.monotonic() > job.since + _RESEND_S:
                self._send(job)
        self._watch()

    # ------------------------------------------------------------------------------------- pilots

    def _request(self, request: RequestPilot) -> None:
        if self._refusal:
            self._end_pilot(request, self._refusal, usable=False)
            return
        self._pilot = _Pilot(request)
        self._shake_hands(self._pilot)

    def _shake_hands(self, pilot: _Pilot) -> None:
        """Ask, ask again after a while, and refuse the site when its endpoint stays away."""
        now = time.monotonic()
        if pilot.offline_since is not None and now > pilot.offline_since + self._silence_s:
            self._refuse(pilot, pilot.cause)
            return
        again_s = _RESEND_S if pilot.offline_since is not None else 10 * self._silence_s
        if now < pilot.asked_at + again_s:
            return
        first, pilot.asked_at = pilot.asked_at < 0, now
        self._when(self._tasks.ask_whether_online(), lambda done: self._heard_state(pilot, done))
        if first or pilot.offline_since is None:
            arguments = {
                "accelerator": self._site.accelerator,
                "folder": self._folder,
                "mark": str(self._group),
                "given_up": self._given_up,
            }
            task = self._tasks.submit("describe", arguments)
            self._when(task, lambda done: self._shaken(pilot, done))

    def _heard_state(self, pilot: _Pilot, done: Future[bool]) -> None:
        error = done.exception()
        if error is None and done.result():
            pilot.offline_since = None
            return
        pilot.cause = str(error) if error else f"endpoint {self._site.endpoint_id} is offline; start it there"
        pilot.offline_since = pilot.offline_since or time.monotonic()

    def _shaken(self, pilot: _Pilot, done: Future[Message]) -> None:
        if self._pilot is not pilot or pilot.allocation is not None:
            return
        error = done.exception()
        if isinstance(error, UnreachableError):
            pilot.cause, pilot.offline_since = str(error), pilot.offline_since or time.monotonic()
            return
        if error is not None:
            self._refuse(pilot, str(error))
            return
        found = done.result()
        refusal = handshake.refusal_of(self._site, found)
        if refusal is not None:
            self._refusal = refusal
            self._refuse(pilot, refusal)
            return
        for warning in handshake.warnings_of(self._site, found):
            logger.warning("%s", warning)
        pilot.allocation = handshake.allocation_of(self._site, found)
        self._given_up.clear()
        self._looks.clear()
        request, allocation = pilot.request, pilot.allocation
        at = time.time()
        self._post(
            PilotStarted(
                at,
                request.pilot,
                request.site,
                allocation.nodes,
                interactive=False,
                deadline=allocation.deadline,
            )
        )

    def _refuse(self, pilot: _Pilot, cause: str) -> None:
        self._pilot = None
        logger.warning("no pilot site=%s cause=%s", self._site.name, cause)
        self._end_pilot(pilot.request, cause, usable=False)

    def _end_pilot(self, request: RequestPilot, cause: str, *, usable: bool) -> None:
        self._post(PilotEnded(time.time(), request.pilot, request.site, cause, usable))

    def _release(self, pilot_id: PilotId) -> None:
        pilot = self._pilot
        if pilot is None or pilot.request.pilot != pilot_id:
            return
        if pilot.allocation is None:
            self._pilot = None
            self._end_pilot(pilot.request, "released", usable=True)
            return
        pilot.is_leaving = True
        for job in tuple(self._jobs):
            self._end(job, "released")
        self._left()

    def _left(self) -> None:
        """Give the pilot up if it was to be, and its last job has left."""
        pilot = self._pilot
        if pilot is not None and pilot.is_leaving and not self._jobs:
            self._pilot = None
            self._end_pilot(pilot.request, "released", usable=True)

    def _bury(self, outcome: Outcome, cause: str, *, usable: bool = True) -> None:
        """Report a pilot's jobs as ended, and it; they are ended when the site answers again."""
        pilot, self._pilot = self._pilot, None
        if pilot is None:
            return
        for job in tuple(self._jobs.values()):
            self._given_up.append(job.order.directory)
            self._conclude(job, Outcome.PREEMPTED if job.stop else outcome, cause)
        self._end_pilot(pilot.request, cause, usable=usable)

    # --------------------------------------------------------------------------------------- jobs

    def _attempt(self, job: JobId) -> str:
        return f"{self._folder}/trials/{job.trial}/attempt-{job.attempt}"

    def _start(self, order: JobOrder, placement: Placement) -> None:
        order = replace(order, directory=self._attempt(order.job), interactive=False)
        pilot = self._pilot
        if pilot is None or pilot.request.pilot != placement.pilot or pilot.allocation is None:
            job = _Job(order, {}, placement.pilot)
            self._jobs[job.id] = job
            self._conclude(job, Outcome.PREEMPTED, f"pilot {placement.pilot} had gone")
            return
        allocation = pilot.allocation
        settings = LaunchSettings(
            options=self._site.launcher_options,
            threads_per_rank=self._site.threads_per_rank,
            accelerator=self._site.accelerator,
            gpus_per_node=allocation.gpus_per_node,
            local=len(allocation.nodes) == 1,
            environment=self._site.environment,
            directory=order.directory,
        )
        program = allocation.rank_program(order, warm_start=self._site.warm_start)
        arguments = {
            "order": order.to_json(),
            "launch": asdict(self._launcher.command(placement, program, settings)),
            "mark": f"{self._group}/{order.job}",
            "run_mark": str(self._group),
            "python_path": self._python_path,
            "grace_s": self._grace_s,
        }
        job = _Job(order, arguments, placement.pilot, epoch=order.epoch)
        self._jobs[job.id] = job
        self._send(job)

    def _send(self, job: _Job) -> None:
        try:
            job.task = self._tasks.submit("run", job.task_arguments)
        except TooLargeError as error:
            self._refusal = str(error)
            self._bury(Outcome.PREEMPTED, str(error), usable=False)
            return
        job.since = time.monotonic()
        self._when(job.task, lambda done: self._returned(job, done))

    def _returned(self, job: _Job, done: Task) -> None:
        if self._jobs.get(job.id) is not job or job.task is not done:
            return  # concluded before
        error = done.exception()
        if error is None:
            self._take(job, done.result())
        elif isinstance(error, UnreachableError):
            job.task, job.since = None, time.monotonic()  # it was not taken: send it again
        else:
            job.abandon = error.cause if isinstance(error, RefusedError) else str(error)
            self._look_at = 0.0  # the site's disk has the last word

    def _end(self, job_id: JobId, reason: str) -> None:
        job = self._jobs.get(job_id)
        if job is not None and job.stop is None:
            job.stop = reason
            self._look([job])

    def _end_all(self) -> None:
        jobs = [job for job in self._jobs.values() if job.stop is None]
        for job in jobs:
            job.stop = "the controller leaves"
        if jobs:
            self._look(jobs)

    def _watch(self) -> None:
        """Look at every job once in a while, and give the site up when nobody answers."""
        now = time.monotonic()
        if not self._jobs:
            self._looks.clear()
            return
        self._looks = [look for look in self._looks if not look.done()]
        if not self._looks or any(look.id is None for look in self._looks):
            self._unanswered_since = now  # nobody was asked: the service is away, perhaps
        elif now > self._unanswered_since + self._patience_s:
            cause = f"endpoint {self._site.endpoint_id} has not answered for {self._patience_s:.0f} s"
            self._bury(Outcome.LOST, cause)
            return
        if now > self._look_at:
            for job in self._jobs.values():
                if job.abandon is None and now > job.since + self._patience_s:
                    job.abandon = f"no worker of the endpoint took it within {self._patience_s:.0f} s"
            self._look(list(self._jobs.values()))

    def _look(self, jobs: list[_Job]) -> None:
        self._look_at = time.monotonic() + self._look_every_s
        asked = [
            {
                "directory": job.order.directory,
                "job": str(job.id),
                "epoch": job.epoch,
                "mark": job.mark,
                "stop": job.stop,
                "abandon": job.abandon,
            }
            for job in jobs
        ]
        look = self._tasks.submit("look", {"jobs": asked, "silence_s": self._silence_s})
        self._looks.append(look)
        self._when(look, self._looked)

    def _looked(self, done: Task) -> None:
        error = done.exception()
        if error is None:
            self._looks.clear()  # the site answers: who has not been answered was lost on the way
            for state in done.result():
                job = self._jobs.get(JobId.parse(state["job"]))
                if job is not None:
                    self._take(job, state)
        elif not isinstance(error, UnreachableError):
            self._bury(Outcome.LOST, str(error))

    def _take(self, job: _Job, state: Message) -> None:
        """Take what a task says of a job: its epochs, and its end if it has come."""
        for epoch in state["epochs"]:
            reached = EpochReport.from_json(epoch)
            if reached.epoch > job.epoch:
                job.epoch = reached.epoch
                self._post(_epoch_event(reached))
        if state["report"] is not None and self._jobs.pop(job.id, None) is not None:
            report = JobReport.from_json(state["report"])
            why = f"{job.abandon}; " if job.abandon and report.outcome is Outcome.LOST else ""
            self._post(_end_event(replace(report, cause=why + report.cause)))
            self._left()

    def _conclude(self, job: _Job, outcome: Outcome, cause: str) -> None:
        if self._jobs.pop(job.id, None) is not None:
            self._post(JobEnded(time.time(), job.id, outcome, cause))

    def _give_up(self) -> None:
        for job in tuple(self._jobs.values()):
            self._given_up.append(job.order.directory)
            self._conclude(job, Outcome.PREEMPTED, "the controller left")
        pilot, self._pilot = self._pilot, None
        if pilot is not None:
            self._end_pilot(pilot.request, "the controller left", usable=True)


def _task_group(directory: Path) -> uuid.UUID:
    """Return the task group of a run on a site, the same after a death of the controller."""
    file = directory / "globus.json"
    try:
        return uuid.UUID(json.loads(file.read_text())["task_group"])
    except (OSError, ValueError, KeyError):
        directory.mkdir(parents=True, exist_ok=True)
        group = uuid.uuid4()
        replace_file(file, json.dumps({"task_group": str(group)}))
        return group


def _epoch_event(report: EpochReport) -> EpochReported:
    at, job = report.at or time.time(), JobId(report.trial, report.attempt)
    return EpochReported(
        at, job, report.epoch, report.metrics, report.seconds, report.checkpoint, report.slots
    )


def _end_event(report: JobReport) -> JobEnded:
    at, job = report.at or time.time(), JobId(report.trial, report.attempt)
    return JobEnded(at, job, report.outcome, report.cause, report.checkpoint)


def _discard(_: object) -> None:
    """Nobody listens."""
