"""The books of one session's jobs: from an order to the one `JobEnded` that answers it.

Owned by the runner's thread; nothing here blocks.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from parsl_rasda.agent import exit_diagnosis
from parsl_rasda.agent import job as agent_job
from parsl_rasda.agent.control_relay import Message
from parsl_rasda.backends.allocation import PilotAllocation
from parsl_rasda.backends.parsl.control_server import ControlServer
from parsl_rasda.backends.parsl.pilot_source import ExecutorLabel, PilotSource, words
from parsl_rasda.errors import SiteUnavailableError
from parsl_rasda.launch.base import Launcher
from parsl_rasda.orchestration.backend import PostEvent
from parsl_rasda.orchestration.events import ContinueJob, JobStarted
from parsl_rasda.orchestration.job_specs import end_event, epoch_event
from parsl_rasda.protocol import EpochReport, JobResult, JobSpec, ProtocolError, read_epochs
from parsl_rasda.study.sites import ParslSiteSpec
from parsl_rasda.types import JobId, Outcome, Placement

CLOSE_GRACE_S = 3.0
_MOP_UP_GRACE_S = 3.0

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Job:
    """One job that has been started and has not been reported as ended."""

    order: JobSpec
    lane: ExecutorLabel
    mark: str
    has_asked: bool = False  # its app has been told to start
    epoch: int = -1  # the last one posted
    answer: Message | None = None  # to that epoch

    @property
    def id(self) -> JobId:
        """Its attempt's id."""
        return self.order.job

    @property
    def is_leaving(self) -> bool:
        """Whether it has been told to leave."""
        return self.answer is not None and self.answer["op"] != "go"

    @property
    def is_waiting(self) -> bool:
        """Whether its ranks stand at an epoch boundary until they are answered."""
        return self.order.interactive and self.epoch >= 0 and self.answer is None


@dataclass(slots=True)
class JobTracker:
    """Starts jobs on lanes, speaks with their apps, and reports how they end.

    Attributes:
        do: Puts a task into the inbox of the thread that owns this desk.
        on_manager_lost: Called with a lane, and Parsl's words, when its pilot has fallen silent.
        on_left: Called with a lane when a job has left it.
    """

    site: ParslSiteSpec
    launcher: Launcher
    mark: str
    control: ControlServer
    pilots: PilotSource
    do: Callable[[Callable[[], None]], None]
    post: PostEvent
    on_manager_lost: Callable[[ExecutorLabel, str], None]
    on_left: Callable[[ExecutorLabel], None]
    jobs: dict[JobId, Job] = field(default_factory=dict)

    def end_all(self) -> None:
        """Let every job leave, and quickly."""
        for job_id in tuple(self.jobs):
            self.end(job_id, "the controller leaves", CLOSE_GRACE_S)

    def on_lane(self, lane: ExecutorLabel) -> list[Job]:
        """Return the jobs of a lane."""
        return [job for job in self.jobs.values() if job.lane == lane]

    def hold(self, order: JobSpec, lane: ExecutorLabel) -> None:
        """Take a job for a pilot that is dying, unlaunched: it ends with the others of its lane.

        Ended at once, it would be sent to the same slots again and again until the pilot is reported.
        """
        job = Job(order, lane, f"{self.mark}/{order.job}")
        self.jobs[job.id] = job

    def start(
        self, order: JobSpec, placement: Placement, lane: ExecutorLabel, allocation: PilotAllocation | None
    ) -> None:
        """Send a job to a lane; without an allocation it ends at once."""
        job = Job(order, lane, f"{self.mark}/{order.job}")
        self.jobs[job.id] = job
        if allocation is None:
            self.conclude(job, Outcome.PREEMPTED, f"pilot {placement.pilot} had gone")
            return
        command = asdict(allocation.launch(order, placement, self.site, self.launcher))
        address = asdict(self.control.control_address)
        task = agent_job.Named(f"trial_{order.trial}_attempt_{order.attempt}", agent_job.run_job)
        future = self.pilots.submit(job.lane, task, order.to_json(), command, job.mark, address)
        future.add_done_callback(lambda done: self.do(lambda: self._returned(job, done)))

    def hear(self, job_id: JobId, message: Message) -> None:
        """Take a message from a job's app."""
        control, job = self.control, self.jobs.get(job_id)
        if job is None:
            control.send(str(job_id), {"op": "leave", "reason": "fenced", "grace_s": CLOSE_GRACE_S})
            return
        match message["op"]:
            case "hello":
                job.has_asked = True
                control.watch(str(job_id))
                control.send(str(job_id), {"op": "start"})
            case "ready":
                self.post(JobStarted(time.time(), job_id, message.get("once_s", 0.0)))
            case "epoch":
                self._hear_epoch(job, message)
            case _:
                pass  # ``bye`` says what the task will return

    def _hear_epoch(self, job: Job, message: Message) -> None:
        try:
            report = EpochReport.from_json(message)
        except (ValueError, TypeError, KeyError, ProtocolError):
            logger.warning("unreadable epoch job=%s", job.id)  # it is on disk, too
            return
        self._post_epoch(job, report)
        if job.answer is not None:  # it was lost, or the job is to leave whatever it reports
            self.control.send(str(job.id), job.answer)

    def _post_epoch(self, job: Job, report: EpochReport) -> None:
        """Post an epoch unless it has been."""
        is_ours = JobId(report.trial, report.attempt) == job.id
        if not is_ours or report.epoch <= job.epoch:
            return
        job.epoch = report.epoch
        if not job.is_leaving:
            job.answer = None
        self.post(epoch_event(report, time.time()))

    def answer(self, answer: ContinueJob) -> None:
        """Let a waiting job go on."""
        job = self.jobs.get(answer.job)
        if job is None:
            return
        job.answer = {"op": "go", "epoch": job.epoch, "until": answer.until, "replicas": answer.replicas}
        self.control.send(str(job.id), job.answer)

    def end(self, job_id: JobId, reason: str, grace_s: float) -> None:
        """Let a job leave; by force after ``grace_s`` [s]."""
        job = self.jobs.get(job_id)
        if job is None:
            return
        if not job.has_asked:  # when its app asks, it will be refused
            self.conclude(job, Outcome.PREEMPTED, f"{reason} before it started")
            return
        op = "leave" if job.is_waiting else "preempt"
        job.answer = {"op": op, "reason": reason, "grace_s": grace_s}
        self.control.send(str(job_id), job.answer)

    def _returned(self, job: Job, future: Future[Message]) -> None:
        if self.jobs.get(job.id) is not job:
            return  # concluded before: its pilot is gone, or it was ended before it started
        error = future.exception()
        if error is None:
            self._finish(job, future.result())
        elif isinstance(error, SiteUnavailableError):  # it was not even sent
            self.conclude(job, Outcome.PREEMPTED, words(error))
        elif type(error).__name__ == "ManagerLost":
            self.on_manager_lost(job.lane, words(error))
        else:
            self._mop_up(job, words(error))

    def _mop_up(self, job: Job, cause: str) -> None:
        """A job's worker is gone: its launch gets a signal when that happens, but must be *seen* to end."""
        mop = self.pilots.submit(job.lane, agent_job.end_job, job.mark, _MOP_UP_GRACE_S)
        mop.add_done_callback(lambda _: self.do(lambda: self._conclude_lost(job, cause)))

    def _conclude_lost(self, job: Job, cause: str) -> None:
        """End a job whose worker died; ranks that saw only their channel close say they were preempted."""
        report = exit_diagnosis.conclude(Path(job.order.directory), job.order, Outcome.LOST, cause)
        if report.outcome is Outcome.PREEMPTED and not job.is_leaving:
            report = replace(report, outcome=Outcome.LOST, cause=cause)
        self._finish(job, self._with_epochs(job, report))

    def conclude(self, job: Job, outcome: Outcome, cause: str) -> None:
        """End a job by what it has left on disk, as far as this machine sees it."""
        report = exit_diagnosis.conclude(Path(job.order.directory), job.order, outcome, cause)
        self._finish(job, self._with_epochs(job, report))

    def _with_epochs(self, job: Job, report: JobResult) -> Message:
        epochs = read_epochs(Path(job.order.directory), job.id)
        return {"report": report.to_json(), "epochs": [e.to_json() for e in epochs]}

    def _finish(self, job: Job, result: Message) -> None:
        if self.jobs.pop(job.id, None) is None:
            return
        self.control.forget(str(job.id))
        for epoch in result["epochs"]:
            self._post_epoch(job, EpochReport.from_json(epoch))
        report = JobResult.from_json(result["report"])
        logger.info("job ended job=%s outcome=%s cause=%s", job.id, report.outcome, report.cause)
        self.post(end_event(report, time.time()))
        self.on_left(job.lane)
