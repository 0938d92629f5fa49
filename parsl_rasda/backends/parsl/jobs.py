"""The jobs of one session: from an order to the one `JobEnded` that answers it.

Owned by the backend's thread; nothing here blocks.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from pathlib import Path

from parsl_rasda.agent import exit_diagnosis
from parsl_rasda.agent import job as agent_job
from parsl_rasda.agent.control_relay import Message
from parsl_rasda.backends.allocation import PilotAllocation
from parsl_rasda.backends.parsl.control_server import ControlServer
from parsl_rasda.backends.parsl.pilot_source import ExecutorLabel, PilotSource, message_of
from parsl_rasda.errors import SiteUnavailableError
from parsl_rasda.exits import EndedBy, ExitObservations
from parsl_rasda.launch.base import Launcher
from parsl_rasda.orchestration.backend import PostEvent
from parsl_rasda.orchestration.events import ContinueJob, JobStarted
from parsl_rasda.orchestration.job_specs import end_event, epoch_event
from parsl_rasda.protocol import EpochReport, JobResult, JobSpec, ProtocolError, read_epochs
from parsl_rasda.study.site_base import SiteBase
from parsl_rasda.types import JobId, Placement

CLOSE_GRACE_S = 3.0
_CLEAN_UP_GRACE_S = 3.0

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class TrackedJob:
    """One job that has been started and has not been reported as ended."""

    order: JobSpec
    executor: ExecutorLabel
    mark: str
    has_started: bool = False  # its agent has been told to start
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
        """Whether its ranks wait at an epoch boundary for an answer."""
        return self.order.interactive and self.epoch >= 0 and self.answer is None


@dataclass(slots=True)
class JobTracker:
    """Starts jobs in executors, exchanges messages with their agents, and reports how they end.

    Attributes:
        call: Posts a task to the thread that owns this tracker.
        on_manager_lost: Called with an executor, and Parsl's message, when its pilot is unresponsive.
        on_left: Called with an executor when a job has left it.
    """

    site: SiteBase
    launcher: Launcher
    mark: str
    control: ControlServer
    pilots: PilotSource
    call: Callable[[Callable[[], None]], None]
    post: PostEvent
    on_manager_lost: Callable[[ExecutorLabel, str], None]
    on_left: Callable[[ExecutorLabel], None]
    jobs: dict[JobId, TrackedJob] = field(default_factory=dict)

    def end_all(self) -> None:
        """Tell every job to leave quickly."""
        for job_id in tuple(self.jobs):
            self.end(job_id, "the controller leaves", CLOSE_GRACE_S)

    def jobs_in(self, executor: ExecutorLabel) -> list[TrackedJob]:
        """Return the jobs in an executor."""
        return [job for job in self.jobs.values() if job.executor == executor]

    def add_unsent(self, order: JobSpec, executor: ExecutorLabel) -> None:
        """Take a job for a pilot that is being ended, without sending it: it ends with that pilot's others.

        If it ended at once, it would be sent to the same slots again and again until the pilot is reported.
        """
        job = TrackedJob(order, executor, f"{self.mark}/{order.job}")
        self.jobs[job.id] = job

    def start(
        self,
        order: JobSpec,
        placement: Placement,
        executor: ExecutorLabel,
        allocation: PilotAllocation | None,
    ) -> None:
        """Send a job to an executor; without an allocation it ends at once."""
        job = TrackedJob(order, executor, f"{self.mark}/{order.job}")
        self.jobs[job.id] = job
        if allocation is None:
            self.conclude(job, EndedBy.NOT_SENT, f"pilot {placement.pilot} had gone")
            return
        command = asdict(allocation.launch(order, placement, self.site, self.launcher))
        address = asdict(self.control.control_address)
        task = agent_job.Named(f"trial_{order.trial}_attempt_{order.attempt}", agent_job.run_job)
        future = self.pilots.submit(job.executor, task, order.to_json(), command, job.mark, address)
        future.add_done_callback(lambda done: self.call(lambda: self._returned(job, done)))

    def on_message(self, job_id: JobId, message: Message) -> None:
        """Take a message from a job's agent."""
        control, job = self.control, self.jobs.get(job_id)
        if job is None:
            control.send(str(job_id), {"op": "leave", "reason": "fenced", "grace_s": CLOSE_GRACE_S})
            return
        match message["op"]:
            case "hello":
                job.has_started = True
                control.watch(str(job_id))
                control.send(str(job_id), {"op": "start"})
            case "ready":
                self.post(JobStarted(time.time(), job_id, message.get("once_s", 0.0)))
            case "epoch":
                self._on_epoch(job, message)
            case _:
                pass  # ``bye`` holds what the task will return

    def _on_epoch(self, job: TrackedJob, message: Message) -> None:
        try:
            report = EpochReport.from_json(message)
        except (ValueError, TypeError, KeyError, ProtocolError):
            logger.warning("unreadable epoch job=%s", job.id)  # it is on disk, too
            return
        self._post_epoch(job, report)
        if job.answer is not None:  # it was lost on its way, or the job is to leave whatever it reports
            self.control.send(str(job.id), job.answer)

    def _post_epoch(self, job: TrackedJob, report: EpochReport) -> None:
        """Post an epoch that has not been posted."""
        is_ours = JobId(report.trial, report.attempt) == job.id
        if not is_ours or report.epoch <= job.epoch:
            return
        job.epoch = report.epoch
        if not job.is_leaving:
            job.answer = None
        self.post(epoch_event(report, time.time()))

    def answer(self, answer: ContinueJob) -> None:
        """Answer a job that waits."""
        job = self.jobs.get(answer.job)
        if job is None:
            return
        job.answer = {"op": "go", "epoch": job.epoch, "until": answer.until, "replicas": answer.replicas}
        if answer.batches is not None:
            job.answer["batches"] = answer.batches
        self.control.send(str(job.id), job.answer)

    def end(self, job_id: JobId, reason: str, grace_s: float) -> None:
        """Tell a job to leave; end it by force after ``grace_s`` [s]."""
        job = self.jobs.get(job_id)
        if job is None:
            return
        if not job.has_started:  # when its agent asks, it will be refused
            self.conclude(job, EndedBy.CONTROLLER, f"{reason} before it started")
            return
        op = "leave" if job.is_waiting else "preempt"
        job.answer = {"op": op, "reason": reason, "grace_s": grace_s}
        self.control.send(str(job_id), job.answer)

    def _returned(self, job: TrackedJob, future: Future[Message]) -> None:
        if self.jobs.get(job.id) is not job:
            return  # concluded before: its pilot is gone, or it was ended before it started
        error = future.exception()
        if error is None:
            self._finish(job, future.result())
        elif isinstance(error, SiteUnavailableError):  # it was not even sent
            self.conclude(job, EndedBy.NOT_SENT, message_of(error))
        elif type(error).__name__ == "ManagerLost":
            self.on_manager_lost(job.executor, message_of(error))
        else:
            self._clean_up(job, message_of(error))

    def _clean_up(self, job: TrackedJob, cause: str) -> None:
        """End the launch of a job whose worker died: it has got a signal, but must be *seen* to end."""
        task = self.pilots.submit(job.executor, agent_job.end_job, job.mark, _CLEAN_UP_GRACE_S)
        task.add_done_callback(
            lambda _: self.call(lambda: self.conclude(job, EndedBy.WORKER_LOST, cause)),
        )

    def conclude(self, job: TrackedJob, ended_by: EndedBy, words: str) -> None:
        """End a job by what it has left on disk, as far as this machine sees it."""
        directory = Path(job.order.directory)
        seen = ExitObservations(ended_by, words, was_told=job.is_leaving)
        report = exit_diagnosis.conclude(directory, job.order, seen)
        epochs = [epoch.to_json() for epoch in read_epochs(directory, job.id)]
        self._finish(job, {"report": report.to_json(), "epochs": epochs})

    def _finish(self, job: TrackedJob, result: Message) -> None:
        if self.jobs.pop(job.id, None) is None:
            return
        self.control.forget(str(job.id))
        for epoch in result["epochs"]:
            self._post_epoch(job, EpochReport.from_json(epoch))
        report = JobResult.from_json(result["report"])
        logger.info("job ended job=%s outcome=%s cause=%s", job.id, report.outcome, report.cause)
        self.post(end_event(report, time.time()))
        self.on_left(job.executor)
