"""What a Globus site says of the end of a job that nobody there has reported."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from parsl_rasda.backends.globus.jobs import GlobusJobs
from parsl_rasda.exits import EndedBy
from parsl_rasda.orchestration.events import Event, JobEnded
from parsl_rasda.types import Blame, JobId, TrialId


def jobs_of(events: list[Event]) -> GlobusJobs:
    return GlobusJobs(
        post=events.append,
        when=lambda task, done: None,
        lost=lambda ended_by, cause, *, usable=True: None,
        busy_workers=lambda: 0,
        silence_s=30.0,
        endpoint="e",
    )


@pytest.mark.parametrize(
    ("ended_by", "blame"),
    [
        (EndedBy.PILOT_ENDED, Blame.PILOT),
        (EndedBy.PILOT_LEASED, Blame.PILOT),
        (EndedBy.ENDPOINT_LOST, Blame.SITE),
        (EndedBy.SITE_UNFIT, Blame.SITE),
        (EndedBy.CONTROLLER_CLOSED, Blame.CONTROLLER),
    ],
)
def test_an_end_that_the_site_brings_is_not_held_against_the_trial(ended_by: EndedBy, blame: Blame) -> None:
    events: list[Event] = []
    jobs, order = jobs_of(events), SimpleNamespace(job=JobId(TrialId("0001"), 1), epoch=0)
    client: Any = SimpleNamespace(submit=lambda *_: None)
    jobs.start(client, order, {})  # type: ignore[arg-type]  # all of an order that is looked at
    jobs.conclude(ended_by, "because")
    jobs.refuse(order, "its pilot had gone")  # type: ignore[arg-type]
    assert [e.blame for e in events if isinstance(e, JobEnded)] == [blame, Blame.PILOT]
