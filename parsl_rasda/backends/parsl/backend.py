"""Carries the machine's instructions out with Parsl: pilots, jobs on them, and stages.

One thread owns the books, of pilots (`pilot_books`) and of jobs (`jobs`). Everything that happens (calls,
futures, messages of the control channel, states of batch jobs) is put into its inbox; whatever may block
for seconds (Parsl's executors, the batch system) runs in a second thread. The runner decides nothing:
which GPUs, when, and what follows from a loss are the machine's decisions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from parsl_rasda.agent import node_probe, orphan_reaper
from parsl_rasda.agent.control_relay import Message
from parsl_rasda.backends.actor import Actor
from parsl_rasda.backends.parsl.control_server import ControlServer
from parsl_rasda.backends.parsl.jobs import JobTracker
from parsl_rasda.backends.parsl.pilot_pool import PilotPool
from parsl_rasda.backends.parsl.pilot_source import (
    AttachedPilots,
    ExecutorLabel,
    OwnPilots,
    PilotExit,
    PilotSource,
)
from parsl_rasda.exits import EndedBy
from parsl_rasda.launch.base import Launcher
from parsl_rasda.launch.registry import build_launcher
from parsl_rasda.orchestration.backend import PostEvent
from parsl_rasda.orchestration.events import (
    ContinueJob,
    EndJob,
    Event,
    ReleasePilot,
    RequestPilot,
)
from parsl_rasda.protocol import JobSpec
from parsl_rasda.study.sites import ParslSiteSpec, SiteBase
from parsl_rasda.types import JobId, Placement

_STAGES_AT_ONCE = 2
_UNKNOWN_SLOTS_PER_NODE = 8  # where only the pilot can count them
_END_GRACE_S = 1.0  # for processes that should have ended by themselves
_CLOSE_WAIT_S = 12.0  # grace, TERM to KILL, and some


@dataclass(slots=True)
class _Session:
    """What exists between `open` and `close`."""

    mark: str
    control: ControlServer
    source: PilotSource
    desk: JobTracker
    books: PilotPool
    loop: Actor


class ParslBackend:
    """The runner of one site that Parsl reaches."""

    def __init__(
        self,
        site: ParslSiteSpec,
        directory: Path,
        *,
        narrowest: int = 1,
        stages_at_once: int = _STAGES_AT_ONCE,
        python_path: tuple[Path, ...] = (),
    ) -> None:
        """Prepare; nothing is imported or started before `open`.

        Args:
            site: Where to run.
            directory: A folder of its own, in the run directory: two runners never share one.
            narrowest: Slots of the narrowest job, which bounds how many run at a time.
            stages_at_once: Calls of stages that run beside them; more would keep jobs waiting.
            python_path: Folders of user modules, for stages and ranks.

        Raises:
            InvalidSettingError: If the site's launcher is unknown.
        """
        self._site = site
        self._directory = directory
        self._launcher: Launcher = build_launcher(site.mpi_launcher)
        slots = site.slots_per_pilot or site.nodes_per_pilot * _slots_per_node(site)
        workers = max(1, slots // narrowest) + stages_at_once
        paths = (*python_path, Path.cwd())

        def build_pilots(mark: str) -> PilotSource:
            return OwnPilots(
                site, self._directory, mark, workers=workers, python_path=paths, on_end=self._on_pilot_end
            )

        self._build_pilots: Callable[[str], PilotSource] = build_pilots
        self._session: _Session | None = None
        self._post: PostEvent = _discard
        self._holds = 0

    @classmethod
    def attached(cls, kernel: Any, label: str, site: SiteBase, directory: Path) -> Self:
        """Return a runner in one executor of a Parsl program that is already running.

        Args:
            kernel: A loaded ``parsl.DataFlowKernel`` (Parsl is untyped); it is used, never ended.
            label: The executor's label. Its workers are shared: it needs one for each job at a time.
            site: What a site file would say of the nodes there; ``gpus_per_node`` of each node.
            directory: A folder of its own, in the run directory.
        """
        declared = site.model_dump(by_alias=True, exclude={"provider"})
        runner = cls(
            ParslSiteSpec.model_validate({**declared, "provider": {"type": "LocalProvider"}}), directory
        )
        runner._build_pilots = lambda _: AttachedPilots(kernel, label)
        return runner

    # ------------------------------------------------------------------------ the Runner protocol

    def open(self, post: PostEvent) -> None:
        """Begin: events go to ``post`` from now on.

        Raises:
            RunDirectoryError: If another controller is at work in its folder.
        """
        self._post = post
        if self._session is not None:
            return  # held open by a pipeline
        mark = orphan_reaper.acquire(self._directory)
        source = self._build_pilots(mark)
        control = ControlServer(source.address, self._on_message)
        loop = Actor("rasda-runner")
        desk = JobTracker(
            site=self._site,
            launcher=self._launcher,
            mark=mark,
            control=control,
            pilots=source,
            call=loop.post,
            post=self._forward,
            on_manager_lost=lambda label, cause: books.on_unresponsive(label, cause),  # noqa: PLW0108 comes below
            on_left=lambda label: books.on_job_left(label),  # noqa: PLW0108
        )
        books = PilotPool(self._site, source, desk, loop, self._forward)
        self._session = _Session(mark, control, source, desk, books, loop)

    def request_pilot(self, request: RequestPilot) -> None:
        """Ask for an allocation, or take over one that is held for stages."""
        self._do(lambda session: session.books.request(request))

    def release_pilot(self, release: ReleasePilot) -> None:
        """Give an allocation back, unless a stage is at work: then it only takes no more jobs."""
        self._do(lambda session: session.books.release(release.pilot))

    def start_job(self, order: JobSpec, placement: Placement) -> None:
        """Start a job on slots that the ledger holds for it."""
        self._do(lambda session: session.books.start(order, placement))

    def continue_job(self, answer: ContinueJob) -> None:
        """Answer a job that waits at an epoch boundary."""
        self._do(lambda session: session.desk.answer(answer))

    def end_job(self, end: EndJob) -> None:
        """Let a job leave: at its boundary, else at its next step; by force when it takes too long."""
        self._do(lambda session: session.desk.end(end.job, end.reason, self._site.checkpoint_margin_s))

    def close(self) -> None:
        """End every job, pilot and process that is left; returns when they are gone."""
        session = self._session
        if session is None:
            return
        desk, books, loop = session.desk, session.books, session.loop
        try:
            loop.call(desk.end_all)
            loop.wait_until(lambda: not desk.jobs, _CLOSE_WAIT_S)
        finally:
            if self._holds:
                loop.call(books.withdraw_all)
                loop.wait_until(lambda: books.are_all_idle, _CLOSE_WAIT_S)
                self._post = _discard
            else:
                self._shut_down(session)

    # ---------------------------------------------------------------------------- beyond the port

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

    def lose(self, cause: str) -> None:
        """Count every pilot as ended by its owner: what still runs there is ended, and will not return."""
        self._do(lambda session: session.books.terminate_all(cause))

    def submit_stage(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run a plain function on a pilot, beside the jobs there; it holds no slots.

        Asks for a pilot if there is none. The function and its arguments travel as Parsl's do.

        Raises:
            RuntimeError: If the runner is not open.
        """
        session, stage = self._session, Future[Any]()
        if session is None:
            raise RuntimeError("the runner is not open")
        session.books.stages.add(stage)
        stage.add_done_callback(session.books.stages.discard)

        def submit(label: ExecutorLabel) -> None:
            task = session.source.submit(label, function, *args, **kwargs)
            task.add_done_callback(lambda done: _copy(done, stage))

        session.loop.post(lambda: session.books.submit_stage(submit))
        return stage

    # ------------------------------------------------------------------- how things come to the inbox

    def _forward(self, event: Event) -> None:
        self._post(event)  # to whoever listens now: that changes while a pipeline holds us

    def _do(self, task: Callable[[_Session], None]) -> None:
        session = self._session
        if session is not None:
            session.loop.post(lambda: task(session))

    def _on_message(self, job: str, message: Message) -> None:
        self._do(lambda session: session.desk.on_message(JobId.parse(job), message))

    def _on_pilot_end(self, label: ExecutorLabel, end: PilotExit) -> None:
        self._do(lambda session: session.books.terminate(label, end))

    # ------------------------------------------------------------------------------------ the end

    def _shut_down(self, session: _Session) -> None:
        try:
            session.loop.end_worker(session.source.close)
        finally:
            orphan_reaper.end_marked(orphan_reaper.RUN_VARIABLE, session.mark, grace_s=_END_GRACE_S)
            orphan_reaper.release(self._directory)
            session.loop.post(lambda: _give_up(session))
            session.loop.end()
            session.control.close()
            self._session = None
            self._post = _discard


def _give_up(session: _Session) -> None:
    """Report what is left as ended, now that every process is gone."""
    for job in tuple(session.desk.jobs.values()):
        session.desk.conclude(job, EndedBy.CONTROLLER_CLOSED, "the controller left")
    session.books.abandon()


def _slots_per_node(site: ParslSiteSpec) -> int:
    if site.is_local:
        return max(1, node_probe.gpu_count(site.accelerator))
    return _UNKNOWN_SLOTS_PER_NODE


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
