"""A search that has found enough stops: no further trial starts, all end, and a replay decides alike."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parsl_rasda.errors import InvalidFileError
from parsl_rasda.orchestration.assembly import build_machine
from parsl_rasda.orchestration.events import ContinueJob, EndJob, FinishStudy, StudyStarted, TrialFinished
from parsl_rasda.orchestration.retention import released
from parsl_rasda.orchestration.stopping import StopWatch, StopWhen
from parsl_rasda.orchestration.summary import summarise
from parsl_rasda.orchestration.usage import Usage
from parsl_rasda.study import declare_study
from parsl_rasda.types import Keep, Mode, StudyState, TrialId
from tests.unit.orchestration.random_world import Setup, Shape, World

TUNE: dict[str, Any] = {
    "metric": "loss",
    "num_samples": 2,
    "scheduler": {"max_t": 2},
    "search_space": {"lr": {"float": [0.1, 1.0]}},
    "training": {"command": ["true"]},
}


def test_a_target_is_reached_by_any_report_and_stands() -> None:
    watch = StopWatch(StopWhen(target=0.5), "acc", Mode.MAX)
    for value in (0.4, float("nan"), 0.5):
        watch.report(TrialId("0"), value, 0)
        assert not watch.reason
    watch.report(TrialId("3"), 0.75, 2)
    watch.report(TrialId("4"), 0.1, 2)
    assert watch.reason == "acc of trial 3 is 0.75, above 0.5"


def test_trials_that_end_without_an_improvement_are_counted_from_the_last_one() -> None:
    watch = StopWatch(StopWhen(no_improvement=3), "loss", Mode.MIN)
    for ended in range(1, 9):
        watch.end(ended)
    assert not watch.reason, "nothing has been reported"
    watch.report(TrialId("0"), 1.0, 8)
    watch.end(10)
    watch.report(TrialId("1"), 0.9, 10)
    watch.report(TrialId("2"), 0.95, 11)
    watch.end(12)
    assert not watch.reason
    watch.end(13)
    watch.report(TrialId("5"), 0.95, 13)
    assert watch.reason == "no improvement of loss in 3 trials"


@pytest.mark.parametrize("variant", ["stopping", "promotion", "synchronous"])
@pytest.mark.parametrize("growth", ["elastic", "strict", "none"])
def test_in_any_world_a_search_that_stops_ends_well_and_is_replayed(variant: str, growth: str) -> None:
    rules = st.one_of(
        st.builds(StopWhen, st.integers(1, 4), st.none()),
        st.builds(StopWhen, st.none(), st.floats(0.2, 1.5)),
    )

    @settings(max_examples=settings.default.max_examples, deadline=None)
    @given(rules, st.integers(0, 2**32), st.sampled_from([0.02, 0.2]), st.booleans())
    def check(rule: StopWhen, seed: int, fault_rate: float, interactive: bool) -> None:
        shapes = {"a": Shape(2, 2, 1, interactive), "b": Shape(1, 4)}
        setup = Setup(variant, growth, shapes, trials=10, stop_when=rule)
        world = World(setup, seed, fault_rate)
        world.unfair(120)
        world.fair()
        assert world.finished is not None
        if world.finished.state is not StudyState.NO_SITE:
            assert set(world.concluded) == set(world.machine.trials)
        again = setup.machine()
        for event, instructions in world.record:
            assert again.handle(event) == instructions, "a replay decides as the live run did"
        stopped = [t for t in world.concluded.values() if t.reason.startswith("stop_when: ")]
        if stopped:
            assert world.machine.stop_reason
            assert not world.machine.lacks(10), "resume begins nothing anew"
            first = next(n for n, (_, told) in enumerate(world.record) if any(i in told for i in stopped))
            assert not [
                i
                for event, told in world.record[first + 1 :]
                for i in told
                if isinstance(i, ContinueJob | TrialFinished) and not isinstance(event, StudyStarted)
            ], "all end in one moment"

    check()


def test_a_target_that_is_reached_ends_the_search_in_one_moment() -> None:
    world = World(Setup("stopping", "none", {"a": Shape(1, 2)}, stop_when=StopWhen(target=2.0)), 3, 0.0)
    world.start_controller()
    world.fair()
    assert world.finished == FinishStudy(StudyState.DONE)
    found = summarise("s", world.machine, Usage())
    assert found["stopped"] == "loss of trial 0001 is 1.016, below 2"
    assert found["trials"]["total"] == len(found["trial_list"]) < 6
    (told,) = [told for _, told in world.record if any(isinstance(i, TrialFinished) for i in told)]
    assert {i.reason for i in told if isinstance(i, EndJob)} == {"stopped"}


def test_the_study_file_says_it_and_mistakes_are_told() -> None:
    declared = {"name": "s", "tune": {**TUNE, "stop_when": {"no_improvement": 5, "metric_below": 0.1}}}
    tune = declare_study(declared, "Study").tune_stages["tune"].tune
    assert build_machine(tune).settings.stop_when == StopWhen(5, 0.1)
    wrong = {"name": "s", "tune": {**TUNE, "stop_when": {"metric_above": 0.1}}}
    with pytest.raises(InvalidFileError, match="metric_above, with mode: min; allowed: metric_below"):
        declare_study(wrong, "Study")


def test_the_n_best_keep_their_checkpoints_if_the_study_says_so() -> None:
    for written, kept in (("survivors", ("survivors", 1)), ({"best": 3}, ("best", 3))):
        training = {"command": ["true"], "keep_checkpoints": written}
        tune = declare_study({"name": "s", "tune": {**TUNE, "training": training}}, "Study").tune_stages[
            "tune"
        ]
        found = build_machine(tune.tune).settings
        assert (found.keep, found.keep_best) == kept


@pytest.mark.parametrize("number", [1, 3])
def test_of_trials_that_have_ended_the_n_best_keep_theirs(number: int) -> None:
    world = World(Setup("stopping", "none", {"a": Shape(1, 2)}, trials=8), 3, 0.0)
    world.start_controller()
    world.fair()
    machine = world.machine
    machine.settings = replace(machine.settings, keep=Keep.BEST, keep_best=number)
    kept = set(machine.trials) - released(machine)
    ranked = sorted((t.last[1], t.id) for t in machine.trials.values() if t.last and t.state != "failed")
    assert kept == {trial for _, trial in ranked[:number]}
