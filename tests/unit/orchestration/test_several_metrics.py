"""A search by several metrics: what it decides is replayed, and what it returns is a front."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parsl_rasda.errors import InvalidFileError, InvalidSettingError
from parsl_rasda.orchestration.assembly import build_study_searcher
from parsl_rasda.orchestration.driver import inform
from parsl_rasda.orchestration.events import TrialFinished
from parsl_rasda.orchestration.retention import released
from parsl_rasda.orchestration.summary import summarise
from parsl_rasda.orchestration.trial_record import front
from parsl_rasda.orchestration.usage import Usage
from parsl_rasda.scheduling.objectives import Limit, Objectives
from parsl_rasda.study import TuneSpec
from parsl_rasda.testing.backends import FakeBackend
from parsl_rasda.types import Mode, SiteName, StudyState, TrialId, TrialState
from tests.unit.orchestration.random_world import Setup, Shape, World
from tests.unit.orchestration.small_study import driver

TUNE: dict[str, Any] = {
    "metrics": [{"name": "loss"}, {"name": "speed", "mode": "max"}],
    "num_samples": 6,
    "scheduler": {"max_t": 4},
    "search_space": {"lr": {"float": [0.1, 1.0]}},
    "training": {"python": "somewhere:train"},
}


def tune(**changes: Any) -> TuneSpec:
    return TuneSpec.model_validate({**TUNE, **changes})


def reported(order: Any, epoch: int) -> dict[str, float]:
    lr = float(order.config["lr"])
    return {"loss": lr + 1.0 / epoch, "speed": lr}


@pytest.mark.parametrize("variant", ["stopping", "promotion", "synchronous"])
def test_in_any_world_a_search_by_several_metrics_ends_well_and_is_replayed(variant: str) -> None:
    objectives = Objectives((("loss", Mode.MIN), ("latency", Mode.MIN)), (Limit("latency", 0.9, Mode.MIN),))

    @settings(max_examples=settings.default.max_examples, deadline=None)
    @given(st.integers(0, 2**32), st.sampled_from([0.02, 0.2]), st.booleans())
    def check(seed: int, fault_rate: float, interactive: bool) -> None:
        shapes = {"a": Shape(2, 2, 1, interactive), "b": Shape(1, 4)}
        setup = Setup(variant, "elastic", shapes, trials=10, objectives=objectives)
        world = World(setup, seed, fault_rate)
        world.unfair(120)
        world.fair()
        assert world.finished is not None
        again = setup.machine()
        for event, instructions in world.record:
            assert again.handle(event) == instructions, "a replay decides as the live run did"
        machine = world.machine
        kept = {t.id for t in front(machine.trials) if t.state.is_final}
        if world.finished.state is StudyState.DONE:
            assert not kept & released(machine), "the front keeps its checkpoints"
        ends = [i for _, found in world.record for i in found if isinstance(i, TrialFinished)]
        well = [e for e in ends if e.state is TrialState.COMPLETED]
        assert all(len(e.values) == 2 and len(e.violations) == 1 for e in well)

    check()


def test_where_all_trade_one_for_the_other_the_front_is_everyone_that_is_judged_last(tmp_path: Path) -> None:
    run = driver(tmp_path, FakeBackend(reported), tune(scheduler={"max_t": 4, "variant": "synchronous"}))
    run.run(6, {SiteName("a"): 1})
    found = summarise("study", run.machine, Usage())
    values = [one["values"] for one in found["front"]]
    assert len(values) >= 2
    assert values == sorted(values, key=lambda each: each["loss"])
    assert all(a["speed"] < b["speed"] for a, b in pairwise(values))
    assert found["best"]["trial"] == found["front"][0]["trial"], "the best by the first metric"


@pytest.mark.parametrize(("bound", "ends_early"), [(10.0, True), (0.0, False)])
def test_only_who_keeps_the_limits_is_good_enough(tmp_path: Path, bound: float, ends_early: bool) -> None:
    limits = [{"metric": "speed", "at_most": bound}]
    spec = tune(constraints=limits, stop_when={"metric_below": 5.0})
    run = driver(tmp_path, FakeBackend(reported), spec)
    run.run(6, {SiteName("a"): 1})
    assert bool(run.machine.stop_reason) == ends_early


@pytest.mark.parametrize("kind", ["tpe", "gp", "nsgaii"])
def test_a_searcher_that_learns_is_told_all_metrics_and_limits(kind: str) -> None:
    spec = tune(searcher={"kind": kind}, constraints=[{"metric": "loss", "at_most": 0.5}])
    searcher: Any = build_study_searcher(spec, 7)
    for number in range(3):
        trial = TrialId(str(number))
        config = searcher.propose(trial)
        values, violations = (config["lr"], 1.0 / config["lr"]), (config["lr"] - 0.5,)
        inform(searcher, TrialFinished(trial, TrialState.COMPLETED, values[0], "", values, violations))
    told = searcher._study.trials
    assert [tuple(one.values) for one in told] == [(p["lr"], 1.0 / p["lr"]) for p in (t.params for t in told)]
    assert [one.system_attrs["constraints"] for one in told] == [(t.params["lr"] - 0.5,) for t in told]
    assert [d.name for d in searcher._study.directions] == ["MINIMIZE", "MAXIMIZE"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"metric": "other"}, "metrics as well"),
        ({"mode": "max"}, "metrics as well"),
        ({"metrics": [{"name": "loss"}, {"name": "loss"}]}, "listed before"),
        ({"metrics": [{"name": "loss"}]}, "metrics"),
        ({"best": "epoch"}, "with several metrics"),
        ({"searcher": {"kind": "cmaes"}}, "with several metrics"),
        ({"constraints": [{"metric": "loss"}]}, "exactly one of at_most, at_least"),
        ({"constraints": [{"metric": "loss", "at_most": 1, "at_least": 0}]}, "exactly one of"),
    ],
)
def test_what_cannot_be_is_refused_in_words(changes: dict[str, Any], said: str) -> None:
    with pytest.raises((InvalidFileError, InvalidSettingError, ValueError), match=said):
        tune(**changes)


def test_a_spec_that_was_written_down_reads_as_it_was() -> None:
    spec = tune(constraints=[{"metric": "loss", "at_least": 0.0}])
    assert TuneSpec.model_validate(spec.model_dump(mode="json")) == spec
