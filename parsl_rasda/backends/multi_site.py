"""Several sites as one runner: each instruction goes to the site it concerns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from parsl_rasda.backends.globus.backend import GlobusBackend
from parsl_rasda.orchestration.backend import Backend, PostEvent
from parsl_rasda.orchestration.events import ContinueJob, EndJob, Event, ReleasePilot, RequestPilot
from parsl_rasda.protocol import JobSpec
from parsl_rasda.types import JobId, PilotId, Placement, SiteName


class MultiSiteBackend:
    """Forwards to one runner a site."""

    def __init__(self, runners: Mapping[SiteName, Backend]) -> None:
        """Use these runners; they are opened and closed together."""
        self._runners = dict(runners)
        self._pilots: dict[PilotId, Backend] = {}
        self._jobs: dict[JobId, Backend] = {}

    def open(self, post: PostEvent) -> None:
        """Begin on every site."""
        for runner in self._runners.values():
            runner.open(post)

    def request_pilot(self, request: RequestPilot) -> None:
        """Ask the site for an allocation."""
        self._pilots[request.pilot] = self._runners[request.site]
        self._pilots[request.pilot].request_pilot(request)

    def release_pilot(self, release: ReleasePilot) -> None:
        """Give an allocation back to its site."""
        if release.pilot in self._pilots:
            self._pilots[release.pilot].release_pilot(release)

    def start_job(self, order: JobSpec, placement: Placement) -> None:
        """Start a job on the site of its slots."""
        self._jobs[order.job] = self._runners[placement.site]
        self._jobs[order.job].start_job(order, placement)

    def continue_job(self, answer: ContinueJob) -> None:
        """Answer a job that waits at an epoch boundary."""
        if answer.job in self._jobs:
            self._jobs[answer.job].continue_job(answer)

    def end_job(self, end: EndJob) -> None:
        """Let a job leave."""
        if end.job in self._jobs:
            self._jobs[end.job].end_job(end)

    def begin_search(self, suffix: str) -> None:
        """Keep the attempts of a search apart on sites where this machine cannot look."""
        for runner in self._runners.values():
            if isinstance(runner, GlobusBackend):
                runner.begin_search(suffix)

    def recover(self, jobs: Iterable[tuple[JobId, SiteName, int]]) -> list[Event]:
        """Return what jobs of a controller that is gone have left where this machine cannot look.

        Args:
            jobs: Each with its site and the epochs it is known to have finished.
        """
        events: list[Event] = []
        known = list(jobs)
        for name, runner in self._runners.items():
            if isinstance(runner, GlobusBackend):
                events += runner.recover([(job, epoch) for job, site, epoch in known if site == name])
        return events

    def close(self) -> None:
        """End what is left on every site, also if one of them fails to."""
        errors: list[Exception] = []
        for runner in self._runners.values():
            try:
                runner.close()
            except Exception as error:  # noqa: BLE001  raised below; the other sites must be closed first
                errors.append(error)
        if errors:
            raise errors[0]
