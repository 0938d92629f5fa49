"""Carries the machine's instructions out with Parsl: pilots, jobs on them, and stages.

One thread owns the books. Everything that happens (calls, futures, messages of the control channel,
states of batch jobs) is put into its inbox; whatever may block for seconds (Parsl's executors, the
batch system) runs in a second thread. The runner decides nothing: which GPUs, when, and what follows
from a loss are the machine's decisions.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from parsl_rasda.errors import SiteUnavailableError
from parsl_rasda.handoff import JobOrder
from parsl_rasda.launch.base import Launcher
from parsl_rasda.launch.registry import build_launcher
from parsl_rasda.orchestration.events import (
    RELEASED,
    ContinueJob,
    EndJob,
    Event,
    PilotEnded,
    PilotStarted,
    ReleasePilot,
    RequestPilot,
)
from parsl_rasda.orchestration.ports import PostEvent
from parsl_rasda.runners import app, hosts, leftovers
from parsl_rasda.runners.allocations import Allocation, read_allocation
from parsl_rasda.runners.control import ControlServer, Message
from parsl_rasda.runners.jobs import JobDesk
from parsl_rasda.runners.pilots import NO_LANE, AttachedPilots, Lane, LaneEnd, OwnPilots, PilotSource, words
from parsl_rasda.study.sites import ParslSiteSpec, SiteBase
from parsl_rasda.vocabulary import JobId, Outcome, PilotId, Placement

_STAGES_AT_ONCE = 2
_UNKNOWN_SLOTS_PER_NODE = 8  # where only the pilot can count them
_END_GRACE_S = 1.0  # for processes that should have ended by themselves
_CLOSE_WAIT_S = 12.0  # grace, TERM to KILL, and some
_MOP_UP_GRACE_S = 3.0
_RELEASED = LaneEnd(RELEASED, is_preemption=True)

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Pilot:
    request: RequestPilot | None  # None: held for stages, free to be adopted
    lane: Lane = NO_LANE  # known once it is in the queue
    allocation: Allocation | None = None  # known once it is up
    is_leaving: bool = False  # held, but its jobs have not all left
    is_retired: bool = False  # released while a stage was at work there: not to be used for jobs again
    is_silent: bool = False  # its manager is lost, and the batch system is being asked why

    def is_over(self, now: float) -> bool:
        """Whether its walltime was up by then [Unix time, s]."""
        return self.allocation is not None and self.allocation.is_over(now)


@dataclass(slots=True)
class _Session:
    """What exists between `open` and `close`."""

    mark: str
    control: ControlServer
    pilots: PilotSource
    desk: JobDesk
    blocking: ThreadPoolExecutor
    thread: threading.Thread
    inbox: queue.SimpleQueue[Callable[[], None] | None]
    changed: threading.Condition = field(default_factory=threading.Condition)


class ParslRunner:
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
        self._directory, self._grace_s = directory, site.checkpoint_margin_s
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
        self._pilots: dict[Lane, _Pilot] = {}
        self._beginning: list[_Pilot] = []
        self._dying: dict[PilotId, Lane] = {}  # gone, but not yet reported as ended
        self._stages: set[Future[Any]] = set()
        self._early_stages: list[Callable[[Lane], None]] = []  # before there was a pilot
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
        mark = leftovers.claim(self._directory)
        pilots = self._build_pilots(mark)
        inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        control = ControlServer(pilots.address, self._on_message)
        self._session = _Session(
            mark=mark,
            control=control,
            pilots=pilots,
            desk=JobDesk(
                site=self._site,
                launcher=self._launcher,
                mark=mark,
                control=control,
                pilots=pilots,
                do=self._do,
                post=self._forward,
                on_manager_lost=self._fallen_silent,
                on_left=self._left,
            ),
            blocking=ThreadPoolExecutor(1, thread_name_prefix="rasda-pilots"),
            thread=threading.Thread(target=self._work, args=(inbox,), name="rasda-runner", daemon=True),
            inbox=inbox,
        )
        self._session.thread.start()

    def request_pilot(self, request: RequestPilot) -> None:
        """Ask for an allocation, or take over one that is held for stages."""
        self._do(lambda: self._request(request))

    def release_pilot(self, release: ReleasePilot) -> None:
        """Give an allocation back, unless a stage is at work: then it only takes no more jobs."""
        self._do(lambda: self._release(release.pilot))

    def start_job(self, order: JobOrder, placement: Placement) -> None:
        """Start a job on slots that the ledger holds for it."""
        self._do(lambda: self._start(order, placement))

    def continue_job(self, answer: ContinueJob) -> None:
        """Answer a job that waits at an epoch boundary."""
        self._do(lambda: self._open_session.desk.answer(answer))

    def end_job(self, end: EndJob) -> None:
        """Let a job leave: at its boundary, else at its next step; by force when it takes too long."""
        self._do(lambda: self._open_session.desk.end(end.job, end.reason, self._grace_s))

    def close(self) -> None:
        """End every job, pilot and process that is left; returns when they are gone."""
        if self._session is None:
            return
        desk = self._session.desk
        try:
            self._do_now(desk.end_all)
            self._wait_until(lambda: not desk.jobs, _CLOSE_WAIT_S)
        finally:
            if self._holds:
                self._do_now(self._let_go_of_all)
                self._wait_until(lambda: all(p.request is None for p in self._pilots.values()), _CLOSE_WAIT_S)
                self._post = _discard
            else:
                self._shut_down(self._session)

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

        def bury_all() -> None:
            for lane in tuple(self._pilots):
                self._bury(lane, LaneEnd(cause, is_preemption=True))

        self._do(bury_all)

    def submit_stage(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run a plain function on a pilot, beside the jobs there; it holds no slots.

        Asks for a pilot if there is none. The function and its arguments travel as Parsl's do.
        """
        stage: Future[Any] = Future()
        self._stages.add(stage)
        stage.add_done_callback(self._stages.discard)

        def submit(lane: Lane) -> None:
            task = self._open_session.pilots.submit(lane, function, *args, **kwargs)
            task.add_done_callback(lambda done: _copy(done, stage))

        self._do(lambda: self._submit_stage(submit))
        return stage

    # ------------------------------------------------------------------- how things come to the inbox

    def _forward(self, event: Event) -> None:
        self._post(event)  # to whoever listens now: that changes while a pipeline holds us

    def _do(self, task: Callable[[], None]) -> None:
        if self._session is not None:
            self._session.inbox.put(task)

    def _do_now(self, task: Callable[[], None]) -> None:
        """Wait until our thread has done a task, and all that came before it."""
        done = threading.Event()
        self._do(task)
        self._do(done.set)
        done.wait()

    def _block(self, task: Callable[[], Any], then: Callable[[Future[Any]], None]) -> None:
        """Run a task that may take seconds in the second thread, and then ``then`` in ours."""
        future = self._open_session.blocking.submit(task)
        future.add_done_callback(lambda done: self._do(lambda: then(done)))

    def _on_message(self, job: str, message: Message) -> None:
        self._do(lambda: self._open_session.desk.hear(JobId.parse(job), message))

    def _on_pilot_end(self, lane: Lane, end: LaneEnd) -> None:
        self._do(lambda: self._bury(lane, end))

    def _work(self, inbox: queue.SimpleQueue[Callable[[], None] | None]) -> None:
        while (task := inbox.get()) is not None:
            try:
                task()
            except Exception:  # a bug; ending the thread would leave the study waiting for ever
                logger.exception("could not act on an event")
            session = self._session
            if session is not None:
                with session.changed:
                    session.changed.notify_all()

    @property
    def _open_session(self) -> _Session:
        if self._session is None:
            raise RuntimeError("the runner is not open")
        return self._session

    # ------------------------------------------------------------------------------------- pilots

    def _request(self, request: RequestPilot) -> None:
        known = (*self._pilots.values(), *self._beginning)
        held = next((pilot for pilot in known if pilot.request is None and not pilot.is_retired), None)
        if held is None:
            self._begin(_Pilot(request))
        else:
            held.request = request
            self._announce(held)

    def _begin(self, pilot: _Pilot) -> None:
        self._beginning.append(pilot)

        def begun(future: Future[Lane]) -> None:
            self._beginning.remove(pilot)
            error = future.exception()
            if error is None:
                pilot.lane = future.result()
                self._begun(pilot)
            else:
                self._refused(pilot, error)

        self._block(self._open_session.pilots.begin, begun)

    def _begun(self, pilot: _Pilot) -> None:
        self._pilots[pilot.lane] = pilot
        probe = self._open_session.pilots.submit(pilot.lane, app.describe_allocation, self._site.accelerator)
        probe.add_done_callback(lambda done: self._do(lambda: self._probed(pilot, done)))
        early, self._early_stages = self._early_stages, []
        for submit in early:
            submit(pilot.lane)

    def _refused(self, pilot: _Pilot, error: BaseException) -> None:
        logger.warning("no pilot site=%s cause=%s", self._site.name, words(error))
        self._post_end(pilot, words(error), usable=False)
        if not self._pilots and not self._beginning:
            self._early_stages.clear()
            known = error if isinstance(error, SiteUnavailableError) else None
            for stage in tuple(self._stages):
                _fail(stage, known or SiteUnavailableError(self._site.name, words(error)))

    def _probed(self, pilot: _Pilot, probe: Future[Message]) -> None:
        if self._pilots.get(pilot.lane) is not pilot:
            return  # ended meanwhile
        error = probe.exception()
        if error is not None:
            self._bury(pilot.lane, LaneEnd(words(error), is_preemption=False))
            return
        pilots = self._open_session.pilots
        found = read_allocation(
            self._site,
            probe.result(),
            now=time.time(),
            is_local=pilots.is_local,
            walltime=pilots.walltime,
        )
        if isinstance(found, str):
            self._bury(pilot.lane, LaneEnd(found, is_preemption=False))
            return
        pilot.allocation = found
        self._announce(pilot)

    def _announce(self, pilot: _Pilot) -> None:
        if pilot.request is None or pilot.allocation is None:
            return
        request, allocation, now = pilot.request, pilot.allocation, time.time()
        logger.info("pilot up pilot=%s nodes=%d", request.pilot, len(allocation.nodes))
        self._post(
            PilotStarted(
                now,
                request.pilot,
                request.site,
                allocation.nodes,
                deadline=allocation.leave_by(self._site.checkpoint_margin_s, now),
                release_idle_after_s=self._site.release_idle_after_s,
                warning=allocation.warning,
            )
        )

    def _release(self, pilot_id: PilotId) -> None:
        pilot = self._pilot_of(pilot_id)
        if pilot is None:
            return
        if self._stages:
            pilot.is_retired = True
            self._let_go(pilot)
        else:
            self._bury(pilot.lane, _RELEASED)

    def _let_go(self, pilot: _Pilot) -> None:
        """Keep a pilot, but take it away from the machine once its jobs have left."""
        pilot.is_leaving = True
        desk = self._open_session.desk
        for job in desk.on_lane(pilot.lane):
            desk.end(job.id, "released", self._grace_s)
        self._left(pilot.lane)

    def _left(self, lane: Lane) -> None:
        """Let go of a lane's pilot if it was to be, and its last job has left."""
        pilot = self._pilots.get(lane)
        if pilot is not None and pilot.is_leaving and not self._open_session.desk.on_lane(lane):
            self._post_end(pilot, RELEASED, usable=True)
            pilot.request, pilot.is_leaving = None, False

    def _let_go_of_all(self) -> None:
        for pilot in tuple(self._pilots.values()):
            self._let_go(pilot)

    def _bury(self, lane: Lane, end: LaneEnd) -> None:
        """End a lane's pilot, make sure that its jobs are gone, and report them, then it."""
        pilot = self._pilots.pop(lane, None)
        if pilot is None:
            return
        end = _at_walltime(end) if pilot.is_over(time.time()) else end
        session = self._open_session
        jobs = session.desk.on_lane(lane)
        if pilot.request is not None:
            self._dying[pilot.request.pilot] = lane
        outcome = Outcome.PREEMPTED if end.is_preemption else Outcome.LOST

        def dig() -> None:
            session.pilots.end(lane)
            for job in jobs if session.pilots.is_local else ():
                app.end_job(job.mark, _MOP_UP_GRACE_S)  # on a site, they end with their allocation

        def buried(future: Future[None]) -> None:
            if future.exception() is not None:
                logger.warning("could not end a pilot lane=%s cause=%s", lane, future.exception())
            for job in session.desk.on_lane(lane):  # also those that were sent there meanwhile
                session.desk.conclude(job, outcome if job in jobs else Outcome.PREEMPTED, end.cause)
            if pilot.request is not None:
                del self._dying[pilot.request.pilot]
            has_started = pilot.allocation is not None or end == _RELEASED
            self._post_end(pilot, end.cause, usable=has_started)

        self._block(dig, buried)

    def _post_end(self, pilot: _Pilot, cause: str, *, usable: bool) -> None:
        if pilot.request is not None:
            ended = (pilot.request.pilot, pilot.request.site, cause, usable)
            self._post(PilotEnded(time.time(), *ended))

    def _pilot_of(self, pilot_id: PilotId) -> _Pilot | None:
        mine = (p for p in self._pilots.values() if p.request is not None and p.request.pilot == pilot_id)
        return next(mine, None)

    def _fallen_silent(self, lane: Lane, cause: str) -> None:
        """A pilot's manager is lost; the batch system, asked once, may know why."""
        pilot = self._pilots.get(lane)
        if pilot is None or pilot.is_silent:
            return
        pilot.is_silent = True

        def looked(look: Future[LaneEnd | None]) -> None:
            seen = None if look.exception() is not None else look.result()
            if self._pilots.get(lane) is pilot:
                self._bury(lane, seen or LaneEnd(cause, is_preemption=False))

        self._block(lambda: self._open_session.pilots.look(lane), looked)

    def _start(self, order: JobOrder, placement: Placement) -> None:
        pilot = self._pilot_of(placement.pilot)
        desk = self._open_session.desk
        if pilot is None and placement.pilot in self._dying:
            desk.hold(order, self._dying[placement.pilot])
        elif pilot is None:
            desk.start(order, placement, NO_LANE, None)
        else:
            desk.start(order, placement, pilot.lane, pilot.allocation)

    # ------------------------------------------------------------------------------------- stages

    def _submit_stage(self, submit: Callable[[Lane], None]) -> None:
        up = [pilot.lane for pilot in self._pilots.values() if pilot.allocation is not None]
        if up or self._pilots:
            submit(up[0] if up else next(iter(self._pilots)))
            return
        self._early_stages.append(submit)
        if not self._beginning:
            self._begin(_Pilot(None))

    # ------------------------------------------------------------------------------------ the end

    def _wait_until(self, is_so: Callable[[], bool], timeout_s: float) -> None:
        changed = self._open_session.changed
        with changed:
            changed.wait_for(is_so, timeout_s)

    def _shut_down(self, session: _Session) -> None:
        try:
            session.blocking.submit(session.pilots.close).result()
            session.blocking.shutdown()
        finally:
            leftovers.end_marked(leftovers.RUN_VARIABLE, session.mark, grace_s=_END_GRACE_S)
            leftovers.release(self._directory)
            self._do(self._give_up)
            session.inbox.put(None)
            session.thread.join()
            session.control.close()
            self._session = None
            self._post = _discard

    def _give_up(self) -> None:
        """Report what is left as ended, now that every process is gone."""
        desk = self._open_session.desk
        for job in tuple(desk.jobs.values()):
            desk.conclude(job, Outcome.PREEMPTED, "the controller left")
        for pilot in (*self._pilots.values(), *self._beginning):
            self._post_end(pilot, "the controller left", usable=True)
        self._pilots.clear()
        self._beginning.clear()
        self._early_stages.clear()
        for stage in tuple(self._stages):
            _fail(stage, SiteUnavailableError(self._site.name, "the runner was closed"))


def _at_walltime(end: LaneEnd) -> LaneEnd:
    """Return an end that came with the walltime, which LSF calls a failure and PBS nothing at all."""
    return end if end.is_preemption else LaneEnd(f"{end.cause}, at its walltime", is_preemption=True)


def _slots_per_node(site: ParslSiteSpec) -> int:
    if site.is_local:
        return max(1, hosts.gpu_count(site.accelerator))
    return _UNKNOWN_SLOTS_PER_NODE


def _copy(done: Future[Any], into: Future[Any]) -> None:
    if into.done():
        return
    error = done.exception()
    if error is None:
        into.set_result(done.result())
    else:
        into.set_exception(error)


def _fail(stage: Future[Any], error: BaseException) -> None:
    if not stage.done():
        stage.set_exception(error)


def _discard(_: object) -> None:
    """Nobody listens."""
