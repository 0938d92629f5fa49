"""The backend of one site behind a Globus Compute endpoint.

The endpoint has one pilot: `pilot` gets it, `jobs` and `stages` look after what runs there.
One thread owns all state and never waits for the service.
"""

from __future__ import annotations

import hashlib
import logging
import platform
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

from parsl_rasda.agent.endpoint_tasks import TaskContext
from parsl_rasda.backends.actor import Actor
from parsl_rasda.backends.globus import handshake
from parsl_rasda.backends.globus.client import EndpointClient, TooLargeError
from parsl_rasda.backends.globus.jobs import GlobusJobs, Message, SiteLostError
from parsl_rasda.backends.globus.pilot import GlobusPilot
from parsl_rasda.backends.globus.record import GlobusRecord
from parsl_rasda.backends.globus.recovery import recover
from parsl_rasda.backends.globus.stages import GlobusStages
from parsl_rasda.errors import InvalidSettingError, RasdaError, StageFailedError
from parsl_rasda.exits import EndedBy
from parsl_rasda.launch.registry import build_launcher
from parsl_rasda.orchestration.backend import BackendContext, BackendFailed, OpenJob, PostEvent, StageTask
from parsl_rasda.orchestration.events import (
    ContinueJob,
    EndJob,
    Event,
    PilotEnded,
    PilotLost,
    PilotStarted,
    ReleasePilot,
    RequestPilot,
    SiteDegraded,
)
from parsl_rasda.protocol import JobSpec
from parsl_rasda.study.sites import GlobusSiteSpec
from parsl_rasda.types import JobId, PilotId, Placement, SiteName

_TICK_S = 0.25
_CLOSE_WAIT_S = 15.0
_CLEAN_UP_S = 10.0
_WALLTIME_GRACE_S = 10.0

logger = logging.getLogger(__name__)


class GlobusBackend:
    """The backend of one site behind a Globus Compute endpoint.

    Attributes:
        folder: The run's own folder on the site.
    """

    def __init__(
        self,
        site: GlobusSiteSpec,
        context: BackendContext,
        *,
        connect: Callable[[GlobusSiteSpec, uuid.UUID], EndpointClient] = EndpointClient,
    ) -> None:
        """Prepare; nothing is imported or started before `open`.

        Args:
            site: Where to run.
            context: Of the study; its directory remembers the task group, and the site has its modules
                under the same names.
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
        self.capabilities = site.capabilities
        self._site, self._context, self._grace_s = site, context, site.checkpoint_margin_s
        self._python_path = [str(path) for path in context.python_path]
        self._launcher = build_launcher(site.mpi_launcher)
        self._silence_s = site.heartbeat_threshold_s
        self._record = GlobusRecord(context.directory)
        self._group = self._record.group
        run = f"{platform.node()}:{(context.run_directory or context.directory).resolve()}"
        self._run = hashlib.blake2b(run.encode(), digest_size=8).hexdigest()
        self.folder = f"{site.work_dir}/{self._group}"
        self._post: PostEvent = _discard
        self._connect = connect
        self._client: EndpointClient | None = None
        self._actor: Actor | None = None
        self._jobs = GlobusJobs(
            post=self._tell,
            when=self._when,
            lost=self._terminate,
            busy_workers=lambda: len(self._stages.folders),
            silence_s=self._silence_s,
            endpoint=site.endpoint_id,
        )
        self._stages = GlobusStages(
            when=self._when,
            silence_s=self._silence_s,
            endpoint=site.endpoint_id,
            folder=self.folder,
            record=self._record,
        )
        self._pilot: GlobusPilot | None = None
        self._answers = False  # a pilot is up, or was when it was last heard of
        self._trials = "trials"
        self._has_trouble = False
        self._spent: str | None = None  # the block of the pilot that was given up as it was about to end
        self._refusal = ""  # why no pilot of this site can be of use to the search
        self._holds = 0
        self._question: Future[bool] | None = None  # whether a silent endpoint is online

    # ------------------------------------------------------------------------ the Backend protocol

    def open(self, post: PostEvent) -> None:
        """Begin: events go to ``post`` from now on."""
        self._post = post
        if self._client is not None:
            return  # it is held
        self._client = self._connect(self._site, self._group)
        self._actor = Actor(
            f"rasda-{self._site.name}",
            self._tick,
            _TICK_S,
            on_bug=lambda error: self._post(BackendFailed(error)),
        )

    def request_pilot(self, request: RequestPilot) -> None:
        """Ask the endpoint what it has; answered when its pilot is up."""
        self._post_task(lambda: self._request(request))

    def release_pilot(self, release: ReleasePilot) -> None:
        """Let every job leave, and the pilot to the endpoint, which ends it when it is idle."""
        self._post_task(lambda: self._release(release.pilot))

    def start_job(self, order: JobSpec, placement: Placement) -> None:
        """Send a job to the site; it trains to its milestone without asking."""
        self._post_task(lambda: self._start(order, placement))

    def continue_job(self, answer: ContinueJob) -> None:
        """Pass over an answer: no job here ever asks."""

    def end_job(self, end: EndJob) -> None:
        """Let a job leave at its next step."""
        self._post_task(lambda: self._jobs.end(self._tasks, end.reason, end.job))

    def close(self) -> None:
        """End every job; returns when they are gone, or have been told to go."""
        if self._client is None or self._actor is None:
            return
        self._actor.call(lambda: self._jobs.end(self._tasks, "the controller leaves"))
        self._actor.wait_until(lambda: not self._jobs, _CLOSE_WAIT_S)
        self._stop_stages()
        self._actor.call(self._abandon)
        self._post = _discard
        if not self._holds:
            if self._answers:
                self._clean_up()
            self._actor.end()
            self._client.close()
            self._client = self._actor = None

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

    def begin_search(self, suffix: str) -> None:
        """Keep a search apart from another one, whose trials have the same names and which had other inputs.

        Args:
            suffix: Of the folder of its trials on the site; none for the only search of a run.
        """
        self._trials, self._refusal = f"trials{suffix}", ""

    def recover(self, jobs: Iterable[OpenJob]) -> list[Event]:
        """Return how jobs of an earlier controller have ended, after ending those that still run."""
        known = {job: (self._attempt(job), epoch) for job, _, epoch in jobs}
        return recover(self._tasks, self._site, self._new_sender(), known) if known else []

    def directory_of(self, order: JobSpec) -> str:
        """Return where the files of a job lie on the site."""
        return self._attempt(order.job)

    def submit_stage(self, task: StageTask) -> Future[Any]:
        """Run a call of a stage on the site, or wait for one that an earlier controller began.

        Its function is called by name, its arguments travel as JSON, and no files are staged.
        """
        outer = Future[Any]()
        try:
            given = task.with_paths()
        except StageFailedError as error:
            outer.set_exception(error)
            return outer
        folder = f"{self.folder}/stages/{task.folder}"
        arguments = [task.stage, task.target, given, folder, task.search_path]
        name = f"{task.function.__module__}:{task.function.__qualname__}"
        self._post_task(lambda: self._stages.start(self._tasks, outer, name, arguments, task.key))
        return outer

    def _attempt(self, job: JobId) -> str:
        return f"{self.folder}/{self._trials}/{job.trial}/attempt-{job.attempt}"

    # ------------------------------------------------------------------------------ the thread

    @property
    def _tasks(self) -> EndpointClient:
        if self._client is None:
            raise RuntimeError("the backend is not open")
        return self._client

    def _post_task(self, task: Callable[[], None]) -> None:
        if self._actor is not None:
            self._actor.post(task)

    def _when(self, task: Future[Any], then: Callable[[Any], None]) -> None:
        task.add_done_callback(lambda _: self._post_task(lambda: then(task)))

    def _tick(self) -> None:
        self._tasks.mend()
        self._stages.watch(self._tasks)
        self._report_trouble()
        self._left()
        pilot = self._pilot
        if pilot is None:
            return
        if pilot.allocation is None:
            pilot.shake_hands(self._tasks)
            return
        deadline = pilot.allocation.deadline
        if deadline is not None and time.time() > deadline + _WALLTIME_GRACE_S:
            self._spent = pilot.sender.block
            self._terminate(EndedBy.PILOT_AT_WALLTIME, "the pilot's walltime has ended")
            return
        try:
            self._jobs.watch(self._tasks)
        except SiteLostError:
            if self._question is None:
                self._question = self._tasks.ask_whether_online()
                self._when(self._question, self._on_silence)

    def _on_silence(self, is_online: Future[bool]) -> None:
        """Give a silent pilot up: that of an endpoint that is online has ended, at no cost for its jobs."""
        self._question = None
        if self._pilot is None or self._pilot.allocation is None:
            return
        try:
            self._jobs.watch(self._tasks)
        except SiteLostError as lost:
            if is_online.exception() is None and is_online.result():
                self._terminate(EndedBy.PILOT_ENDED, f"{lost.cause}, but is online: its pilot has ended")
            else:
                self._terminate(EndedBy.ENDPOINT_LOST, lost.cause)

    def _report_trouble(self) -> None:
        """Report once what keeps tasks or results from getting through, whenever that begins."""
        trouble = self._tasks.trouble or self._jobs.trouble
        if trouble and not self._has_trouble:
            self._warn(trouble)
        self._has_trouble = bool(trouble)

    def _warn(self, trouble: str) -> None:
        logger.warning("site=%s %s", self._site.name, trouble)
        self._post(SiteDegraded(time.time(), SiteName(self._site.name), trouble))

    def _tell(self, event: Event) -> None:
        self._post(event)

    # ------------------------------------------------------------------------------------- pilots

    def _request(self, request: RequestPilot) -> None:
        if self._refusal:
            self._end_pilot(request, self._refusal, usable=False)
            return
        self._pilot = GlobusPilot(
            request,
            self._new_sender(),
            self._site,
            spent=self._spent,
            when=self._when,
            up=self._up,
            refused=self._refused,
            delayed=self._delayed,
        )
        self._pilot.shake_hands(self._tasks)

    def _new_sender(self) -> TaskContext:
        return TaskContext(
            self.folder,
            str(self._group),
            self._record.next_term(),
            study=self._context.study,
            accelerator=self._site.accelerator,
            run=self._run,
        )

    def _up(self, pilot: GlobusPilot, found: Message) -> None:
        """Offer a pilot that has answered."""
        if self._pilot is not pilot or pilot.allocation is None:
            return
        for warning in handshake.warnings_of(self._site, found, narrowest=self._context.narrowest):
            logger.warning("%s", warning)
        self._jobs.begin_pilot(pilot.sender.block, handshake.jobs_at_a_time(found))
        self._answers = True
        at, request, allocation = time.time(), pilot.request, pilot.allocation
        self._post(
            PilotStarted(
                at,
                request.pilot,
                request.site,
                allocation.nodes,
                interactive=False,
                deadline=allocation.leave_by(self._site.checkpoint_margin_s, at),
            )
        )

    def _refused(self, pilot: GlobusPilot, cause: str) -> None:
        """Report that there is no pilot."""
        if self._pilot is pilot:
            self._pilot = None
            logger.warning("no pilot site=%s cause=%s", self._site.name, cause)
            self._end_pilot(pilot.request, cause, usable=False)

    def _delayed(self, pilot: GlobusPilot, cause: str) -> None:
        """Report why a pilot is waited for."""
        if self._pilot is pilot:
            self._warn(cause)

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
        self._jobs.end(self._tasks, "released")

    def _left(self) -> None:
        """Give the pilot up if it was to be, and its last job has left."""
        pilot = self._pilot
        if pilot is not None and pilot.is_leaving and not self._jobs:
            self._pilot, self._spent = None, pilot.sender.block
            self._end_pilot(pilot.request, "released", usable=True)

    def _terminate(self, ended_by: EndedBy, cause: str, *, usable: bool = True) -> None:
        """Report a pilot as lost, its jobs as ended, and it; they are ended when the site answers again."""
        pilot, self._pilot = self._pilot, None
        if pilot is None:
            return
        self._answers = not usable  # a site that is of no use is there all the same, and must be cleaned up
        self._refusal = self._refusal if usable else cause
        self._post(PilotLost(time.time(), pilot.request.pilot))
        self._jobs.conclude(ended_by, cause)
        self._end_pilot(pilot.request, cause, usable=usable)

    # --------------------------------------------------------------------------------------- jobs

    def _start(self, order: JobSpec, placement: Placement) -> None:
        order = replace(order, directory=self._attempt(order.job), interactive=False)
        pilot = self._pilot
        if pilot is None or pilot.request.pilot != placement.pilot or pilot.allocation is None:
            self._jobs.refuse(order, f"pilot {placement.pilot} had gone")
            return
        arguments = {
            "order": order.to_json(),
            "launch": asdict(pilot.allocation.launch(order, placement, self._site, self._launcher)),
            "mark": pilot.sender.mark_of(order.directory),
            "sender": asdict(pilot.sender),
            "python_path": self._python_path,
            "grace_s": self._grace_s,
        }
        try:
            self._jobs.start(self._tasks, order, arguments)
        except TooLargeError as error:
            self._terminate(EndedBy.SITE_UNFIT, str(error), usable=False)

    # ---------------------------------------------------------------------------------- leaving

    def _abandon(self) -> None:
        """Report whatever is left as ended."""
        self._jobs.conclude(EndedBy.CONTROLLER_CLOSED, "the controller left")
        pilot, self._pilot = self._pilot, None
        if pilot is not None:
            self._end_pilot(pilot.request, "the controller left", usable=True)
        if not self._holds:
            self._stages.give_up()

    def _stop_stages(self) -> None:
        if self._stages.folders and not self._holds:
            self._call_at_end(
                "stop_stages", {"folders": self._stages.folders, "reason": "the controller left"}
            )

    def _clean_up(self) -> None:
        """End what jobs have left running for the next ones: servers that fork ranks."""
        self._call_at_end("clean_up", {"mark": str(self._group), "run": self._run})

    def _call_at_end(self, call: str, arguments: Message) -> None:
        try:
            self._tasks.submit(call, arguments).result(_CLEAN_UP_S)
        except (RasdaError, TimeoutError) as error:
            logger.warning("site %s may have processes left: %s", self._site.name, error)


def _discard(_: object) -> None:
    """Nobody listens."""
