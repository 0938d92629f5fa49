"""Whatever of the machine is broken: while one good slot remains, no trial fails and the best is the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parsl_rasda.orchestration.summary import best
from parsl_rasda.types import StudyState
from tests.unit.orchestration.faulty_world import Faults, FaultyWorld
from tests.unit.orchestration.random_world import Setup, Shape


@st.composite
def worlds(draw: st.DrawFn) -> tuple[Setup, Faults, int]:
    shape = Shape(draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 4])))
    setup = Setup(
        "synchronous",
        draw(st.sampled_from(["elastic", "none"] + ["strict"] * (shape.nodes * shape.gpus_per_node >= 4))),
        {"a": shape},
        trials=draw(st.integers(1, 10)),
        max_t=draw(st.sampled_from([2, 4, 8])),
        max_workers=4 if shape.gpus_per_node == 4 else draw(st.sampled_from([1, 2])),
    )
    nodes = [f"n{i}" for i in range(shape.nodes)]
    slots = [f"{node}:{gpu}" for node in nodes for gpu in range(shape.gpus_per_node)]
    good = draw(st.sampled_from(slots))
    others = [slot for slot in slots if slot != good]
    some = st.sets(st.sampled_from(others)).map(frozenset) if others else st.just(frozenset())
    elsewhere = [node for node in nodes if not good.startswith(f"{node}:")]
    bad_nodes = st.sets(st.sampled_from(elsewhere)).map(frozenset) if elsewhere else st.just(frozenset())
    faults = Faults(
        draw(some),
        draw(some),
        draw(bad_nodes),
        draw(st.sets(st.sampled_from([2, 4])).map(frozenset)),
        draw(st.sampled_from([None, None, 900.0])),
    )
    return setup, faults, draw(st.integers(0, 2**32))


def outcome(world: FaultyWorld) -> tuple:
    found = best(world.machine)
    assert found is not None
    states = {t.id: (t.state, t.epoch) for t in world.machine.trials.values()}
    return states, found["trial"], found["metric"], found["epoch"]


@settings(max_examples=3 * settings.default.max_examples, deadline=None)
@given(worlds())
def test_while_one_good_slot_remains_a_broken_machine_decides_as_a_whole_one(
    drawn: tuple[Setup, Faults, int],
) -> None:
    setup, faults, seed = drawn
    whole, broken = FaultyWorld(setup, seed), FaultyWorld(setup, seed, faults)
    whole.run()
    broken.run()
    assert whole.finished is not None
    assert whole.finished.state is StudyState.DONE
    assert broken.finished is not None
    assert broken.finished.state is StudyState.DONE, broken.finished
    assert not [e for e in broken.ends.values() if e.state == "failed"]
    assert outcome(broken) == outcome(whole)
    again = setup.machine()
    for event, instructions in broken.record:
        assert again.handle(event) == instructions, "a replay decides as the live run did"


@pytest.mark.parametrize("gpus", [1, 2, 4])
@pytest.mark.parametrize("growth", ["elastic", "none"])
@pytest.mark.parametrize("crashing", [{"0003"}, {"0007"}, {"0000", "0001", "0002"}, {"0002", "0005", "0007"}])
def test_trials_that_kill_themselves_fail_alone(growth: str, gpus: int, crashing: set[str]) -> None:
    setup = Setup("synchronous", growth, {"a": Shape(1, gpus)}, trials=8, max_t=4)
    world = FaultyWorld(setup, 7, Faults(crashing=frozenset(crashing)))
    world.run()
    assert world.finished is not None
    assert world.finished.state is StudyState.DONE, world.finished
    assert {e.trial for e in world.ends.values() if e.state == "failed"} == crashing
    assert all(world.machine.trials[t].attempt <= 8 for t in crashing)


@pytest.mark.parametrize("kind", ["unsure", "sure"])
def test_without_a_good_slot_no_trial_fails_and_the_search_can_be_resumed(kind: str) -> None:
    setup = Setup("synchronous", "elastic", {"a": Shape(1, 2)}, trials=8, max_t=4)
    world = FaultyWorld(setup, 7, replace(Faults(), **{kind: frozenset({"n0:0", "n0:1"})}))
    world.run()
    assert world.finished is not None
    assert world.finished.state is StudyState.NO_SITE
    assert "slot n0:0" in world.finished.cause
    assert not world.ends
    world.faults = Faults()
    world.finished, world.up, world.requested = None, {}, []
    world.run()
    assert world.finished.state is StudyState.DONE
