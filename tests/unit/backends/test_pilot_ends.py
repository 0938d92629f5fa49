"""What a look at a silent pilot finds, where the batch system has no words of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from parsl.jobs.states import JobState, JobStatus

from parsl_rasda.backends.parsl.pilot_source import ExecutorLabel, LaneEnd, OwnPilots
from parsl_rasda.study.sites import ParslSiteSpec

LANE = ExecutorLabel("site-0")


class Executor:
    """One block, in a state."""

    is_dead = False

    def __init__(self, state: JobState, **said: Any) -> None:
        self.blocks_to_job_id = {"0": "7"}
        self._state = JobStatus(state, **said)

    def status(self) -> dict[str, JobStatus]:
        return {"0": self._state}


def look(executor: Executor, **site: Any) -> LaneEnd | None:
    declared = {"name": "site", "provider": {"type": "LocalProvider"}, **site}
    pilots = OwnPilots(
        ParslSiteSpec.model_validate(declared),
        Path(),
        "mark",
        workers=1,
        python_path=(),
        on_end=lambda lane, end: None,
    )
    pilots._executors[LANE], pilots._blocks[LANE] = executor, "0"  # type: ignore[assignment]
    return pilots.look(LANE)


@pytest.mark.parametrize(
    ("state", "is_preemption"),
    [
        (JobState.CANCELLED, True),
        (JobState.TIMEOUT, True),
        (JobState.COMPLETED, False),
        (JobState.FAILED, False),
    ],
)
def test_only_what_was_taken_back_costs_no_retry(state: JobState, is_preemption: bool) -> None:
    end = look(Executor(state))
    assert end == LaneEnd(f"the pilot's batch job ended: {state.name.lower()}", is_preemption)


@pytest.mark.parametrize("state", [JobState.RUNNING, JobState.PENDING])
def test_a_job_that_has_not_ended_has_no_end(state: JobState) -> None:
    assert look(Executor(state)) is None


def test_a_pilot_that_does_not_reach_us_says_where_it_tried_and_what_to_set() -> None:
    said = "ConnectionError: No viable ZMQ url from: ['tcp://10.9.9.9:5000']"
    end = look(Executor(JobState.FAILED, exit_code=1, message=said), address="10.9.9.9")
    assert end is not None
    assert end.cause.endswith("it did not reach this machine at 10.9.9.9: set `address` in the site file")
