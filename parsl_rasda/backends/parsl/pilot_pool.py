"""The books of one site's pilots: who asked for them, what they have, how they end, and stages on them.

Everything here runs in the runner's own thread.
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
from parsl_rasda.backends.allocation import PilotAllocation, read_allocation
from parsl_rasda.backends.parsl.jobs import JobTracker
from parsl_rasda.backends.parsl.pilot_source import NO_EXECUTOR, ExecutorLabel, LaneEnd, PilotSource, words
from parsl_rasda.errors import SiteUnavailableError
from parsl_rasda.orchestration.backend import PostEvent
from parsl_rasda.orchestration.events import RELEASED, PilotEnded, PilotLost, PilotStarted, RequestPilot
from parsl_rasda.protocol import JobSpec
from parsl_rasda.study.sites import ParslSiteSpec
from parsl_rasda.types import Outcome, PilotId, Placement

_MOP_UP_GRACE_S = 3.0
_RELEASED = LaneEnd(RELEASED, is_preemption=True)

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Pilot:
    request: RequestPilot | None  # None: held for stages, free to be adopted
    lane: ExecutorLabel = NO_EXECUTOR  # known once it is in the queue
    allocation: PilotAllocation | None = None  # known once it is up
    is_leaving: bool = False  # held, but its jobs have not all left
    is_retired: bool = False  # released while a stage was at work there: not to be used for jobs again
    is_silent: bool = False  # its manager is lost, and the batch system is being asked why

    def is_over(self, now: float) -> bool:
        """Whether its walltime was up by then [Unix time, s]."""
        return self.allocation is not None and self.allocation.is_over(now)


@dataclass(slots=True)
class PilotPool:
    """Asks for pilots, announces and buries them, and knows where stages can run.

    Attributes:
        stages: Those that have not ended.
    """

    site: ParslSiteSpec
    source: PilotSource
    desk: JobTracker
    loop: Actor
    post: PostEvent
    stages: set[Future[Any]] = field(default_factory=set)
    _pilots: dict[ExecutorLabel, _Pilot] = field(default_factory=dict)
    _beginning: list[_Pilot] = field(default_factory=list)
    _dying: dict[PilotId, ExecutorLabel] = field(default_factory=dict)  # gone, but not yet reported as ended
    _early_stages: list[Callable[[ExecutorLabel], None]] = field(
        default_factory=list
    )  # before there was a pilot

    @property
    def are_all_idle(self) -> bool:
        """Whether no pilot is the machine's."""
        return all(pilot.request is None for pilot in self._pilots.values())

    # ------------------------------------------------------------------------------------- coming

    def request(self, request: RequestPilot) -> None:
        """Ask for an allocation, or take over one that is held for stages."""
        known = (*self._pilots.values(), *self._beginning)
        held = next((pilot for pilot in known if pilot.request is None and not pilot.is_retired), None)
        if held is None:
            self._begin(_Pilot(request))
        else:
            held.request = request
            self._announce(held)

    def _begin(self, pilot: _Pilot) -> None:
        self._beginning.append(pilot)

        def begun(future: Future[ExecutorLabel]) -> None:
            self._beginning.remove(pilot)
            error = future.exception()
            if error is None:
                pilot.lane = future.result()
                self._begun(pilot)
            else:
                self._refused(pilot, error)

        self.loop.block(self.source.begin, begun)

    def _begun(self, pilot: _Pilot) -> None:
        self._pilots[pilot.lane] = pilot
        probe = self.source.submit(pilot.lane, agent_job.describe_allocation, self.site.accelerator)
        probe.add_done_callback(lambda done: self.loop.do(lambda: self._probed(pilot, done)))
        early, self._early_stages = self._early_stages, []
        for submit in early:
            submit(pilot.lane)

    def _refused(self, pilot: _Pilot, error: BaseException) -> None:
        logger.warning("no pilot site=%s cause=%s", self.site.name, words(error))
        self._post_end(pilot, words(error), usable=False)
        if not self._pilots and not self._beginning:
            self._early_stages.clear()
            known = error if isinstance(error, SiteUnavailableError) else None
            for stage in tuple(self.stages):
                _fail(stage, known or SiteUnavailableError(self.site.name, words(error)))

    def _probed(self, pilot: _Pilot, probe: Future[Message]) -> None:
        if self._pilots.get(pilot.lane) is not pilot:
            return  # ended meanwhile
        error = probe.exception()
        if error is not None:
            self.bury(pilot.lane, LaneEnd(words(error), is_preemption=False))
            return
        found = read_allocation(
            self.site,
            probe.result(),
            now=time.time(),
            is_local=self.source.is_local,
            walltime=self.source.walltime,
        )
        if isinstance(found, str):
            self.bury(pilot.lane, LaneEnd(found, is_preemption=False))
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
            )
        )

    # -------------------------------------------------------------------------------------- going

    def release(self, pilot_id: PilotId) -> None:
        """Give an allocation back, unless a stage is at work: then it only takes no more jobs."""
        pilot = self._pilot_of(pilot_id)
        if pilot is None:
            return
        if self.stages:
            pilot.is_retired = True
            self._let_go(pilot)
        else:
            self.bury(pilot.lane, _RELEASED)

    def _let_go(self, pilot: _Pilot) -> None:
        """Keep a pilot, but take it away from the machine once its jobs have left."""
        pilot.is_leaving = True
        for job in self.desk.on_lane(pilot.lane):
            self.desk.end(job.id, "released", self.site.checkpoint_margin_s)
        self.left(pilot.lane)

    def left(self, lane: ExecutorLabel) -> None:
        """Let go of a lane's pilot if it was to be, and its last job has left."""
        pilot = self._pilots.get(lane)
        if pilot is not None and pilot.is_leaving and not self.desk.on_lane(lane):
            self._post_end(pilot, RELEASED, usable=True)
            pilot.request, pilot.is_leaving = None, False

    def let_go_of_all(self) -> None:
        """Keep the pilots, for stages, but take them away from the machine."""
        for pilot in tuple(self._pilots.values()):
            self._let_go(pilot)

    def bury(self, lane: ExecutorLabel, end: LaneEnd) -> None:
        """End a lane's pilot, make sure that its jobs are gone, and report them, then it."""
        pilot = self._pilots.pop(lane, None)
        if pilot is None:
            return
        end = _at_walltime(end) if pilot.is_over(time.time()) else end
        jobs = self.desk.on_lane(lane)
        if pilot.request is not None:
            self._dying[pilot.request.pilot] = lane
            if end != _RELEASED:
                self.post(PilotLost(time.time(), pilot.request.pilot))
        outcome = Outcome.PREEMPTED if end.is_preemption else Outcome.LOST

        def dig() -> None:
            self.source.end(lane)
            for job in jobs if self.source.is_local else ():
                agent_job.end_job(job.mark, _MOP_UP_GRACE_S)  # on a site, they end with their allocation

        def buried(future: Future[None]) -> None:
            if future.exception() is not None:
                logger.warning("could not end a pilot lane=%s cause=%s", lane, future.exception())
            for job in self.desk.on_lane(lane):  # also those that were sent there meanwhile
                self.desk.conclude(job, outcome if job in jobs else Outcome.PREEMPTED, end.cause)
            if pilot.request is not None:
                del self._dying[pilot.request.pilot]
            has_started = pilot.allocation is not None or end == _RELEASED
            self._post_end(pilot, end.cause, usable=has_started)

        self.loop.block(dig, buried)

    def fallen_silent(self, lane: ExecutorLabel, cause: str) -> None:
        """A pilot's manager is lost; the batch system, asked once, may know why."""
        pilot = self._pilots.get(lane)
        if pilot is None or pilot.is_silent:
            return
        pilot.is_silent = True

        def looked(look: Future[LaneEnd | None]) -> None:
            seen = None if look.exception() is not None else look.result()
            if self._pilots.get(lane) is pilot:
                self.bury(lane, seen or LaneEnd(cause, is_preemption=False))

        self.loop.block(lambda: self.source.look(lane), looked)

    def bury_all(self, cause: str) -> None:
        """Count every pilot as ended by its owner."""
        for lane in tuple(self._pilots):
            self.bury(lane, LaneEnd(cause, is_preemption=True))

    def give_up(self) -> None:
        """Report what is left as ended, now that every process is gone."""
        for pilot in (*self._pilots.values(), *self._beginning):
            self._post_end(pilot, "the controller left", usable=True)
        self._pilots.clear()
        self._beginning.clear()
        self._early_stages.clear()
        for stage in tuple(self.stages):
            _fail(stage, SiteUnavailableError(self.site.name, "the runner was closed"))

    # --------------------------------------------------------------------------------------- work

    def start(self, order: JobSpec, placement: Placement) -> None:
        """Start a job on the pilot that it was placed on."""
        pilot = self._pilot_of(placement.pilot)
        if pilot is None and placement.pilot in self._dying:
            self.desk.hold(order, self._dying[placement.pilot])
        elif pilot is None:
            self.desk.start(order, placement, NO_EXECUTOR, None)
        else:
            self.desk.start(order, placement, pilot.lane, pilot.allocation)

    def submit_stage(self, submit: Callable[[ExecutorLabel], None]) -> None:
        """Have a stage submitted to a pilot that is up, else to the next one; ask for one if there is none.

        Args:
            submit: Called with its lane.
        """
        up = [pilot.lane for pilot in self._pilots.values() if pilot.allocation is not None]
        if up or self._pilots:
            submit(up[0] if up else next(iter(self._pilots)))
            return
        self._early_stages.append(submit)
        if not self._beginning:
            self._begin(_Pilot(None))

    # ---------------------------------------------------------------------------------- internals

    def _post_end(self, pilot: _Pilot, cause: str, *, usable: bool) -> None:
        if pilot.request is not None:
            ended = (pilot.request.pilot, pilot.request.site, cause, usable)
            self.post(PilotEnded(time.time(), *ended))

    def _pilot_of(self, pilot_id: PilotId) -> _Pilot | None:
        mine = (p for p in self._pilots.values() if p.request is not None and p.request.pilot == pilot_id)
        return next(mine, None)


def _at_walltime(end: LaneEnd) -> LaneEnd:
    """Return an end that came with the walltime, which LSF calls a failure and PBS nothing at all."""
    return end if end.is_preemption else LaneEnd(f"{end.cause}, at its walltime", is_preemption=True)


def _fail(stage: Future[Any], error: BaseException) -> None:
    if not stage.done():
        stage.set_exception(error)
