"""The pilots of one site: who asked for them, what they have, how they end, and stages on them.

Everything here runs in the backend's own thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from parsl_rasda.agent import job as agent_job
from parsl_rasda.agent.control_relay import Message
from parsl_rasda.backends.actor import Actor
from parsl_rasda.backends.allocation import PilotAllocation, probe_command, read_allocation
from parsl_rasda.backends.parsl.batch_queue import QueuedJob
from parsl_rasda.backends.parsl.jobs import JobTracker
from parsl_rasda.backends.parsl.pilot_source import (
    NO_EXECUTOR,
    ExecutorLabel,
    PilotExit,
    PilotSource,
    message_of,
)
from parsl_rasda.errors import RasdaError, SiteUnavailableError
from parsl_rasda.exits import EndedBy
from parsl_rasda.orchestration.backend import PostEvent
from parsl_rasda.orchestration.events import (
    RELEASED,
    PilotEnded,
    PilotLost,
    PilotQueued,
    PilotStarted,
    RequestPilot,
)
from parsl_rasda.protocol import JobSpec
from parsl_rasda.study.site_base import SiteBase
from parsl_rasda.types import PilotId, Placement

_CLEAN_UP_GRACE_S = 3.0
_RELEASED = PilotExit(RELEASED, EndedBy.PILOT_RELEASED)

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Pilot:
    request: RequestPilot | None  # None: kept for stages, free for the next request
    executor: ExecutorLabel = NO_EXECUTOR  # known once it is in the queue
    allocation: PilotAllocation | None = None  # known once it is up
    is_leaving: bool = False  # to be kept for stages, but its jobs have not all left
    is_retired: bool = False  # released while a stage was at work there: not to be used for jobs again
    is_unresponsive: bool = False  # its manager is lost, and the batch system is being asked why

    def is_over(self, now: float) -> bool:
        """Whether its walltime was up by then [Unix time, s]."""
        return self.allocation is not None and self.allocation.is_over(now)


@dataclass(slots=True)
class PilotPool:
    """Asks for pilots, announces and terminates them, and knows where stages can run.

    Attributes:
        stages: Those that have not ended.
    """

    site: SiteBase
    source: PilotSource
    tracker: JobTracker
    actor: Actor
    post: PostEvent
    stages: set[Future[Any]] = field(default_factory=set)
    _pilots: dict[ExecutorLabel, _Pilot] = field(default_factory=dict)
    _starting: list[_Pilot] = field(default_factory=list)
    _terminating: dict[PilotId, ExecutorLabel] = field(default_factory=dict)  # not yet reported as ended
    _early_stages: list[Callable[[ExecutorLabel], None]] = field(default_factory=list)  # without a pilot yet

    @property
    def are_all_idle(self) -> bool:
        """Whether no pilot is the machine's."""
        return all(pilot.request is None for pilot in self._pilots.values())

    # ------------------------------------------------------------------------------------- coming

    def request(self, request: RequestPilot) -> None:
        """Ask for an allocation, or take over one that is kept for stages."""
        known = (*self._pilots.values(), *self._starting)
        kept = next((pilot for pilot in known if pilot.request is None and not pilot.is_retired), None)
        if kept is None:
            self._start_pilot(_Pilot(request))
        else:
            kept.request = request
            self._announce(kept)

    def _start_pilot(self, pilot: _Pilot) -> None:
        self._starting.append(pilot)

        def started(future: Future[ExecutorLabel]) -> None:
            self._starting.remove(pilot)
            error = future.exception()
            if error is None:
                pilot.executor = future.result()
                self._started(pilot)
            else:
                self._refused(pilot, error)

        self.actor.run_blocking(self.source.start, started)

    def _started(self, pilot: _Pilot) -> None:
        self._pilots[pilot.executor] = pilot
        asked = (self.site.accelerator, probe_command(self.site))
        probe = self.source.submit(pilot.executor, agent_job.describe_allocation, *asked)
        probe.add_done_callback(lambda done: self.actor.post(lambda: self._probed(pilot, done)))
        early, self._early_stages = self._early_stages, []
        for submit in early:
            submit(pilot.executor)

    def _refused(self, pilot: _Pilot, error: BaseException) -> None:
        cause = error.cause if isinstance(error, SiteUnavailableError) else message_of(error)
        logger.warning("no pilot site=%s cause=%s", self.site.name, cause)
        self._post_end(pilot, cause, usable=False)
        if not self._pilots and not self._starting:
            self._early_stages.clear()
            known = error if isinstance(error, SiteUnavailableError) else None
            for stage in tuple(self.stages):
                _fail(stage, known or SiteUnavailableError(self.site.name, message_of(error)))

    def queued(self, executor: ExecutorLabel, job: QueuedJob) -> None:
        """Report where a pilot stands in its queue; warn if it will not start by itself."""
        pilot = self._pilots.get(executor)
        if pilot is None or pilot.allocation is not None:
            return
        if job.obstacle:
            words = (self.site.name, job.job, job.obstacle)
            logger.warning("pilot will not start by itself site=%s job=%s obstacle=%s", *words)
        if (asked := pilot.request) is not None:
            standing = (job.job, job.state, job.reason, job.starts_at, job.obstacle)
            self.post(PilotQueued(time.time(), asked.pilot, asked.site, *standing))

    def _probed(self, pilot: _Pilot, probe: Future[Message]) -> None:
        if self._pilots.get(pilot.executor) is not pilot:
            return  # ended meanwhile
        error = probe.exception()
        if error is not None:
            self.terminate(pilot.executor, PilotExit(message_of(error), EndedBy.PILOT_LOST))
            return
        found = read_allocation(
            self.site,
            probe.result(),
            now=time.time(),
            is_local=self.source.is_local,
            walltime=self.source.walltime(pilot.executor),
        )
        if isinstance(found, str):
            self.terminate(pilot.executor, PilotExit(found, EndedBy.PILOT_LOST))
            return
        pilot.allocation = found
        self._announce(pilot)

    def _announce(self, pilot: _Pilot) -> None:
        if pilot.request is None or pilot.allocation is None:
            return
        request, allocation, now = pilot.request, pilot.allocation, time.time()
        logger.info("pilot up pilot=%s nodes=%d", request.pilot, len(allocation.nodes))
        self.post(
            PilotStarted(
                now,
                request.pilot,
                request.site,
                allocation.nodes,
                deadline=allocation.leave_by(self.site.checkpoint_margin_s, now),
                release_idle_after_s=self.site.release_idle_after_s,
                warning=allocation.warning,
                is_own_allocation=allocation.is_own,
            )
        )

    # -------------------------------------------------------------------------------------- going

    def release(self, pilot_id: PilotId) -> None:
        """Release an allocation, unless a stage runs: then it only takes no more jobs."""
        pilot = self._pilot_of(pilot_id)
        if pilot is None:
            return
        if self.stages:
            pilot.is_retired = True
            self._withdraw(pilot)
        else:
            self.terminate(pilot.executor, _RELEASED)

    def _withdraw(self, pilot: _Pilot) -> None:
        """Keep a pilot for stages, but report it as ended once its jobs have left."""
        pilot.is_leaving = True
        for job in self.tracker.jobs_in(pilot.executor):
            self.tracker.end(job.id, "released", self.site.checkpoint_margin_s)
        self.on_job_left(pilot.executor)

    def on_job_left(self, executor: ExecutorLabel) -> None:
        """Report a withdrawn pilot as ended if its last job has left."""
        pilot = self._pilots.get(executor)
        if pilot is not None and pilot.is_leaving and not self.tracker.jobs_in(executor):
            self._post_end(pilot, RELEASED, usable=True)
            pilot.request, pilot.is_leaving = None, False

    def withdraw_all(self) -> None:
        """Keep the pilots for stages, but report them as ended once their jobs have left."""
        for pilot in tuple(self._pilots.values()):
            self._withdraw(pilot)

    def terminate(self, executor: ExecutorLabel, end: PilotExit) -> None:
        """End an executor's pilot, make sure that its jobs are gone, and report them, then it."""
        pilot = self._pilots.pop(executor, None)
        if pilot is None:
            return
        end = _at_walltime(end) if pilot.is_over(time.time()) else end
        jobs = self.tracker.jobs_in(executor)
        if pilot.request is not None:
            self._terminating[pilot.request.pilot] = executor
            if end != _RELEASED:
                self.post(PilotLost(time.time(), pilot.request.pilot))

        def clean_up() -> None:
            self.source.end(executor)
            for job in jobs if self.source.is_local else ():
                agent_job.end_job(job.mark, _CLEAN_UP_GRACE_S)  # on a site, they end with their allocation

        def terminated(future: Future[None]) -> None:
            if future.exception() is not None:
                logger.warning("could not end a pilot executor=%s cause=%s", executor, future.exception())
            for job in self.tracker.jobs_in(executor):  # also those that came meanwhile
                self.tracker.conclude(job, end.ended_by if job in jobs else EndedBy.NOT_SENT, end.cause)
            if pilot.request is not None:
                del self._terminating[pilot.request.pilot]
            has_started = pilot.allocation is not None or end == _RELEASED
            self._post_end(pilot, end.cause, usable=has_started)

        self.actor.run_blocking(clean_up, terminated)

    def on_unresponsive(self, executor: ExecutorLabel, cause: str) -> None:
        """Terminate a pilot whose manager is lost; the batch system, asked once, may know why."""
        pilot = self._pilots.get(executor)
        if pilot is None or pilot.is_unresponsive:
            return
        pilot.is_unresponsive = True

        def polled(poll: Future[PilotExit | None]) -> None:
            found = None if poll.exception() is not None else poll.result()
            if self._pilots.get(executor) is pilot:
                self.terminate(executor, found or PilotExit(cause, EndedBy.PILOT_LOST))

        self.actor.run_blocking(lambda: self.source.poll(executor), polled)

    def terminate_all(self, cause: str) -> None:
        """Count every pilot as taken back by its owner."""
        for executor in tuple(self._pilots):
            self.terminate(executor, PilotExit(cause, EndedBy.PILOT_TAKEN_BACK))

    def abandon(self) -> None:
        """Report what is left as ended, now that every process is gone."""
        for pilot in (*self._pilots.values(), *self._starting):
            self._post_end(pilot, "the controller left", usable=True)
        self._pilots.clear()
        self._starting.clear()
        self._early_stages.clear()
        self.fail_stages(SiteUnavailableError(self.site.name, "the backend was closed"))

    def fail_stages(self, error: RasdaError) -> None:
        """End all stages with an error: nobody would end them any more."""
        for stage in tuple(self.stages):
            _fail(stage, error)

    # --------------------------------------------------------------------------------------- work

    def start(self, order: JobSpec, placement: Placement) -> None:
        """Start a job on the pilot that it was placed on."""
        pilot = self._pilot_of(placement.pilot)
        if pilot is None and placement.pilot in self._terminating:
            self.tracker.add_unsent(order, self._terminating[placement.pilot])
        elif pilot is None:
            self.tracker.start(order, placement, NO_EXECUTOR, None)
        else:
            self.tracker.start(order, placement, pilot.executor, pilot.allocation)

    def submit_stage(self, submit: Callable[[ExecutorLabel], None]) -> None:
        """Have a stage submitted to a pilot that is up, else to the next one; ask for one if there is none.

        Args:
            submit: Called with the executor of the pilot.
        """
        up = [pilot.executor for pilot in self._pilots.values() if pilot.allocation is not None]
        if up or self._pilots:
            submit(up[0] if up else next(iter(self._pilots)))
            return
        self._early_stages.append(submit)
        if not self._starting:
            self._start_pilot(_Pilot(None))

    # ---------------------------------------------------------------------------------- internals

    def _post_end(self, pilot: _Pilot, cause: str, *, usable: bool) -> None:
        if pilot.request is not None:
            ended = (pilot.request.pilot, pilot.request.site, cause, usable)
            self.post(PilotEnded(time.time(), *ended, refused=not usable))

    def _pilot_of(self, pilot_id: PilotId) -> _Pilot | None:
        mine = (p for p in self._pilots.values() if p.request is not None and p.request.pilot == pilot_id)
        return next(mine, None)


def _at_walltime(end: PilotExit) -> PilotExit:
    """Return an end that came at the walltime, which LSF calls a failure and PBS does not mention."""
    if end.ended_by is not EndedBy.PILOT_LOST:
        return end
    return PilotExit(f"{end.cause}, at its walltime", EndedBy.PILOT_AT_WALLTIME)


def _fail(stage: Future[Any], error: BaseException) -> None:
    if not stage.done():
        stage.set_exception(error)
