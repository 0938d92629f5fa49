"""Who held which slots when: the areas of the picture are the sums in the books."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parsl_rasda.orchestration.assembly import build_machine
from parsl_rasda.orchestration.events import (
    EndJob,
    EpochReported,
    Event,
    FinishStudy,
    Instruction,
    JobEnded,
    JobStarted,
    PilotStarted,
    StartJob,
    StudyStarted,
)
from parsl_rasda.orchestration.journal import Record
from parsl_rasda.orchestration.usage import Usage
from parsl_rasda.reporting.occupancy import Occupancy, occupancy_of
from parsl_rasda.simulation.rehearsal import Rehearsal, VirtualSite
from parsl_rasda.types import JobId, NodeName, NodeSlots, Outcome, PilotId, Placement, SiteName, TrialId

SITE, PILOT, NODE = SiteName("here"), PilotId("here-0"), NodeName("n0")


class Keeper:
    """Keeps the records of a rehearsal."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def add(self, event: Event, instructions: tuple[Instruction, ...]) -> None:
        self.records.append(Record(event, instructions))


@pytest.fixture(scope="module")
def make() -> Any:
    from tests.unit.conftest import Rehearsals

    return Rehearsals()


def gpu_s_of_ended_jobs(records: list[Record]) -> float:
    starts = (i for record in records for i in record.instructions if isinstance(i, StartJob))
    sizes = {start.job: start.placement.world_size for start in starts}
    begun = {i.job: r.event.at for r in records for i in r.instructions if isinstance(i, StartJob)}
    ends = (record.event for record in records if isinstance(record.event, JobEnded))
    return sum(sizes[end.job] * (end.at - begun[end.job]) for end in ends)


@given(
    trials=st.integers(1, 24),
    nodes=st.integers(1, 4),
    gpus=st.sampled_from([1, 2, 4]),
    kept=st.floats(0.0, 1.0),
    growth=st.sampled_from(["elastic", "strict"]),
)
def test_areas_are_the_sums_in_the_books_and_no_slot_is_held_twice(
    make: Any, trials: int, nodes: int, gpus: int, kept: float, growth: str
) -> None:
    widest = 1 << (min(4, nodes * gpus).bit_length() - 1)
    study = make.study_of(num_samples=trials, scheduler={"max_workers": widest, "growth": growth})
    keeper = Keeper()
    machine = build_machine(study.tune_stages["tune"].tune)
    Rehearsal(machine, {SITE: VirtualSite(nodes, gpus)}, make.costs_of(), [keeper]).run(trials)
    records = keeper.records[: max(1, int(kept * len(keeper.records)))]
    usage = Usage()
    for record in records:
        usage.add(record.event, record.instructions)
    now = usage.last_at + 30.0
    found = occupancy_of(records)
    span_s = found.close(now)

    assert span_s == pytest.approx(usage.makespan_s(now))
    held = sum(len(span.slots) * (span.end - span.begin) for span in found.pilots)
    assert held == pytest.approx(usage.held_gpu_s(now))
    ended = [span for span in found.jobs if span.end < span_s or usage.finished_at is not None]
    in_jobs = sum(span.placement.world_size * (span.end - span.begin) for span in ended)
    assert in_jobs == pytest.approx(gpu_s_of_ended_jobs(records))
    by_slot: dict[Any, list[tuple[float, float]]] = {}
    for span in found.jobs:
        assert span.begin <= (span.trained_from or span.begin) <= span.end <= span_s
        for slot in span.slots:
            by_slot.setdefault(slot, []).append((span.begin, span.end))
    assert set(by_slot) <= set(found.slots)
    for jobs in by_slot.values():
        assert all(a[1] <= b[0] for a, b in zip(sorted(jobs), sorted(jobs)[1:], strict=False))


def test_the_clock_stands_still_while_nobody_runs_the_study() -> None:
    job, again = JobId(TrialId("0000"), 1), JobId(TrialId("0000"), 2)
    slots = (NodeSlots(NODE, (0, 1)),)

    def start(job: JobId, gpus: tuple[int, ...]) -> StartJob:
        return StartJob(job, {}, Placement(SITE, PILOT, (NodeSlots(NODE, gpus),)), 0, 1, ((0, 1),), None)

    occupancy, books = Occupancy(), Usage()
    records: list[tuple[Event, tuple[Instruction, ...]]] = [
        (StudyStarted(1000.0, 1, {SITE: 1}), ()),
        (PilotStarted(1010.0, PILOT, SITE, slots), (start(job, (0,)),)),
        (JobStarted(1012.0, job), ()),
        (EpochReported(1020.0, job, 1, {}, 8.0, None), ()),  # the last that is known: then it died
        (StudyStarted(5000.0, 1, {SITE: 1}), ()),
        (PilotStarted(5005.0, PILOT, SITE, slots), (start(again, (0, 1)),)),
        (EpochReported(5015.0, again, 2, {}, 6.0, None), (EndJob(again, "stopped"),)),
        (JobEnded(5016.0, again, Outcome.REACHED), (FinishStudy(None),)),  # type: ignore[arg-type]  # no matter how
    ]
    for event, instructions in records:
        occupancy.add(event, instructions)
        books.add(event, instructions)
    assert occupancy.close() == books.makespan_s() == 36.0
    assert occupancy.resumed == [20.0]
    assert [(s.job, s.begin, s.trained_from, s.end) for s in occupancy.jobs] == [
        (job, 10.0, 12.0, 20.0),
        (again, 25.0, 29.0, 36.0),
    ]
    assert occupancy.jobs[1].ending == "stopped"
    assert [(h.begin, h.end) for h in occupancy.pilots] == [(10.0, 20.0), (25.0, 36.0)]
    assert len(occupancy.slots) == 2, "the same slots, whichever pilot holds them"
