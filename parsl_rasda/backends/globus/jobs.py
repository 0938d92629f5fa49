"""The jobs of one Globus Compute site: sent as tasks, followed by polls of the site's disk.

What happens to a job is known from its task's result or, when that does not come, from the site's disk:
every few seconds one task polls all open jobs (`endpoint_tasks.poll`), brings their new epochs, and says
which are over. Silence is judged twice: a job's by its heartbeat, on the site's own clock, and the site's
by polls that the service has taken and nobody answers.

Everything here runs in the backend's one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from msgspec.structs import replace

from parsl_rasda.backends.globus.client import (
    EndpointClient,
    PilotLostError,
    RefusedError,
    Task,
    TooLargeError,
    UnreachableError,
)
from parsl_rasda.exits import EndedBy, ExitObservations, classify_exit
from parsl_rasda.orchestration.events import EpochReported, Event, JobEnded
from parsl_rasda.orchestration.job_specs import end_event, epoch_event
from parsl_rasda.protocol import EpochReport, JobResult, JobSpec
from parsl_rasda.types import JobId, Outcome

Message = dict[str, Any]

RESEND_S = 2.0


@dataclass(slots=True, eq=False)
class _SentJob:
    order: JobSpec
    task_arguments: Message
    task: Task | None = None
    since: float = field(default_factory=time.monotonic)  # when it was sent
    not_before: float = 0.0  # when it may be sent again
    epoch: int = 0  # the last one posted
    stop: str | None = None  # why it is to leave
    abandon: str | None = None  # why it should be over, if no task has claimed it
    failure: str | None = None  # how its task has ended without a result

    @property
    def id(self) -> JobId:
        return self.order.job


class Lost(Protocol):
    """Is called when the pilot of a site is lost."""

    def __call__(self, ended_by: EndedBy, cause: str, *, usable: bool = True) -> None:
        """Take what ended its jobs, the same for people, and whether another pilot may be of use."""


class SiteLostError(Exception):
    """Nothing that was sent to the site can be counted on any more."""

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause


class GlobusJobs:
    """Sends the jobs of one site, and reports their epochs and their ends."""

    def __init__(
        self,
        *,
        post: Callable[[Event], None],
        when: Callable[[Future[Any], Callable[[Any], None]], None],
        lost: Lost,
        busy_workers: Callable[[], int],
        silence_s: float,
        endpoint: str,
    ) -> None:
        """Begin without jobs.

        Args:
            post: Takes the events.
            when: Calls back in the backend's thread when a task is done.
            lost: Called when a poll fails, or another pilot answers: this one is lost.
            busy_workers: Returns how many workers are at other work than jobs: stages.
            silence_s: How old a heartbeat may be [s].
            endpoint: Its id, for messages.
        """
        self._busy_workers = busy_workers
        self._post, self._when, self._lost, self._endpoint = post, when, lost, endpoint
        self._silence_s, self.patience_s = silence_s, 3 * silence_s
        self._poll_every_s = min(max(silence_s / 3, 1.0), 20.0)
        self._jobs: dict[JobId, _SentJob] = {}
        self._polls: list[Task] = []
        self._poll_at = self._unanswered_since = 0.0
        self._away_since: float | None = None  # a poll waits to be taken by the service
        self._block, self._room, self._pilots = "", float("inf"), 0

    def __bool__(self) -> bool:
        return bool(self._jobs)

    @property
    def trouble(self) -> str:
        """Why the site cannot be asked for now; empty if it can."""
        away_s = time.monotonic() - self._away_since if self._away_since is not None else 0.0
        return "Globus Compute takes no tasks for now" if away_s > self._silence_s else ""

    def begin_pilot(self, block: str, at_a_time: int | None) -> None:
        """Forget what an earlier pilot did not answer.

        Args:
            block: Which pilot it is, as its answers say.
            at_a_time: How many jobs find a worker there, or None if that is not known.
        """
        self._block, self._room = block, at_a_time or float("inf")
        self._pilots += 1
        self._polls.clear()

    def start(self, client: EndpointClient, order: JobSpec, arguments: Message) -> None:
        """Send a job.

        Raises:
            TooLargeError: If it can never be sent; it is among the jobs all the same.
        """
        job = _SentJob(order, arguments, epoch=order.epoch)
        self._jobs[job.id] = job
        self._send_waiting(client)

    def refuse(self, order: JobSpec, cause: str) -> None:
        """End a job that never began."""
        self._post_end(order.job, ExitObservations(EndedBy.NOT_SENT, cause))

    def end(self, client: EndpointClient, reason: str, job_id: JobId | None = None) -> None:
        """Tell a job, or all of them, to leave at the next step."""
        found = [job for job in self._jobs.values() if job.stop is None and job_id in {None, job.id}]
        for job in found:
            job.stop = reason
        if found:
            self._poll(client, found)

    def conclude(self, ended_by: EndedBy, cause: str) -> None:
        """Report every job as ended; what is left of them there ends when the site answers again."""
        for job in tuple(self._jobs.values()):
            del self._jobs[job.id]
            self._post_end(job.id, ExitObservations(ended_by, cause, was_told=job.stop is not None))

    def _post_end(self, job: JobId, seen: ExitObservations) -> None:
        found = classify_exit(seen)
        told = JobEnded(time.time(), job, found.outcome, found.cause, blame=found.blame, phase=found.phase)
        self._post(told)

    def watch(self, client: EndpointClient) -> None:
        """Send again what was not taken, and poll every job once in a while.

        Raises:
            SiteLostError: If nobody has answered for too long.
        """
        now = time.monotonic()
        self._send_waiting(client)
        if not self._jobs:
            self._polls.clear()
            return
        self._polls = [poll for poll in self._polls if not poll.done()]
        is_away = any(poll.id is None for poll in self._polls)
        self._away_since = (self._away_since or now) if is_away else None
        if not self._polls or is_away:
            self._unanswered_since = now  # nobody was asked: the service is away, perhaps
        elif now > self._unanswered_since + self.patience_s:
            raise SiteLostError(f"endpoint {self._endpoint} has not answered for {self.patience_s:.0f} s")
        if now > self._poll_at:
            for job in self._jobs.values():
                if job.failure is None and job.task and now > job.since + self.patience_s:
                    job.abandon = f"no worker of the endpoint took it within {self.patience_s:.0f} s"
            self._poll(client, list(self._jobs.values()))

    def _send_waiting(self, client: EndpointClient) -> None:
        """Send what is not on its way, as far as there are workers."""
        now = time.monotonic()
        waiting = [job for job in self._jobs.values() if job.task is None]
        room = max(1, self._room - self._busy_workers()) - (len(self._jobs) - len(waiting))
        for job in waiting:
            if room > 0 and now > job.not_before:
                room -= 1
                self._send(client, job)

    def _send(self, client: EndpointClient, job: _SentJob) -> None:
        job.task, job.since = client.submit("run", job.task_arguments), time.monotonic()
        self._when(job.task, lambda done: self._returned(job, done))

    def _returned(self, job: _SentJob, done: Task) -> None:
        if self._jobs.get(job.id) is not job or job.task is not done:
            return  # concluded before
        error = done.exception()
        if error is None:
            self._on_answer(done.result())
        elif isinstance(error, UnreachableError):
            job.task, job.not_before = None, time.monotonic() + RESEND_S  # it was not taken: send it again
        elif isinstance(error, TooLargeError):
            self._lost(EndedBy.SITE_UNFIT, str(error), usable=False)
        elif isinstance(error, PilotLostError):
            self._lost(EndedBy.PILOT_ENDED, str(error))
        else:
            job.failure = error.cause if isinstance(error, RefusedError) else str(error)
            self._poll_at = 0.0  # the site's disk has the last word

    def _poll(self, client: EndpointClient, jobs: list[_SentJob]) -> None:
        self._poll_at = time.monotonic() + self._poll_every_s
        asked = [
            {
                "directory": job.order.directory,
                "job": str(job.id),
                "epoch": job.epoch,
                "mark": job.task_arguments["mark"],
                "stop": job.stop,
                "abandon": job.failure or job.abandon,
            }
            for job in jobs
        ]
        poll = client.submit("poll", {"jobs": asked, "silence_s": self._silence_s, "block": self._block})
        self._polls.append(poll)
        pilots = self._pilots
        self._when(poll, lambda done: self._polled(done) if pilots == self._pilots else None)

    def _polled(self, done: Task) -> None:
        error = done.exception()
        if error is None:
            self._polls.clear()  # the site answers: a poll without an answer was lost on the way
            self._on_answer(done.result())
        elif not isinstance(error, UnreachableError | TooLargeError):  # it was sent with one too large
            has_ended = isinstance(error, PilotLostError)
            self._lost(EndedBy.PILOT_ENDED if has_ended else EndedBy.ENDPOINT_LOST, str(error))

    def _on_answer(self, answer: Message) -> None:
        """Take the state of jobs, and notice if it is another pilot that answers."""
        for state in answer["jobs"]:
            job = self._jobs.get(JobId.parse(state["job"]))
            if job is not None:
                self._take(job, state)
        if answer.get("unfit"):
            self._lost(EndedBy.SITE_UNFIT, f"endpoint {self._endpoint}: {answer['unfit']}", usable=False)
        elif answer.get("taken"):
            self._lost(EndedBy.PILOT_LEASED, answer["taken"])
        elif answer["block"] != self._block:
            self._lost(EndedBy.PILOT_ENDED, "the endpoint has replaced its pilot by another one")

    def _take(self, job: _SentJob, state: Message) -> None:
        """Take the state of a job: its new epochs, and its end if it has come."""
        for event in events_of(state, job.epoch):
            if isinstance(event, EpochReported):
                job.epoch = event.epoch
            elif isinstance(event, JobEnded):
                del self._jobs[job.id]
                why = f"{job.failure}; " if job.failure and event.outcome is Outcome.LOST else ""
                event = replace(event, cause=why + event.cause)  # noqa: PLW2901
            self._post(event)


def events_of(state: Message, epoch: int) -> Iterator[EpochReported | JobEnded]:
    """Yield what has happened to a job.

    Args:
        state: As `endpoint_tasks.run` and `endpoint_tasks.poll` return it.
        epoch: The last one known.
    """
    for text in state["epochs"]:
        reached = EpochReport.from_json(text)
        if reached.epoch > epoch:
            yield epoch_event(reached, time.time())
    if state["report"] is not None:
        yield end_event(JobResult.from_json(state["report"]), time.time())
