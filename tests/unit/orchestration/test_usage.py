"""Small stories with their GPU time worked out by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from msgspec import structs

from parsl_rasda.orchestration.events import (
    EndJob,
    EpochReported,
    FinishStudy,
    JobEnded,
    JobStarted,
    PilotEnded,
    PilotStarted,
    RequestPilot,
    StartJob,
    StudyInterrupted,
    StudyStarted,
)
from parsl_rasda.orchestration.summary import best, summarise
from parsl_rasda.orchestration.usage import Usage
from parsl_rasda.testing.backends import FakeBackend, Fault
from parsl_rasda.types import (
    JobId,
    NodeName,
    NodeSlots,
    Outcome,
    PilotId,
    Placement,
    SiteName,
    StudyState,
    TrialId,
)
from tests.unit.orchestration.random_world import Setup, Shape
from tests.unit.orchestration.small_study import SITE, curve, driver, tune

A, P = SiteName("a"), PilotId("a-0")


def begin(at: float) -> StudyStarted:
    return StudyStarted(at, 1, {A: 1})


def pilot(at: float, gpus: int = 4) -> PilotStarted:
    return PilotStarted(at, P, A, (NodeSlots(NodeName("n"), tuple(range(gpus))),))


def start(job: str, width: int, *, epoch: int = 0) -> StartJob:
    placement = Placement(A, P, (NodeSlots(NodeName("n"), tuple(range(width))),))
    return StartJob(JobId.parse(job), {}, placement, epoch, 8, ((0, 1),), None)


def epoch(at: float, job: str, number: int, seconds: float) -> EpochReported:
    return EpochReported(at, JobId.parse(job), number, {"loss": 1.0}, seconds, None)


def test_a_pilot_that_falls_short_is_among_the_faults() -> None:
    usage = Usage()
    usage.add(structs.replace(pilot(5.0), warning="used with 4 GPUs on n of the 8 declared"), ())
    (fault,) = usage.faults
    assert (fault.at, fault.what) == (5.0, "pilot a-0")
    assert fault.cause == "used with 4 GPUs on n of the 8 declared"


def test_gpu_time_held_and_busy() -> None:
    """4 GPUs from 10 s to 110 s; one job on 2 of them from 10 s to 60 s with epochs of 8 s and 10 s."""
    usage = Usage()
    usage.add(begin(0.0), ())
    usage.add(pilot(10.0), (start("0.1", 2),))
    assert (usage.gpus, usage.busy_gpus) == (4, 2)
    usage.add(epoch(30.0, "0.1", 1, 8.0), ())
    usage.add(epoch(50.0, "0.1", 2, 10.0), ())
    usage.add(JobEnded(60.0, JobId.parse("0.1"), Outcome.REACHED), ())
    assert usage.held_gpu_s() == 4 * 50
    usage.add(PilotEnded(110.0, P, A, "walltime"), (FinishStudy(StudyState.DONE),))
    assert usage.busy_gpu_s == 2 * (8 + 10)
    assert usage.held_gpu_s() == 4 * 100
    assert usage.makespan_s() == 110.0
    assert (usage.epochs, usage.repeated_epochs, usage.gpus) == (2, 0, 0)


def test_a_restart_lasts_from_the_boundary_to_the_first_step_done() -> None:
    usage = Usage()
    usage.add(begin(0.0), ())
    usage.add(pilot(0.0), (start("0.1", 1),))
    usage.add(JobStarted(5.0, JobId.parse("0.1")), ())
    usage.add(epoch(20.0, "0.1", 1, 15.0), (EndJob(JobId.parse("0.1"), "resize"),))
    usage.add(JobEnded(21.0, JobId.parse("0.1"), Outcome.REACHED), (start("0.2", 2, epoch=1),))
    usage.add(JobStarted(24.0, JobId.parse("0.2")), ())
    usage.add(epoch(32.0, "0.2", 2, 8.0), (EndJob(JobId.parse("0.2"), "resize"),))
    usage.add(JobEnded(33.0, JobId.parse("0.2"), Outcome.REACHED), (start("0.3", 4, epoch=2),))
    usage.add(epoch(41.0, "0.3", 3, 4.0), ())  # its first step was not reported: the epoch tells
    assert usage.restarts_s == [4.0, 5.0], "the first launch is no restart"


def test_epochs_that_are_trained_again_are_counted_and_stale_ones_are_not() -> None:
    usage = Usage()
    usage.add(begin(0.0), ())
    usage.add(pilot(0.0), (start("0.1", 1),))
    usage.add(epoch(10.0, "0.1", 1, 10.0), ())
    usage.add(epoch(20.0, "0.1", 2, 10.0), ())
    usage.add(JobEnded(25.0, JobId.parse("0.1"), Outcome.LOST, "node down"), (start("0.2", 1, epoch=1),))
    usage.add(epoch(26.0, "0.1", 3, 10.0), ())
    usage.add(epoch(35.0, "0.2", 2, 10.0), ())
    assert (usage.epochs, usage.repeated_epochs, usage.busy_gpu_s) == (3, 1, 30.0)
    assert [(f.what, f.cause) for f in usage.faults] == [("job 0.1", "node down")]


def test_pilots_are_awaited_until_they_come_or_are_refused() -> None:
    usage = Usage()
    usage.add(begin(0.0), (RequestPilot(P, A),))
    assert usage.awaited == {P: (A, 0.0)}
    usage.add(PilotEnded(5.0, P, A, "no", usable=False), (RequestPilot(PilotId("a-1"), A),))
    assert usage.awaited == {PilotId("a-1"): (A, 5.0)}
    usage.add(begin(9.0), (RequestPilot(P, A),))
    assert usage.awaited == {P: (A, 9.0)}
    usage.add(pilot(12.0), (RequestPilot(PilotId("a-2"), A),))
    assert usage.awaited == {PilotId("a-2"): (A, 12.0)}
    usage.add(epoch(20.0, "0.1", 1, 1.0), (FinishStudy(StudyState.DONE),))
    assert not usage.awaited


def test_time_between_controllers_counts_neither_as_running_nor_as_held() -> None:
    usage = Usage()
    usage.add(begin(0.0), ())
    usage.add(pilot(0.0), (start("0.1", 4),))
    usage.add(epoch(100.0, "0.1", 1, 90.0), ())
    usage.add(begin(5000.0), ())  # it died at some time after 100 s
    assert usage.makespan_s() == 100.0
    assert usage.held_gpu_s() == 400.0
    assert (usage.gpus, usage.busy_gpus) == (0, 0)
    usage.add(pilot(5010.0), (start("0.2", 4, epoch=1),))
    usage.add(epoch(5050.0, "0.2", 2, 30.0), (FinishStudy(StudyState.DONE),))
    assert usage.makespan_s() == 100.0 + 50.0
    assert usage.held_gpu_s() == 400.0 + 4 * 40.0
    assert [f.what for f in usage.faults] == ["controller"]


def test_what_the_end_of_the_controller_itself_ends_is_no_fault() -> None:
    """A batch system that ends the controller's job sends SIGTERM to whatever runs beside it, too."""
    usage = Usage()
    usage.add(begin(0.0), ())
    usage.add(pilot(0.0), (start("0.1", 1), start("1.1", 1)))
    usage.add(StudyInterrupted(10.0), ())
    usage.add(JobEnded(10.1, JobId.parse("0.1"), Outcome.LOST, "killed"), ())
    usage.add(JobEnded(10.1, JobId.parse("1.1"), Outcome.FAILED, "ValueError"), ())
    usage.add(PilotEnded(10.2, P, A, "its manager is gone"), (FinishStudy(StudyState.INTERRUPTED),))
    assert [f.cause for f in usage.faults] == ["ValueError"], "a mistake of the user's stays one"
    usage.add(begin(20.0), ())
    usage.add(PilotEnded(30.0, PilotId("a-1"), A, "node down"), ())
    assert [f.cause for f in usage.faults] == ["ValueError", "node down"]


def test_a_study_that_is_taken_up_after_its_end_has_no_fault() -> None:
    usage = Usage()
    usage.add(begin(0.0), ())
    usage.add(pilot(0.0), (FinishStudy(StudyState.INTERRUPTED),))
    usage.add(begin(1000.0), ())
    assert usage.faults == []
    assert usage.makespan_s(1005.0) == 5.0


def test_the_summary_has_what_the_contract_says(tmp_path: Path) -> None:
    usage, faults = Usage(), {JobId(TrialId("0001"), 1): Fault(1)}
    run = driver(tmp_path, FakeBackend(curve, faults=faults), observers=[usage])
    run.run(6, {SITE: 1})
    found = summarise("mine", run.machine, usage)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["study"], found["state"]) == ("mine", "done")
    assert {"trial", "metric", "epoch", "config", "checkpoint"} <= set(found["best"])
    assert {"total", "running", "stopped", "completed", "failed"} <= set(found["trials"])
    assert found["trials"]["total"] == 6
    assert sum(found["trials"][s] for s in ("stopped", "completed", "failed")) == 6
    assert {"count", "median_s", "max_s"} <= set(found["restarts"])
    assert found["faults"]["count"] == 1
    assert 0 < found["gpu_busy_fraction"] <= 1
    assert found["gpu_hours"] == pytest.approx(usage.held_gpu_s() / 3600, abs=1e-5)
    assert found["makespan_s"] == pytest.approx(usage.makespan_s(), abs=1e-3)
    last = {t.id: t.last for t in run.machine.trials.values()}
    assert found["best"]["metric"] == min(metric for _, metric in last.values())
    config = run.machine.trials[found["best"]["trial"]].config
    assert found["best"]["config"] == config
    assert found["best"]["checkpoint"].endswith(f"epoch-{found['best']['epoch']:06d}")


@pytest.mark.parametrize(("mode", "expected"), [("min", min), ("max", max)])
def test_the_best_is_the_best_in_the_direction_that_was_asked(tmp_path: Path, mode: str, expected) -> None:
    run = driver(tmp_path, FakeBackend(curve), tune(mode=mode))
    run.run(6, {SITE: 1})
    assert best(run.machine)["metric"] == expected(t.last[1] for t in run.machine.trials.values())


def test_a_study_without_a_result_has_a_summary_as_well(tmp_path: Path) -> None:
    machine = Setup("stopping", "elastic", {"a": Shape(1, 1)}).machine()
    found = summarise("mine", machine, Usage())
    assert (found["best"], found["gpu_busy_fraction"], found["makespan_s"]) == (None, 0.0, 0.0)
    run = driver(tmp_path, FakeBackend(lambda _order, _epoch: {"loss": math.nan}))
    assert run.run(3, {SITE: 1}).state is StudyState.FAILED
    failed = summarise("mine", run.machine, Usage())
    assert failed["best"] is None
    assert failed["trials"]["failed"] == 3
    json.dumps(failed, allow_nan=False)
