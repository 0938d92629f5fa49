"""Why an unresponsive pilot is gone, where the batch system itself says nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from parsl.jobs.states import JobState, JobStatus

from parsl_rasda.backends.parsl.pilot_source import ExecutorLabel, OwnPilots, PilotExit
from parsl_rasda.exits import EndedBy
from parsl_rasda.study.parsl_site import ParslSiteSpec

LABEL = ExecutorLabel("site-0")


class Executor:
    """One block, in a state."""

    is_dead = False

    def __init__(self, state: JobState, **said: Any) -> None:
        self.blocks_to_job_id = {"0": "7"}
        self._state = JobStatus(state, **said)

    def status(self) -> dict[str, JobStatus]:
        return {"0": self._state}


def poll(executor: Executor, **site: Any) -> PilotExit | None:
    declared = {"name": "site", "provider": {"type": "LocalProvider"}, **site}
    pilots = OwnPilots(
        ParslSiteSpec.model_validate(declared),
        Path(),
        "mark",
        workers=1,
        on_end=lambda label, end: None,
    )
    pilots._executors[LABEL], pilots._blocks[LABEL] = executor, "0"  # type: ignore[assignment]
    return pilots.poll(LABEL)


@pytest.mark.parametrize(
    ("state", "ended_by"),
    [
        (JobState.CANCELLED, EndedBy.PILOT_TAKEN_BACK),
        (JobState.TIMEOUT, EndedBy.PILOT_TAKEN_BACK),
        (JobState.COMPLETED, EndedBy.PILOT_LOST),
        (JobState.FAILED, EndedBy.PILOT_LOST),
    ],
)
def test_a_pilot_is_taken_back_or_lost(state: JobState, ended_by: EndedBy) -> None:
    end = poll(Executor(state))
    assert end == PilotExit(f"the pilot's batch job ended: {state.name.lower()}", ended_by)


@pytest.mark.parametrize("state", [JobState.RUNNING, JobState.PENDING])
def test_a_job_that_has_not_ended_has_no_end(state: JobState) -> None:
    assert poll(Executor(state)) is None


def test_a_pilot_that_does_not_reach_us_says_where_it_tried_and_what_to_set() -> None:
    said = "ConnectionError: No viable ZMQ url from: ['tcp://10.9.9.9:5000']"
    end = poll(Executor(JobState.FAILED, exit_code=1, message=said), address="10.9.9.9")
    assert end is not None
    assert end.cause.endswith("it did not reach this machine at 10.9.9.9: set `address` in the site file")
