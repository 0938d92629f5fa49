"""What the jobs of an earlier controller have left behind a Globus Compute endpoint."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from parsl_rasda.agent.endpoint_tasks import TaskContext
from parsl_rasda.backends.globus import handshake
from parsl_rasda.backends.globus.client import EndpointClient, UnreachableError
from parsl_rasda.backends.globus.jobs import Message, events_of
from parsl_rasda.errors import RasdaError
from parsl_rasda.orchestration.events import Event
from parsl_rasda.study.sites import GlobusSiteSpec
from parsl_rasda.types import JobId

_TIMEOUT_S = 60.0

logger = logging.getLogger(__name__)


def recover(
    client: EndpointClient, site: GlobusSiteSpec, sender: TaskContext, jobs: Mapping[JobId, tuple[str, int]]
) -> list[Event]:
    """Return how jobs have ended, after ending those that still run.

    The site's disk knows best, once a handshake has let them save and leave; where the site does not
    answer, the service may have their results.

    Args:
        client: Of the endpoint.
        site: What was declared.
        sender: Under a new term.
        jobs: Each with its directory there, and the epochs it is known to have finished.
    """
    try:
        states = _found_there(client, site, sender, jobs)
    except (RasdaError, TimeoutError) as error:
        logger.warning("site %s cannot say what it has: %s", site.name, error)
        states = _kept_by_service(client)
    found = {JobId.parse(state["job"]): state for state in states}
    return [
        event
        for job, (directory, epoch) in jobs.items()
        if job in found and found[job]["directory"] == directory
        for event in events_of(found[job], epoch)
    ]


def _found_there(
    client: EndpointClient, site: GlobusSiteSpec, sender: TaskContext, jobs: Mapping[JobId, tuple[str, int]]
) -> list[Message]:
    if not client.ask_whether_online().result(_TIMEOUT_S):
        raise UnreachableError(site.endpoint_id, "it is offline")
    client.submit("describe", handshake.arguments_of(site, sender)).result(_TIMEOUT_S)
    asked = [
        {
            "directory": directory,
            "job": str(job),
            "epoch": epoch,
            "mark": sender.mark_of(directory),
            "stop": "the controller has gone",
            "abandon": None,
        }
        for job, (directory, epoch) in jobs.items()
    ]
    poll = client.submit("poll", {"jobs": asked, "silence_s": site.heartbeat_threshold_s})
    states: list[Message] = poll.result(_TIMEOUT_S)["jobs"]
    return states


def _kept_by_service(client: EndpointClient) -> list[Message]:
    """Return the results of earlier tasks that the service still has."""
    try:
        found = client.earlier_results().result(_TIMEOUT_S)
    except (RasdaError, TimeoutError) as error:
        logger.warning("the service cannot say it either: %s", error)
        return []
    answers = [answer["jobs"] for answer in found if isinstance(answer, dict) and "jobs" in answer]
    return [state for states in answers for state in states if state["report"]]
