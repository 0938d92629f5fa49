"""Several sites as one backend: each call goes to the site it concerns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from typing import Any

from parsl_rasda.orchestration.backend import Backend, OpenJob, PostEvent, StageTask
from parsl_rasda.orchestration.events import ContinueJob, EndJob, Event, ReleasePilot, RequestPilot
from parsl_rasda.protocol import JobSpec
from parsl_rasda.types import Capabilities, JobId, PilotId, Placement, SiteName


class MultiSiteBackend:
    """Forwards to one backend a site."""

    def __init__(self, backends: Mapping[SiteName, Backend]) -> None:
        """Use these backends; they are opened and closed together."""
        self._backends = dict(backends)
        self._pilots: dict[PilotId, Backend] = {}
        self._jobs: dict[JobId, Backend] = {}
        each = [backend.capabilities for backend in backends.values()]
        self.capabilities = Capabilities(
            sees_run_directory=all(c.sees_run_directory for c in each),
            has_control=all(c.has_control for c in each),
        )

    def open(self, post: PostEvent) -> None:
        """Begin on every site."""
        for backend in self._backends.values():
            backend.open(post)

    def close(self) -> None:
        """End what is left on every site, also if one of them fails to."""
        with ExitStack() as stack:
            for backend in self._backends.values():
                stack.callback(backend.close)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keep pilots on every site; those opened before one that cannot be are closed again."""
        with ExitStack() as stack:
            for backend in self._backends.values():
                stack.enter_context(backend.hold())
            yield

    def begin_search(self, suffix: str) -> None:
        """Keep the next search apart on every site."""
        for backend in self._backends.values():
            backend.begin_search(suffix)

    def recover(self, jobs: Iterable[OpenJob]) -> list[Event]:
        """Return how the jobs of each site have ended."""
        known = list(jobs)
        return [
            event
            for name, backend in self._backends.items()
            for event in backend.recover([job for job in known if job.site == name])
        ]

    def request_pilot(self, request: RequestPilot) -> None:
        """Ask the site for an allocation."""
        self._pilots[request.pilot] = self._backends[request.site]
        self._pilots[request.pilot].request_pilot(request)

    def release_pilot(self, release: ReleasePilot) -> None:
        """Give an allocation back to its site."""
        if release.pilot in self._pilots:
            self._pilots[release.pilot].release_pilot(release)

    def start_job(self, order: JobSpec, placement: Placement) -> None:
        """Start a job on the site of its slots."""
        self._jobs[order.job] = self._backends[placement.site]
        self._jobs[order.job].start_job(order, placement)

    def continue_job(self, answer: ContinueJob) -> None:
        """Answer a job that waits at an epoch boundary."""
        if answer.job in self._jobs:
            self._jobs[answer.job].continue_job(answer)

    def end_job(self, end: EndJob) -> None:
        """Let a job leave."""
        if end.job in self._jobs:
            self._jobs[end.job].end_job(end)

    def directory_of(self, order: JobSpec) -> str:
        """Return where the files of a job lie on the site it was started on."""
        return self._jobs[order.job].directory_of(order)

    def submit_stage(self, task: StageTask) -> Future[Any]:
        """Run a call of a stage on its site."""
        return self._backends[task.site].submit_stage(task)
