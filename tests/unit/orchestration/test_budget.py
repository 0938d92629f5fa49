"""A search with a budget: it is kept to within an epoch, nothing starts in vain, and a larger one goes on."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parsl_rasda.orchestration.assembly import build_machine
from parsl_rasda.orchestration.budget import BudgetWatch
from parsl_rasda.orchestration.events import (
    Event,
    FinishStudy,
    Instruction,
    PilotEnded,
    PilotStarted,
    StartJob,
    StudyStarted,
    TrialProposed,
)
from parsl_rasda.orchestration.retention import released
from parsl_rasda.orchestration.summary import summarise
from parsl_rasda.orchestration.usage import Usage
from parsl_rasda.placement.times import Assumed
from parsl_rasda.simulation.costs import Costs, assumed_costs
from parsl_rasda.simulation.rehearsal import Rehearsal, VirtualSite
from parsl_rasda.study.budgets import BudgetSpec
from parsl_rasda.types import (
    Budget,
    NodeName,
    NodeSlots,
    PilotId,
    SiteName,
    StudyState,
    TrialState,
)
from tests.unit.orchestration.random_world import Setup, Shape, World
from tests.unit.orchestration.small_study import tune
from tests.unit.orchestration.test_machine_worlds import results_of

A = SiteName("a")
VARIANTS = ("stopping", "promotion", "synchronous")
GROWTH = ("elastic", "strict", "none")
KINDS = ("wall_time_s", "until", "gpu_hours", "node_hours")


@dataclass
class Recorder:
    """Keeps what a machine is told and answers."""

    record: list[tuple[Event, tuple[Instruction, ...]]] = field(default_factory=list)

    def add(self, event: Event, instructions: tuple[Instruction, ...]) -> None:
        self.record.append((event, instructions))

    def all(self, kind: type[Instruction]) -> list[tuple[float, Instruction]]:
        return [(event.at, i) for event, told in self.record for i in told if isinstance(i, kind)]


@dataclass(frozen=True)
class Case:
    site: VirtualSite
    trials: int
    max_t: int
    costs: Costs
    slowest_s: float

    def rehearse(self, variant: str, growth: str, budget: Budget | None) -> tuple[Rehearsal, Recorder]:
        spec = tune(scheduler={"variant": variant, "growth": growth, "max_t": self.max_t, "max_workers": 4})
        recorder = Recorder()
        rehearsal = Rehearsal(build_machine(spec), {A: self.site}, self.costs, [recorder])
        rehearsal.run(self.trials, budget)
        again = build_machine(spec)
        for event, instructions in recorder.record:
            assert again.handle(event) == instructions, "a replay decides as the live run did"
        return rehearsal, recorder


@st.composite
def cases(draw: st.DrawFn) -> Case:
    site = VirtualSite(draw(st.integers(1, 3)), 4, draw(st.integers(1, 2)), draw(st.booleans()))
    costs = assumed_costs(
        Assumed(draw(st.floats(1.0, 60.0)), draw(st.floats(0.0, 20.0)), 0.9),
        seed=draw(st.integers(0, 2**16)),
        spread=draw(st.sampled_from([0.0, 0.3])),
    )
    costs = replace(costs, queue_s=draw(st.sampled_from([0.0, 30.0])), leave_s=draw(st.floats(0.0, 0.5)))
    trials, max_t = draw(st.integers(1, 20)), draw(st.sampled_from([1, 4, 9]))
    return Case(site, trials, max_t, costs, max(costs.epoch_s(i, 1) for i in range(trials)))


def test_no_budget_is_exceeded_by_more_than_an_epoch() -> None:
    @settings(max_examples=4 * settings.default.max_examples, deadline=None)
    @given(
        st.sampled_from(VARIANTS),
        st.sampled_from(GROWTH),
        cases(),
        st.sampled_from(KINDS),
        st.floats(0.02, 1.2),
    )
    def check(variant: str, growth: str, case: Case, kind: str, part: float) -> None:
        free, _ = case.rehearse(variant, growth, None)
        whole = free.machine.budget.spent()
        needs = whole["wall_time_s" if kind == "until" else kind]
        budget = Budget(**{kind: part * needs})
        kept, recorder = case.rehearse(variant, growth, budget)
        nodes = case.site.nodes * case.site.pilots
        held = {"gpu_hours": nodes * 4 / 3600, "node_hours": nodes / 3600}.get(kind, 1.0)
        spent = kept.machine.budget.spent()["wall_time_s" if kind == "until" else kind]
        assert spent <= part * needs + held * case.slowest_s + 1e-6
        ((_, finish),) = recorder.all(FinishStudy)
        assert isinstance(finish, FinishStudy)
        assert all(t.state.is_final for t in kept.machine.trials.values())
        reported = any(t.last is not None for t in kept.machine.trials.values())
        assert (finish.state is StudyState.DONE) == reported
        is_even = growth == "none" and len({case.costs.epoch_s(i, 1) for i in range(case.trials)}) == 1
        if part >= 1.001 and is_even:  # else what is ahead is estimated, and may be overestimated
            assert not kept.machine.stop_reason
        if not kept.machine.stop_reason:
            assert len(kept.machine.trials) == case.trials
            assert {t.state for t in kept.machine.trials.values()} <= {
                TrialState.STOPPED,
                TrialState.COMPLETED,
            }

    check()


@settings(deadline=None)
@given(cases(), st.sampled_from(VARIANTS), st.floats(0.05, 0.95))
def test_with_even_times_only_what_reaches_a_rung_starts(case: Case, variant: str, part: float) -> None:
    """Once an epoch was seen, a job that starts can train to its milestone at the width of its method."""
    even = replace(case.costs, epoch_s=lambda _, width: 8.0 / width, launch_s=lambda _: 0.0, restart_s=0.0)
    case = replace(case, costs=even, slowest_s=8.0)
    free, _ = case.rehearse(variant, "elastic", None)
    limit = part * free.usage.makespan_s()
    _, recorder = case.rehearse(variant, "elastic", Budget(wall_time_s=limit))
    for at, start in recorder.all(StartJob):
        assert isinstance(start, StartJob)
        began, replicas, *_ = start.schedule[-1]
        if at > case.costs.queue_s + 8.0 and began == start.epoch:
            needed_s = (start.until - start.epoch) * 8.0 / replicas
            assert at + needed_s <= limit + case.costs.leave_s + 1e-6


def test_in_any_world_a_budget_ends_the_search_and_a_larger_one_goes_on() -> None:
    limits = st.one_of(
        st.builds(Budget, wall_time_s=st.floats(5.0, 60.0)),
        st.builds(Budget, until=st.floats(5.0, 60.0)),
        st.builds(Budget, gpu_hours=st.floats(0.005, 0.05)),
        st.builds(Budget, node_hours=st.floats(0.002, 0.02)),
    )

    @settings(max_examples=4 * settings.default.max_examples, deadline=None)
    @given(
        st.sampled_from(VARIANTS),
        st.sampled_from(GROWTH),
        limits,
        st.integers(0, 2**32),
        st.sampled_from([0.02, 0.2]),
        st.booleans(),
    )
    def check(
        variant: str, growth: str, budget: Budget, seed: int, fault_rate: float, interactive: bool
    ) -> None:
        setup = Setup(variant, growth, {"a": Shape(2, 2, 1, interactive), "b": Shape(1, 4)}, trials=10)
        world = World(setup, seed, fault_rate, budget)
        world.unfair(80)
        world.fair()
        assert world.finished is not None
        cut_off = set(world.machine.cut_off)
        assert all(world.concluded[t].reason.startswith("budget: ") for t in cut_off)
        assert not cut_off or world.machine.stop_reason
        assert not cut_off & released(world.machine), "they keep their checkpoints"
        world.budget, world.fault_rate = None, 0.0
        if world.machine.stop_reason:
            assert not world.machine.may_go_on(10, budget, world.now), "nothing is left of it"
            assert world.machine.may_go_on(10, Budget(), world.now)
        world.start_controller()
        world.fair()
        assert not world.machine.cut_off
        if world.finished.state is not StudyState.NO_SITE:
            assert len(world.machine.trials) >= 10
            assert set(world.concluded) == set(world.machine.trials)
        again = setup.machine()
        for event, instructions in world.record:
            assert again.handle(event) == instructions, "a replay decides as the live run did"

    check()


@given(st.integers(0, 2**32), st.floats(20.0, 150.0))
@settings(deadline=None)
def test_a_budget_that_is_raised_changes_nothing_of_what_comes_out(seed: int, seconds: float) -> None:
    """Under the synchronous rule; all trials begin at once, so that the first budget turns none away."""
    setup = Setup("synchronous", "elastic", {"a": Shape(2, 4)}, trials=8, max_workers=4)
    free = World(setup, seed, 0.0)
    free.start_controller()
    free.fair()
    world = World(setup, seed + 1, 0.0, Budget(wall_time_s=seconds))
    world.start_controller()
    world.fair()
    all_began = len(world.machine.trials) == 8
    world.budget = None
    world.start_controller()
    world.fair()
    if all_began:
        assert results_of(world)[0] == results_of(free)[0]


def pilot(at: float, name: str, nodes: int, gpus: int) -> PilotStarted:
    slots = tuple(NodeSlots(NodeName(f"{name}{i}"), tuple(range(gpus))) for i in range(nodes))
    return PilotStarted(at, PilotId(name), A, slots)


def test_the_end_is_foreseen_from_the_pilots_that_are_held() -> None:
    watch = BudgetWatch()
    watch.note(StudyStarted(100.0, 4, {A: 2}, budget=Budget(gpu_hours=8 / 3600, wall_time_s=50.0)))
    assert watch.ends_at == 150.0
    watch.note(pilot(110.0, "p", 1, 2))
    assert watch.ends_at == 114.0, "8 GPU-seconds of 2 GPUs"
    watch.note(pilot(112.0, "q", 1, 2))
    assert watch.ends_at == 113.0, "4 left, of 4 GPUs"
    watch.note(PilotEnded(112.5, PilotId("q"), A, "walltime"))
    assert watch.ends_at == 113.5, "2 left, of 2 GPUs"
    assert watch.give_up(spent=True) == "budget: 0.00222222 gpu_hours is spent"
    watch.close(113.5)
    assert watch.spent() == {"wall_time_s": 13.5, "gpu_hours": 8 / 3600, "node_hours": 4 / 3600}
    watch.note(StudyStarted(500.0, 4, {A: 2}, budget=Budget(wall_time_s=50.0)))
    assert watch.ends_at == 536.5, "the time between does not count"


def test_without_a_limit_nothing_ends() -> None:
    watch = BudgetWatch()
    watch.note(StudyStarted(0.0, 4, {A: 1}))
    assert not watch.is_limited
    assert watch.has_room(1e12, 1e12)
    assert watch.ends_at == math.inf


def test_status_says_what_was_spent_of_what() -> None:
    case = Case(VirtualSite(1, 4), 20, 4, assumed_costs(Assumed(10.0, 0.0, 0.9), seed=3), 10.0)
    kept, recorder = case.rehearse("stopping", "elastic", Budget(gpu_hours=0.1, until=5000.0))
    found = summarise("s", kept.machine, kept.usage)
    assert found["state"] == "done"
    assert found["stopped"] == "budget: 0.1 gpu_hours does not last to the next rung"
    assert found["budget"]["gpu_hours"]["limit"] == 0.1
    assert 0.07 < found["budget"]["gpu_hours"]["spent"] <= 0.1
    assert found["budget"]["gpu_hours"]["spent"] == pytest.approx(found["gpu_hours"], abs=1e-5)
    assert found["budget"]["until"] == 5000.0
    assert found["best"] is not None
    proposed = sum(isinstance(event, TrialProposed) for event, _ in recorder.record)
    assert proposed == len(kept.machine.trials) < 20
    assert summarise("s", build_machine(tune()), Usage())["budget"] is None


def test_a_budget_spent_before_any_report_is_no_result() -> None:
    case = Case(VirtualSite(1, 4), 2, 4, assumed_costs(Assumed(10.0, 0.0, 0.9), seed=3), 10.0)
    _, recorder = case.rehearse("stopping", "elastic", Budget(wall_time_s=5.0))
    ((at, finish),) = recorder.all(FinishStudy)
    words = "budget: wall_time of 5 s is spent, and no trial has reported by then"
    assert (at, finish) == (5.0, FinishStudy(StudyState.FAILED, words))


def test_a_time_of_day_is_the_next_one() -> None:
    now = datetime(2026, 11, 30, 9, 30).astimezone()
    spec = BudgetSpec(until="08:00")
    found = spec.limits(now.timestamp())
    assert found is not None
    assert found.until == datetime(2026, 12, 1, 8, 0).astimezone().timestamp()
    earlier = BudgetSpec(until="10:00").limits(now.timestamp())
    assert earlier == Budget(until=(now + timedelta(minutes=30)).timestamp())
    dated = BudgetSpec(until="2026-12-24 18:00", wall_time="01:00:00").limits(0.0)
    assert dated == Budget(3600.0, datetime(2026, 12, 24, 18, 0).astimezone().timestamp())
    assert BudgetSpec().limits(0.0) is None
