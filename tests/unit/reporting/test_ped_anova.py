"""PED-ANOVA: the same numbers as Optuna's, without importing what Optuna imports."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.importance import PedAnovaImportanceEvaluator

from parsl_rasda.reporting.optuna_studies import optunas_parameters
from parsl_rasda.reporting.ped_anova import explained
from parsl_rasda.search.space import Choice, Float, Int, SearchSpace

PARAMETERS = [
    Float(-1.0, 3.0),
    Float(1e-4, 1.0, log=True),
    Float(0.0, 1.0, step=0.1),
    Float(0.0, 1.05, step=0.1),
    Float(0.0, 1.0, step=0.001),
    Int(2, 9),
    Int(0, 1000, step=7),
    Int(1, 2, log=True),
    Int(1, 4096, log=True),
    Choice(("a", "b", 3, None)),
]


def value_at(parameter: Any, share: float) -> Any:
    """Return the value of a parameter at a share of its range."""
    if isinstance(parameter, Choice):
        return parameter.values[min(len(parameter.values) - 1, int(share * len(parameter.values)))]
    if parameter.log:
        value = math.exp(math.log(parameter.low) + share * math.log(parameter.high / parameter.low))
        return round(value) if isinstance(parameter, Int) else min(max(value, parameter.low), parameter.high)
    if parameter.count is None:
        return parameter.low + share * (parameter.high - parameter.low)
    return parameter.level(round(share * (parameter.count - 1)))


def of_optuna(values: list[Any], losses: list[float], parameter: Any, good: float) -> float:
    study = optuna.create_study()
    for value, loss in zip(values, losses, strict=True):
        params, distributions = optunas_parameters({"x": value}, SearchSpace({"x": parameter}))
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=loss))
    return float(PedAnovaImportanceEvaluator(target_quantile=good).evaluate(study, params=["x"])["x"])


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(PARAMETERS),
    st.lists(st.tuples(st.floats(0, 1), st.integers(-9, 9)), min_size=8, max_size=40),
    st.sampled_from([0.1, 0.25, 0.5]),
)
def test_it_is_optunas(parameter: Any, trials: list[tuple[float, int]], good: float) -> None:
    values, losses = [value_at(parameter, share) for share, _ in trials], [float(x) for _, x in trials]
    if len({*map(repr, values)}) == 1:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        expected = of_optuna(values, losses, parameter, good)
    assert explained(values, losses, parameter, good) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_a_parameter_of_one_level_explains_nothing() -> None:
    assert explained([0, 0.0] * 4, [1.0, 2.0] * 4, Float(0.0, 0.05, step=0.1), 0.25) == pytest.approx(0.0)


def test_a_report_needs_neither_optuna_nor_numpy() -> None:
    program = """
import sys
import parsl_rasda.cli.main, parsl_rasda.cli.run_and_report, parsl_rasda.workflow.entry
from parsl_rasda.reporting.importance import importance_of
from parsl_rasda.search.space import Float, SearchSpace
trials = [{"config": {"x": i / 20}, "history": [[1, i * 0.1]]} for i in range(20)]
summary = {"trial_list": trials, "rungs": [{"epochs": 1}], "mode": "min"}
assert importance_of(summary, SearchSpace({"x": Float(0.0, 1.0)})).shares == {"x": 1.0}
large = {"optuna", "numpy", "sklearn", "scipy", "pandas", "matplotlib", "torch", "parsl"}
print(sorted(large & {*sys.modules}))
"""
    found = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "[]"
