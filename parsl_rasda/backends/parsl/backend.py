"""The backend of sites that Parsl reaches: pilots, jobs on them, and calls of stages.

One thread owns all state, of pilots (`pilot_pool`) and of jobs (`jobs`). Everything that happens (calls,
futures, messages of the control channel, states of batch jobs) is posted to it; whatever may block for
seconds (Parsl's executors, the batch system) runs in a second thread. The backend decides nothing:
which GPUs, when, and what follows from a loss are the machine's decisions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from parsl_rasda.agent import orphan_reaper
from parsl_rasda.agent.control_relay import Message
from parsl_rasda.agent.job import Named
from parsl_rasda.backends.actor import Actor
from parsl_rasda.backends.parsl.batch_queue import QueuedJob
from parsl_rasda.backends.parsl.control_server import ControlServer
from parsl_rasda.backends.parsl.jobs import JobTracker
from parsl_rasda.backends.parsl.pilot_pool import PilotPool
from parsl_rasda.backends.parsl.pilot_source import (
    ExecutorLabel,
    PilotExit,
    PilotSource,
    PilotSourceFactory,
    own_pilots,
    pilots_in_executor,
)
from parsl_rasda.errors import ControllerFailedError
from parsl_rasda.exits import EndedBy
from parsl_rasda.launch.base import Launcher
from parsl_rasda.launch.registry import build_launcher
from parsl_rasda.orchestration.backend import BackendContext, BackendFailed, OpenJob, PostEvent, StageTask
from parsl_rasda.orchestration.events import (
    ContinueJob,
    EndJob,
    Event,
    ReleasePilot,
    RequestPilot,
)
from parsl_rasda.protocol import JobSpec
from parsl_rasda.study.parsl_site import ParslSiteSpec
from parsl_rasda.study.site_base import SiteBase
from parsl_rasda.study.sites import ExecutorSite
from parsl_rasda.types import JobId, Placement

_END_GRACE_S = 1.0  # for processes that should have ended by themselves
_CLOSE_WAIT_S = 12.0  # grace, TERM to KILL, and some

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Running:
    """What exists between `open` and `close`."""

    mark: str
    control: ControlServer
    source: PilotSource
    tracker: JobTracker
    pool: PilotPool
    actor: Actor


def build(site: ParslSiteSpec, context: BackendContext) -> ParslBackend:
    """Return the backend of a site with a provider of Parsl's.

    Raises:
        InvalidSettingError: If the site's launcher is unknown.
        RunDirectoryError: If Parsl cannot work in the run directory or in the site's `work_dir`.
    """
    return ParslBackend(site, context, own_pilots(site, context))


def attach(site: ExecutorSite, context: BackendContext, kernel: Any) -> ParslBackend:
    """Return the backend of one executor of a Parsl program that is already running.

    Its workers are shared: the executor needs one for each job at a time.

    Args:
        site: Named as the executor is labelled.
        context: Of the search.
        kernel: A loaded ``parsl.DataFlowKernel`` (Parsl is untyped); it is used, never ended.
    """
    return ParslBackend(site, context, pilots_in_executor(kernel, site.name))


class ParslBackend:
    """The backend of one site that Parsl reaches."""

    def __init__(self, site: SiteBase, context: BackendContext, pilots: PilotSourceFactory) -> None:
        """Prepare; nothing is imported or started before `open`.

        Args:
            site: Where to run.
            context: Of the study.
            pilots: Where its pilots come from.

        Raises:
            InvalidSettingError: If the site's launcher is unknown.
        """
        self.capabilities = site.capabilities
        self._site, self._context, self._directory = site, context, context.directory
        self._launcher: Launcher = build_launcher(site.mpi_launcher)
        self._build_pilots = pilots
        self._running: _Running | None = None
        self._post: PostEvent = _discard
        self._holds = 0

    # ------------------------------------------------------------------------ the Backend protocol

    def open(self, post: PostEvent) -> None:
        """Begin: events go to ``post`` from now on.

        Raises:
            RunDirectoryError: If another controller is at work in its folder.
        """
        self._post = post
        if self._running is not None:
            return  # it is held
        mark = orphan_reaper.acquire(self._directory)
        source = self._build_pilots(mark, self._on_pilot_end, self._on_pilot_queued)
        control = ControlServer(
            source.addresses, self._on_message, lambda error: self._forward(BackendFailed(error))
        )
        actor = Actor("rasda-parsl", on_bug=lambda error: self._on_bug(error, pool))  # comes below
        tracker = JobTracker(
            site=self._site,
            launcher=self._launcher,
            mark=mark,
            control=control,
            pilots=source,
            call=actor.post,
            post=self._forward,
            on_manager_lost=lambda label, cause: pool.on_unresponsive(label, cause),  # noqa: PLW0108 comes below
            on_left=lambda label: pool.on_job_left(label),  # noqa: PLW0108
        )
        pool = PilotPool(self._site, source, tracker, actor, self._forward)
        self._running = _Running(mark, control, source, tracker, pool, actor)

    def request_pilot(self, request: RequestPilot) -> None:
        """Ask for an allocation, or take over one that is held for stages."""
        self._post_task(lambda running: running.pool.request(request))

    def release_pilot(self, release: ReleasePilot) -> None:
        """Give an allocation back, unless a stage is at work: then it only takes no more jobs."""
        self._post_task(lambda running: running.pool.release(release.pilot))

    def start_job(self, order: JobSpec, placement: Placement) -> None:
        """Start a job on slots that the ledger holds for it."""
        self._post_task(lambda running: running.pool.start(order, placement))

    def continue_job(self, answer: ContinueJob) -> None:
        """Answer a job that waits at an epoch boundary."""
        self._post_task(lambda running: running.tracker.answer(answer))

    def end_job(self, end: EndJob) -> None:
        """Let a job leave: at its boundary, else at its next step; by force when it takes too long."""
        self._post_task(
            lambda running: running.tracker.end(end.job, end.reason, self._site.checkpoint_margin_s)
        )

    def close(self) -> None:
        """End every job, pilot and process that is left; returns when they are gone."""
        running = self._running
        if running is None:
            return
        tracker, pool, actor = running.tracker, running.pool, running.actor
        try:
            actor.call(tracker.end_all)
            actor.wait_until(lambda: not tracker.jobs, _CLOSE_WAIT_S)
        finally:
            if self._holds:
                actor.call(pool.withdraw_all)
                actor.wait_until(lambda: pool.are_all_idle, _CLOSE_WAIT_S)
                self._post = _discard
            else:
                self._shut_down(running)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keep pilots through ``open`` and ``close`` of single stages; at the end, give them back."""
        self.open(_discard)
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1
            self.close()

    def begin_search(self, suffix: str) -> None:
        """Pass over it: the orders of a search name its own folders."""

    def recover(self, jobs: Iterable[OpenJob]) -> list[Event]:
        """Return nothing: the disk of the site is seen here."""
        return []

    def directory_of(self, order: JobSpec) -> str:
        """Return where the files of a job lie, which is where its order says."""
        return order.directory

    def submit_stage(self, task: StageTask) -> Future[Any]:
        """Run a call of a stage on a pilot, beside the jobs there; it holds no slots.

        Asks for a pilot if there is none. The function and its arguments travel as Parsl's do, files
        are staged by Parsl.

        Raises:
            RuntimeError: If the backend is not open.
        """
        running, stage = self._running, Future[Any]()
        if running is None:
            raise RuntimeError("the backend is not open")
        running.pool.stages.add(stage)
        stage.add_done_callback(running.pool.stages.discard)
        function = Named(f"stage_{task.folder.replace('/', '_')}", task.function)
        folder = str(self._context.stages / task.folder)
        arguments = (task.stage, task.target, dict(task.arguments), folder, task.search_path)
        named = _staged(task, self._context)

        def submit(label: ExecutorLabel) -> None:
            done = running.source.submit(label, function, *arguments, **named)
            done.add_done_callback(lambda done: _copy(done, stage))

        running.actor.post(lambda: running.pool.submit_stage(submit))
        return stage

    # ---------------------------------------------------------------------------- beyond the port

    def lose(self, cause: str) -> None:
        """Count every pilot as ended by its owner: what still runs there is ended, and will not return."""
        self._post_task(lambda running: running.pool.terminate_all(cause))

    # ------------------------------------------------------------------- posted to the thread

    def _on_bug(self, error: Exception, pool: PilotPool) -> None:
        pool.fail_stages(ControllerFailedError(type(error).__name__, str(error)))
        self._forward(BackendFailed(error))

    def _forward(self, event: Event | BackendFailed) -> None:
        self._post(event)  # to whoever listens now: that changes while it is held

    def _post_task(self, task: Callable[[_Running], None]) -> None:
        running = self._running
        if running is not None:
            running.actor.post(lambda: task(running))

    def _on_message(self, job: str, message: Message) -> None:
        def take(running: _Running) -> None:
            try:
                running.tracker.on_message(JobId.parse(job), message)
            except (ValueError, TypeError, KeyError):  # ranks run the user's code: anything may come
                logger.warning("dropped message job=%s op=%s", job, message["op"], exc_info=True)

        self._post_task(take)

    def _on_pilot_end(self, label: ExecutorLabel, end: PilotExit) -> None:
        self._post_task(lambda running: running.pool.terminate(label, end))

    def _on_pilot_queued(self, label: ExecutorLabel, job: QueuedJob) -> None:
        self._post_task(lambda running: running.pool.queued(label, job))

    # ------------------------------------------------------------------------------------ the end

    def _shut_down(self, running: _Running) -> None:
        try:
            running.actor.end_worker(running.source.close)
        finally:
            orphan_reaper.end_marked(orphan_reaper.RUN_VARIABLE, running.mark, grace_s=_END_GRACE_S)
            orphan_reaper.release(self._directory)
            running.actor.post(lambda: _abandon(running))
            running.actor.end()
            running.control.close()
            self._running = None
            self._post = _discard


def _abandon(running: _Running) -> None:
    """Report what is left as ended, now that every process is gone."""
    for job in tuple(running.tracker.jobs.values()):
        running.tracker.conclude(job, EndedBy.CONTROLLER_CLOSED, "the controller left")
    running.pool.abandon()


def _staged(task: StageTask, context: BackendContext) -> dict[str, Any]:
    """Return the files of a task as Parsl stages them."""
    if not task.files:
        return {}
    from parsl_rasda.backends.parsl import staging

    return {
        "files": tuple(task.files),
        "inputs": staging.files_in(context.files / task.folder, task.files),
    }


def _copy(done: Future[Any], into: Future[Any]) -> None:
    if into.done():
        return
    error = done.exception()
    if error is None:
        into.set_result(done.result())
    else:
        into.set_exception(error)


def _discard(_: object) -> None:
    """Nobody listens."""
