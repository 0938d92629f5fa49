"""What the driver needs from the world: a runner that carries instructions out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

from parsl_rasda.orchestration.events import ContinueJob, EndJob, Event, ReleasePilot, RequestPilot
from parsl_rasda.protocol import JobSpec
from parsl_rasda.types import Placement

PostEvent: TypeAlias = Callable[[Event], None]


class Backend(Protocol):
    """Where jobs really run. Methods return at once; what happens comes back as events.

    `post` may be called from any thread and only enqueues. For every `start_job` exactly one
    `JobEnded` is posted, after the job's processes are gone. When a pilot ends, the `JobEnded` of
    each of its jobs is posted before its `PilotEnded`; before those, if nobody asked for its end, a
    `PilotLost`, so that nothing is started there meanwhile. The executable definition is
    `parsl_rasda.testing.BackendContract`.
    """

    def open(self, post: PostEvent) -> None:
        """Begin: events go to ``post`` from now on."""
        ...

    def request_pilot(self, request: RequestPilot) -> None:
        """Ask for an allocation."""
        ...

    def release_pilot(self, release: ReleasePilot) -> None:
        """Give an allocation back."""
        ...

    def start_job(self, order: JobSpec, placement: Placement) -> None:
        """Start a job on slots that the ledger holds for it."""
        ...

    def continue_job(self, answer: ContinueJob) -> None:
        """Answer an interactive job that waits at an epoch boundary."""
        ...

    def end_job(self, end: EndJob) -> None:
        """Let a job leave: at once if it waits at a boundary, else at its next step."""
        ...

    def close(self) -> None:
        """End every process and pilot that is left; returns when they are gone."""
        ...
