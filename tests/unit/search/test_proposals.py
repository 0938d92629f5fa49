from __future__ import annotations

import doctest
import json
import logging
import subprocess
import sys
from statistics import mean

import optuna
import pytest

import parsl_rasda.search as chapter
from parsl_rasda.errors import InvalidFileError, InvalidSettingError
from parsl_rasda.search import build_searcher, designs
from parsl_rasda.search.space import Choice, Constant, Float, Int, SearchSpace

SQUARE = SearchSpace({"x": Float(-5.0, 5.0), "y": Float(-5.0, 5.0)})


def bowl(config) -> float:
    return (config["x"] - 2) ** 2 + (config["y"] + 1) ** 2


def best_of(kind: str, seed: int, trials: int, mode: str = "min") -> float:
    searcher = build_searcher({"kind": kind}, SQUARE, mode=mode, seed=seed)
    sign = 1 if mode == "min" else -1
    losses = []
    for trial in map(str, range(trials)):
        losses.append(bowl(searcher.propose(trial)))
        searcher.conclude(trial, sign * losses[-1])
    return min(losses)


def test_the_example_of_the_package_runs() -> None:
    assert doctest.testmod(chapter).failed == 0
    assert doctest.testmod(chapter).attempted == 3


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("kind", ["tpe", "cmaes"])
def test_a_searcher_that_learns_beats_random_on_a_bowl(kind: str, mode: str) -> None:
    learned = mean(best_of(kind, seed, 40, mode) for seed in range(8))
    assert learned < 0.7 * mean(best_of("random", seed, 40, mode) for seed in range(8))


@pytest.mark.slow
def test_the_gaussian_process_beats_random_on_a_bowl() -> None:
    assert best_of("gp", 0, 15) < 0.3 * mean(best_of("random", seed, 15) for seed in range(8))


def test_random_depends_on_seed_and_index_only() -> None:
    whole = build_searcher({"kind": "random"}, SQUARE, mode="min", seed=3)
    configs = [whole.propose(str(i)) for i in range(5)]
    resumed = build_searcher({"kind": "random"}, SQUARE, mode="min", seed=3)
    for index in (2, 0, 1, 3):
        resumed.restore(str(index), configs[index])
    assert resumed.propose("4") == configs[4]


def test_sobol_fills_each_half_of_each_range_evenly() -> None:
    searcher = build_searcher({"kind": "sobol", "scramble": False}, SQUARE, mode="min", seed=0)
    points = [searcher.propose(str(i)) for i in range(16)]
    assert sum(p["x"] < 0 for p in points) == sum(p["y"] < 0 for p in points) == 8
    assert len({(int((p["x"] + 5) / 2.5), int((p["y"] + 5) / 2.5)) for p in points}) == 16


def test_a_grid_proposes_every_combination_once_and_is_then_exhausted() -> None:
    space = SearchSpace(
        {
            "optimizer": Choice(("sgd", "adamw")),
            "momentum": Float(0.0, 0.9, step=0.3, when={"optimizer": "sgd"}),
            "layers": Int(1, 3),
            "epochs": Constant(8),
        }
    )
    searcher = build_searcher({"kind": "grid"}, space, mode="min", seed=0)
    configs = [json.dumps(searcher.propose(str(i))) for i in range(15)]
    assert len(set(configs)) == 15, "4 momenta for sgd and none for adamw, times 3"
    assert searcher.propose("more") is None
    assert searcher.propose("more") is None


def test_a_grid_is_as_fine_as_its_samples_allow() -> None:
    def size(**options: int) -> int:
        searcher = build_searcher({"kind": "grid", **options}, SQUARE, mode="min", seed=0)
        return sum(searcher.propose(str(i)) is not None for i in range(200))

    assert size(num_samples=24) == 16
    assert size(num_samples=25) == 25
    assert size(num_samples=1) == 4
    assert size(levels=3, num_samples=100) == 9
    assert size() == 16


def test_a_larger_budget_refines_the_grid_and_repeats_nothing() -> None:
    coarse = build_searcher({"kind": "grid", "num_samples": 4}, SQUARE, mode="min", seed=0)
    fine = build_searcher({"kind": "grid", "num_samples": 9}, SQUARE, mode="min", seed=0)
    known = [coarse.propose(str(i)) for i in range(4)]
    for i, config in enumerate(known):
        fine.restore(str(i), config)
    added = [fine.propose(str(i)) for i in range(4, 9)]
    assert not any(config in known for config in added)


def test_a_proposal_of_a_grid_costs_the_same_however_many_came_before(monkeypatch) -> None:
    compared: list[object] = []

    def text(config: object) -> str:
        compared.append(config)
        return json.dumps(config, sort_keys=True)

    monkeypatch.setattr(designs, "_text", text)
    searcher = build_searcher({"kind": "grid", "num_samples": 400}, SQUARE, mode="min", seed=0)
    for i in range(400):
        searcher.propose(str(i))
    assert len(compared) <= 400


def test_a_grid_that_explodes_is_an_error() -> None:
    space = SearchSpace({f"x{i}": Int(0, 10**9) for i in range(3)})
    with pytest.raises(InvalidSettingError, match="at most 100000 points"):
        build_searcher({"kind": "grid"}, space, mode="min", seed=0)


def test_more_levels_than_any_grid_has_are_an_error_before_they_are_made(monkeypatch) -> None:
    monkeypatch.setattr(designs, "LARGEST_GRID", 100)
    made = []
    monkeypatch.setattr(designs, "_between", lambda parameter, share: made.append(share) or share)
    with pytest.raises(InvalidSettingError, match="at most 100 points"):
        build_searcher({"kind": "grid", "levels": 10**6}, SQUARE, mode="min", seed=0)
    assert len(made) < 1000


def test_a_list_is_proposed_in_its_order_and_then_exhausted() -> None:
    configs = [{"x": 1}, {"x": 1}, {"x": 2}]
    searcher = build_searcher({"kind": "list", "configs": configs}, SQUARE, mode="min", seed=0)
    searcher.restore("a", {"x": 1})
    assert [searcher.propose(t) for t in "bcd"] == [{"x": 1}, {"x": 2}, None]


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "cmaes", "popsize": 4},
        {"kind": "cmaes", "popsize": 4, "use_separable_cma": True},
        {"kind": "cmaes", "popsize": 4, "with_margin": True},
        {"kind": "nsgaii", "population_size": 4},
    ],
)
def test_generations_are_taken_up_again_after_a_restart(settings) -> None:
    whole = build_searcher(settings, SQUARE, mode="min", seed=1)
    resumed = build_searcher(settings, SQUARE, mode="min", seed=1)
    for trial in map(str, range(20)):
        config = whole.propose(trial)
        resumed.restore(trial, config)
        for searcher in (whole, resumed):
            searcher.conclude(trial, bowl(config))
    assert whole.propose("next") == resumed.propose("next")


@pytest.mark.parametrize("kind", ["tpe", "cmaes"])
def test_trials_that_run_side_by_side_get_different_configurations(kind: str) -> None:
    searcher = build_searcher({"kind": kind}, SQUARE, mode="min", seed=1)
    for trial in map(str, range(12)):
        searcher.conclude(trial, bowl(searcher.propose(trial)))
    assert len({json.dumps(searcher.propose(f"parallel {i}")) for i in range(8)}) == 8


def test_choices_may_be_any_json_and_keep_their_values_through_optuna() -> None:
    values = ([64, 64], {"width": 8}, None, True)
    space = SearchSpace({"net": Choice(values), "depth": Int(1, 8, step=3), "p": Float(0.0, 0.5, step=0.2)})
    searcher = build_searcher({"kind": "tpe"}, space, mode="max", seed=0)
    for trial in map(str, range(20)):
        config = searcher.propose(trial)
        assert space.accepts(config)
        searcher.conclude(trial, float(config["depth"]))


def test_a_diverged_configuration_is_learned_as_bad() -> None:
    searcher = build_searcher({"kind": "tpe"}, SearchSpace({"x": Float(0.0, 1.0)}), mode="max", seed=0)
    proposed = []
    for trial in map(str, range(40)):
        proposed.append(searcher.propose(trial)["x"])
        searcher.conclude(trial, float("nan") if proposed[-1] > 0.5 else -abs(proposed[-1] - 0.2))
    assert sum(x <= 0.5 for x in proposed[20:]) >= 18


def test_trials_that_failed_after_a_report_still_teach() -> None:
    searcher = build_searcher({"kind": "tpe"}, SearchSpace({"x": Float(0.0, 1.0)}), mode="min", seed=0)
    proposed = []
    for trial in map(str, range(40)):
        proposed.append(searcher.propose(trial)["x"])
        searcher.observe(trial, 1, proposed[-1])
        searcher.conclude(trial, None)
    assert mean(proposed[20:]) < 0.25


def test_a_configuration_of_another_space_is_kept_but_teaches_nothing() -> None:
    searcher = build_searcher({"kind": "tpe"}, SQUARE, mode="min", seed=0)
    searcher.restore("old", {"x": 99.0})
    searcher.conclude("old", 0.0)
    assert searcher.propose("old") == {"x": 99.0}
    assert SQUARE.accepts(searcher.propose("new"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"kind": "bayes"},
            "searcher.kind: found 'bayes'; allowed: random, grid, sobol, tpe, gp, cmaes, nsgaii, list",
        ),
        ({"kind": "random", "n": 1}, "searcher.n: found an unknown key; allowed: none"),
        ({"kind": "sobol", "scramble": 1}, "searcher.scramble: found 1; allowed: a boolean"),
        ({"kind": "grid", "levels": 0}, "searcher.levels: found 0"),
        (
            {"kind": "tpe", "n_startup": 1},
            "searcher.n_startup: found 1; allowed: the options of tpe: consider",
        ),
        ({"kind": "tpe", "n_startup_trials": "5"}, "searcher.n_startup_trials: found '5'; allowed: int"),
        ({"kind": "tpe", "n_startup_trials": True}, "searcher.n_startup_trials: found True; allowed: int"),
        ({"kind": "tpe", "seed": 1}, "searcher.seed: found 1"),
        (
            {"kind": "cmaes", "use_separable_cma": True, "with_margin": True},
            "searcher: found {'use_separable",
        ),
        ({"kind": "list"}, "searcher.configs: found nothing; allowed: a list of configurations"),
        ({"kind": "list", "config": []}, "searcher.config: found an unknown key; allowed: configs (did you"),
    ],
)
def test_a_bad_setting_is_an_error_that_names_the_options(settings, message) -> None:
    with pytest.raises((InvalidFileError, InvalidSettingError)) as error:
        build_searcher(settings, SQUARE, mode="min", seed=0)
    assert str(error.value).startswith(message)


def test_optuna_is_silent_and_its_settings_are_left_alone(caplog) -> None:
    caplog.set_level(logging.DEBUG)
    optuna.logging.enable_propagation()
    before = optuna.logging.get_verbosity()
    best_of("cmaes", seed=0, trials=5)
    assert optuna.logging.get_verbosity() == before
    assert [r for r in caplog.records if r.name.startswith("optuna")] == []
    optuna.logging.disable_propagation()


def test_optuna_is_imported_only_where_it_is_used() -> None:
    script = (
        "import sys; from parsl_rasda.search import SearchSpace, build_searcher\n"
        "space = SearchSpace.from_mapping({'x': {'float': [0, 1]}})\n"
        "assert build_searcher({}, space, mode='min', seed=0).propose('a')\n"
        "assert not {'optuna', 'scipy', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
