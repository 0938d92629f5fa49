"""What the user tells a search while it runs is done, once, and replayed."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parsl_rasda.orchestration.events import (
    ReleasePilot,
    RequestPilot,
    TimerFired,
    TrialProposed,
    UserTold,
)
from parsl_rasda.orchestration.replay import replay_search
from parsl_rasda.orchestration.requests import requests_after, write_request
from parsl_rasda.orchestration.run_directory import RunDirectory
from parsl_rasda.testing.backends import FakeBackend
from parsl_rasda.types import Outcome, PilotId, StudyState, TrialId, TrialState
from tests.unit.orchestration.random_world import Setup, Shape, World
from tests.unit.orchestration.small_study import SITE, curve, driver, tune
from tests.unit.orchestration.test_machine_stories import of, story

VARIANTS = ("stopping", "promotion", "synchronous")
GROWTH = ("elastic", "strict", "none")
WHAT = st.one_of(
    st.builds(lambda n: {"stop": n}, st.integers(0, 9)),
    st.builds(lambda n: {"at_most": n}, st.integers(0, 4)),
    st.just({"retry_failed": True}),
    st.just({"add": True}),
)


class Told:
    """Tells a world one thing after another, and looks at what comes of each."""

    def __init__(self, setup: Setup, seed: int) -> None:
        self.world = World(setup, seed, 0.1)
        self.world.start_controller()
        self.number = self.most = 0
        self.added: set[TrialId] = set()

    def go_on(self, steps: int) -> None:
        for _ in range(steps):
            if self.world.finished is None:
                self.world.fair_step()

    def tell(self, what: dict[str, int]) -> None:
        world, machine, jobs = self.world, self.world.machine, len(self.world.machine.jobs)
        self.number += 1
        if "add" in what:
            self.add()
        elif "stop" in what:
            self.stop(TrialId(f"{what['stop']:04d}"))
        else:
            if "retry_failed" in what:
                world.forgive_failed()
            world.tell(UserTold(world.now, self.number, **what))
            self.most = what.get("at_most", self.most)
        assert (machine.told, machine.at_most) == (self.number, self.most)
        if self.most:
            assert len(machine.jobs) <= max(self.most, jobs)
        state = [(t.id, t.state) for t in machine.trials.values()]
        world.tell(UserTold(world.now, self.number, stop=TrialId("0000"), at_most=1))
        assert [(t.id, t.state) for t in machine.trials.values()] == state, "once"

    def add(self) -> None:
        trial = TrialId(f"{len(self.world.machine.trials):04d}")
        self.world.tell(TrialProposed(self.world.now, trial, {"lr": 0.1}, self.number))
        assert trial in self.world.machine.trials
        self.added.add(trial)

    def stop(self, trial: TrialId) -> None:
        was_going = trial in self.world.machine.trials and trial not in self.world.concluded
        self.world.tell(UserTold(self.world.now, self.number, stop=trial))
        if was_going:
            assert self.world.machine.trials[trial].state is TrialState.STOPPED
            assert self.world.concluded[trial].reason == "stopped by the user"


@settings(max_examples=6 * settings.default.max_examples, deadline=None)
@given(
    st.sampled_from(VARIANTS),
    st.sampled_from(GROWTH),
    st.lists(st.tuples(st.integers(1, 40), WHAT), min_size=1, max_size=5),
    st.integers(0, 2**32),
    st.booleans(),
)
def test_in_any_world_what_is_told_is_done_and_replayed(
    variant: str, growth: str, requests: list[tuple[int, dict[str, int]]], seed: int, interactive: bool
) -> None:
    sites = {"a": Shape(2, 2, 1, interactive), "b": Shape(1, 4)}
    setup = Setup(variant, growth, sites, trials=8, max_workers=4)
    told = Told(setup, seed)
    for steps, what in requests:
        told.go_on(steps)
        told.tell(what)
        if told.world.finished is not None:  # so that it waited for `resume`
            told.world.start_controller()
    world = told.world
    world.fair()
    assert world.finished is not None
    assert world.finished.state in {StudyState.DONE, StudyState.FAILED}
    assert told.added <= set(world.machine.trials)
    assert set(world.concluded) == set(world.machine.trials)
    assert len(world.machine.trials) == 8 + len(told.added)
    again = setup.machine()
    for event, instructions in world.record:
        assert again.handle(event) == instructions, "a replay decides as the live run did"


def test_no_more_run_at_a_time_than_the_user_wants() -> None:
    world = World(Setup("stopping", "elastic", {"a": Shape(1, 8)}, trials=20, max_workers=4), 1, 0.0)
    world.start_controller()
    world.tell(UserTold(0.0, 1, at_most=2))
    widest = 0
    while world.finished is None:
        world.fair_step()
        assert len(world.machine.jobs) <= 2
        jobs = [t.job for t in world.machine.trials.values() if t.job is not None]
        widest = max([widest, *(job.placement.world_size for job in jobs)])
    assert widest > 1, "those that run may use what others may not"
    assert len(world.machine.trials) == 20


def test_requests_are_numbered_and_each_is_taken_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "told"
    assert [write_request(folder, {"at_most": 2}), write_request(folder, {"stop": "0003"})] == [1, 2]
    (folder / "000003.json").write_text("{", encoding="utf-8")
    assert write_request(folder, {"add": {"lr": 0.1}}) == 4
    assert list(requests_after(folder, 1, 5.0)) == [
        UserTold(5.0, 2, stop=TrialId("0003")),
        UserTold(5.0, 3),
        TrialProposed(5.0, TrialId(""), {"lr": 0.1}, 4),
    ]
    (folder / "000004.json").write_text('{"at_most": "many"}', encoding="utf-8")
    assert list(requests_after(folder, 3, 5.0)) == [UserTold(5.0, 4)]
    assert "000003.json: what was told is not understood" in caplog.text
    assert list(requests_after(tmp_path / "nothing", 0, 5.0)) == []


def test_a_search_with_requests_is_replayed_from_its_journal(tmp_path: Path) -> None:
    run = driver(tmp_path, FakeBackend(curve), tune())
    run.tell(TrialProposed(0.0, TrialId(""), {"lr": 0.05}, 1))
    run.tell(UserTold(0.0, 2, at_most=1))
    run.tell(UserTold(0.0, 3, stop=TrialId("0000")))
    run.run(6, {SITE: 1})
    found = replay_search(RunDirectory(tmp_path), "study", tune(), seed=7).machine
    assert found.state is StudyState.DONE
    assert (found.told, found.at_most, found.is_changed) == (3, 1, True)
    assert len(found.trials) == found.num_samples == 7
    assert found.trials[TrialId("0000")].config == {"lr": 0.05}
    assert found.trials[TrialId("0000")].reason == "stopped by the user"
    assert not found.lacks(6), "an added trial is one more than the study wants"
    assert found.lacks(7)


def test_no_more_pilots_are_asked_for_where_no_more_trials_may_run() -> None:
    told = story(max_t=8)
    told.begin(6, a=1, later=2)
    told.tell(UserTold, 1, at_most=1)
    assert of(RequestPilot, told.pilot("a-0", gpus=1, release_idle_after_s=60.0)) == []
    assert of(RequestPilot, told.epoch("0000.1", 1, 0.5)) == []
    told.tell(UserTold, 2, at_most=2)
    assert set(told.machine.pilots.requested) == {"a-1"}, "one more may run"
    told.pilot("a-1", gpus=1, release_idle_after_s=60.0)
    assert len(told.machine.jobs) == 2
    told.tell(UserTold, 3, at_most=1)
    told.ends("0001.1", Outcome.FAILED)
    told.now = told.machine.wake_at
    assert told.tell(TimerFired) == [ReleasePilot(PilotId("a-1"))], "nobody may use it"
    assert told.pilot_ends("a-1") == []
