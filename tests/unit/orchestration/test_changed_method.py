"""A search that goes on by another method: longer, wider, or with another growth policy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from parsl_rasda.errors import RunDirectoryError
from parsl_rasda.orchestration.events import Event, StudyStarted
from parsl_rasda.orchestration.journal import decode, encode
from parsl_rasda.orchestration.replay import (
    ReplayedSearch,
    changed_method,
    keep_first_method,
    replay_search,
)
from parsl_rasda.orchestration.run_directory import RunDirectory
from parsl_rasda.orchestration.summary import summarise
from parsl_rasda.study import TuneSpec
from parsl_rasda.testing.backends import FakeBackend
from parsl_rasda.types import Budget, Method, StudyState, TrialState
from tests.unit.orchestration.random_world import Setup, Shape, World
from tests.unit.orchestration.small_study import SITE, curve, driver, tune
from tests.unit.orchestration.test_machine_worlds import results_of

VARIANTS = ("stopping", "promotion", "synchronous")
GROWTH = ("elastic", "strict", "none")
ROOMY = {"a": Shape(4, 4), "b": Shape(4, 4, 1, interactive=False)}


def ladder(old: int, new: int) -> tuple[int, ...]:
    """Return the milestones of a search to ``old`` epochs that goes on to ``new``."""
    powers = [2**k for k in range(8)]
    return (*(m for m in powers if m < old), old, *(m for m in powers if old < m < new), new)


def replays(setup: Setup, world: World) -> bool:
    again = setup.machine()
    return all(again.handle(event) == instructions for event, instructions in world.record)


@settings(max_examples=2 * settings.default.max_examples, deadline=None)
@given(
    st.integers(1, 12),
    st.sampled_from([2, 4, 8]),
    st.sampled_from([16, 32]),
    st.sampled_from(GROWTH),
    st.integers(0, 2**32),
    st.integers(0, 200),
)
@example(10, 2, 16, "elastic", 242179, 23)  # three pilots end under the same trial
def test_to_8_and_then_to_16_epochs_is_to_16_from_the_start(
    trials: int, old: int, new: int, growth: str, seed: int, steps: int
) -> None:
    """Under the synchronous rule, whenever the study is changed: at its end, or in the middle."""
    setup = Setup("synchronous", growth, ROOMY, trials=trials, max_t=old, max_workers=4)
    world = World(setup, seed, 0.0)
    world.start_controller()
    for _ in range(steps):
        if world.finished is None:
            world.fair_step()
    world.method = Method(ladder(old, new), 4, growth)
    world.start_controller()
    world.fair()
    longer = World(replace(setup, max_t=new), seed + 1, 0.0)
    longer.start_controller()
    longer.fair()
    assert results_of(world)[:3] == results_of(longer)[:3]
    for trial, record in world.machine.trials.items():
        assert record.schedule == longer.machine.trials[trial].schedule
    assert replays(setup, world)


@settings(max_examples=4 * settings.default.max_examples, deadline=None)
@given(
    st.sampled_from(VARIANTS),
    st.tuples(st.sampled_from(GROWTH), st.sampled_from(GROWTH)),
    st.sampled_from([2, 4, 8]),
    st.sampled_from([9, 16, 20, 32]),
    st.one_of(st.none(), st.builds(Budget, wall_time_s=st.floats(5.0, 60.0))),
    st.integers(0, 2**32),
)
def test_after_any_change_in_any_world_it_ends_and_is_replayed(
    variant: str,
    growth: tuple[str, str],
    old: int,
    new: int,
    budget: Budget | None,
    seed: int,
) -> None:
    setup = Setup(variant, growth[0], ROOMY, trials=8, max_t=old, max_workers=4)
    world = World(setup, seed, 0.1, budget)
    world.unfair(60)
    world.budget, world.method = None, Method(ladder(old, new), 4, growth[1])
    world.unfair(60)
    world.fair()
    assert world.finished is not None
    assert world.machine.scheduler.milestones == ladder(old, new)
    if world.finished.state is not StudyState.NO_SITE:
        assert set(world.concluded) == set(world.machine.trials)
        states = {t.state for t in world.machine.trials.values()}
        assert states <= {TrialState.STOPPED, TrialState.COMPLETED, TrialState.FAILED}
        completed = [t for t in world.machine.trials.values() if t.state is TrialState.COMPLETED]
        assert all(t.epoch == new for t in completed)
    assert replays(setup, world)


def test_a_start_without_changes_is_written_as_before_and_one_with_them_is_read() -> None:
    plain = StudyStarted(1.0, 3, {SITE: 1})
    assert set(encode(plain)) == {"type", "at", "num_samples", "sites", "retry_failed"}
    method = Method((1, 2), None, {"kind": "strict"})
    changed = StudyStarted(1.0, 3, {SITE: 1}, budget=Budget(until=5.0), method=method)
    assert decode(encode(changed), Event) == changed


def resumed(folder: Path, spec: TuneSpec) -> ReplayedSearch:
    found = replay_search(RunDirectory(folder), "study", spec, seed=7)
    method = changed_method(found.machine, found.begun or spec, spec)
    assert method is not None
    run = driver(folder, FakeBackend(curve), spec, machine=found.machine, searcher=found.searcher)
    run.run(6, {SITE: 1}, method=method)
    return found


def test_a_journal_is_replayed_by_the_method_that_it_began_with(tmp_path: Path) -> None:
    first = tune(scheduler={"max_workers": 1})
    second = tune(scheduler={"max_t": 8, "max_workers": 4})
    third = tune(scheduler={"max_t": 10, "growth": "none"})
    driver(tmp_path, FakeBackend(curve), first).run(6, {SITE: 1})
    run, before = RunDirectory(tmp_path), first
    for spec, milestones in ((second, (1, 2, 4, 8)), (third, (1, 2, 4, 8, 10))):
        keep_first_method(run, before)
        lived, before = resumed(tmp_path, spec), spec
        again = replay_search(run, "study", spec)
        assert again.machine.scheduler.milestones == milestones
        assert changed_method(again.machine, again.begun or spec, spec) is None
        one, other = (summarise("s", found.machine, found.usage) for found in (lived, again))
        assert one["trial_list"] == other["trial_list"]
        assert any(t.epoch == milestones[-1] for t in again.machine.trials.values())
        widest = {s.workers for t in again.machine.trials.values() for s in t.schedule}
        assert max(widest) == again.machine.scheduler.replicas(len(milestones) - 1) > 1
    assert again.begun is not None
    assert again.begun.scheduler == first.scheduler
    assert again.fresh_machine().scheduler.milestones == (1, 2, 4)


def test_a_ladder_that_grew_to_its_cap_goes_on_to_a_higher_one(tmp_path: Path) -> None:
    def crossing(order: Any, epoch: int) -> dict[str, float]:
        return {"loss": float(order.config["lr"]) * (-2 if 3 <= epoch < 9 else 1)}

    first = tune(scheduler={"max_t": {"auto": 9}, "reduction_factor": 3, "min_compared": 3}, num_samples=18)
    second = tune(scheduler={**first.scheduler.model_dump(), "max_t": {"auto": 27}}, num_samples=18)
    driver(tmp_path, FakeBackend(crossing), first).run(18, {SITE: 1})
    run, before = RunDirectory(tmp_path), replay_search(RunDirectory(tmp_path), "study", first, seed=7)
    completed = [t.id for t in before.machine.trials.values() if t.state is TrialState.COMPLETED]
    assert {before.machine.trials[trial].epoch for trial in completed} == {9}
    keep_first_method(run, first)
    method = changed_method(before.machine, first, second)
    assert method.milestones == (1, 3, 9, 27)
    on = {"machine": before.machine, "searcher": before.searcher}
    driver(tmp_path, FakeBackend(crossing), second, **on).run(18, {SITE: 1}, method=method)
    again = replay_search(run, "study", second).machine
    assert again.scheduler.milestones == (1, 3, 9, 27)
    reasons = [again.trials[trial].reason for trial in completed]
    assert "reached max_t 27" in reasons, "the order at 9 is not that at 3"


def test_a_damaged_first_method_is_an_error_that_names_it(tmp_path: Path) -> None:
    driver(tmp_path, FakeBackend(curve), tune()).run(6, {SITE: 1})
    RunDirectory(tmp_path).first_method.write_text("{", encoding="utf-8")
    with pytest.raises(RunDirectoryError, match=r"first_method\.json"):
        replay_search(RunDirectory(tmp_path), "study", tune())
