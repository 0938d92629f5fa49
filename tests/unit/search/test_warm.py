"""A search that begins with what another one has found."""

from __future__ import annotations

import json

import pytest

from parsl_rasda.errors import InvalidSettingError
from parsl_rasda.search import build_searcher
from parsl_rasda.search.space import SearchSpace
from parsl_rasda.search.warm import WarmStarted
from parsl_rasda.types import TrialId

SPACE = SearchSpace.from_mapping(
    {
        "lr": {"float": [1e-4, 1e-1], "log": True},
        "optimizer": {"choice": ["sgd", "adamw"]},
        "momentum": {"float": [0.0, 1.0], "when": {"optimizer": "sgd"}},
    }
)
KNOWN = {"lr": 0.02, "optimizer": "sgd", "width": 8}


def searcher(kind: str) -> WarmStarted:
    return WarmStarted(build_searcher({"kind": kind}, SPACE, mode="min", seed=3), SPACE, [KNOWN])


@pytest.mark.parametrize("kind", ["random", "sobol", "tpe"])
def test_the_known_configuration_comes_first_completed_to_this_space(kind: str) -> None:
    found = searcher(kind)
    assert found.propose(TrialId("0000")) == {"lr": 0.02, "optimizer": "sgd", "momentum": 0.5}
    assert found.propose(TrialId("0000")) == {"lr": 0.02, "optimizer": "sgd", "momentum": 0.5}
    others = [found.propose(TrialId(f"{i:04d}")) for i in range(1, 6)]
    assert all(config is not None and config["lr"] != 0.02 for config in others)


@pytest.mark.parametrize("kind", ["random", "sobol", "tpe"])
def test_a_restart_goes_on_as_if_there_had_been_none(kind: str) -> None:
    whole, first, second = searcher(kind), searcher(kind), searcher(kind)
    wanted = [whole.propose(TrialId(f"{i:04d}")) for i in range(6)]
    for i in range(3):
        trial = TrialId(f"{i:04d}")
        config = first.propose(trial)
        assert config is not None
        second.restore(trial, config)
    assert [second.propose(TrialId(f"{i:04d}")) for i in range(3, 6)] == wanted[3:]


@pytest.mark.parametrize("died_after", range(4))
def test_a_list_is_tried_as_a_whole_behind_the_known_configuration(died_after: int) -> None:
    configs = [{"lr": 0.01, "optimizer": "adamw"}, {"lr": 0.03, "optimizer": "adamw"}]

    def warm() -> WarmStarted:
        listed = build_searcher({"kind": "list", "configs": configs}, SPACE, mode="min", seed=3)
        return WarmStarted(listed, SPACE, [KNOWN])

    first, second = warm(), warm()
    found = []
    for i in range(4):
        if i == died_after:
            first = second
        found.append(first.propose(TrialId(f"{i:04d}")))
        if found[-1] is not None and i < died_after:
            second.restore(TrialId(f"{i:04d}"), found[-1])
    assert found[0] is not None
    assert found[0]["lr"] == 0.02
    assert found[1:] == [*configs, None]


def test_a_value_out_of_range_is_not_taken() -> None:
    warm = WarmStarted(
        build_searcher({"kind": "random"}, SPACE, mode="min", seed=3),
        SPACE,
        [{"lr": 5.0, "optimizer": "adamw"}],
    )
    config = warm.propose(TrialId("0000"))
    assert config is not None
    assert 1e-4 <= config["lr"] <= 1e-1
    assert config["optimizer"] == "adamw"


def test_a_configuration_of_nothing_in_common_is_refused() -> None:
    with pytest.raises(InvalidSettingError, match="lr, optimizer, momentum"):
        WarmStarted(build_searcher({"kind": "random"}, SPACE, mode="min", seed=3), SPACE, [{"depth": 3}])


@pytest.mark.parametrize("kind", ["random", "grid", "tpe"])
def test_a_known_value_is_taken_in_the_form_that_it_has_here(kind: str) -> None:
    space = SearchSpace.from_mapping({"depth": {"int": [1, 4]}, "width": {"choice": [8, 16]}, "bias": 1})
    known = {"depth": 2.0, "width": 16.0}  # of a search over real numbers
    warm = WarmStarted(build_searcher({"kind": kind}, space, mode="min", seed=3), space, [known])
    assert json.dumps(warm.propose(TrialId("0000"))) == '{"depth": 2, "width": 16, "bias": 1}'


def test_a_configuration_of_the_user_uses_none_of_the_known_ones_up() -> None:
    found = searcher("random")
    found.restore(TrialId("0000"), {"lr": 0.05, "optimizer": "adamw"})
    config = found.propose(TrialId("0001"))
    assert config is not None
    assert config["lr"] == 0.02


def test_what_a_known_configuration_leaves_out_is_what_is_believed() -> None:
    space = SearchSpace.from_mapping(
        {"lr": 0.1, "x": {"int": [0, 9]}, "y": {"float": [0.0, 1.0], "prior": 0.2}}
    )
    behind = build_searcher({"kind": "random"}, space, mode="min", seed=3)
    assert WarmStarted(behind, space, [{"x": 1}]).propose(TrialId("0000")) == {"lr": 0.1, "x": 1, "y": 0.2}
