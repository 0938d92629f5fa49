from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parsl_rasda.errors import InvalidSettingError
from parsl_rasda.search.designs import value_at
from parsl_rasda.search.space import (
    Choice,
    Constant,
    Float,
    Int,
    Parameter,
    SearchSpace,
    contains,
    parameter_from,
)


@pytest.mark.parametrize(
    ("data", "parameter"),
    [
        ({"float": [1.0e-4, 1], "log": True}, Float(1.0e-4, 1.0, log=True)),
        ({"float": [0, 1], "step": 0.1}, Float(0.0, 1.0, step=0.1)),
        ({"int": [1, 9], "step": 2}, Int(1, 9, step=2)),
        ({"int": [1, 9], "log": True, "when": {"a": 1}}, Int(1, 9, log=True, when={"a": 1})),
        ({"choice": ["sgd", None, [1, 2]]}, Choice(("sgd", None, [1, 2]))),
        ({"constant": {"any": "mapping"}}, Constant({"any": "mapping"})),
        (0.9, Constant(0.9)),
        (["a", "list"], Constant(["a", "list"])),
    ],
)
def test_each_spelling_of_the_study_file_has_its_parameter(data, parameter) -> None:
    assert parameter_from(data) == parameter


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"float": [0, 1], "logarithmic": True},
            "search_space.x.logarithmic: found True; allowed: beside float",
        ),
        ({"uniform": [0, 1]}, "search_space.x: found {'uniform'"),
        ({"float": [0, 1], "int": [0, 1]}, "search_space.x: found {'float'"),
        ({"float": [0]}, "search_space.x.float: found [0]; allowed: [low, high]"),
        ({"float": [2, 1]}, "search_space.x.float: found [2.0, 1.0]; allowed: low not above high"),
        (
            {"float": ["1e-4", 1]},
            "search_space.x.float: found '1e-4'; allowed: a finite number (YAML reads 1e-4",
        ),
        ({"float": [0, float("inf")]}, "search_space.x.float: found inf"),
        ({"float": [0, 1], "log": True}, "search_space.x.float: found [0.0, 1.0]; allowed: low above 0"),
        ({"float": [0, 1], "log": 1}, "search_space.x.log: found 1; allowed: true, false"),
        ({"float": [0, 1], "step": 0}, "search_space.x.step: found 0.0; allowed: a step above 0"),
        ({"float": [1, 2], "log": True, "step": 1.5}, "search_space.x.step: found 1.5; allowed: no step"),
        ({"int": [1, 2.5]}, "search_space.x.int: found 2.5; allowed: an integer"),
        ({"choice": "sgd"}, "search_space.x.choice: found 'sgd'; allowed: a list of values"),
        ({"choice": []}, "search_space.x.choice: found []; allowed: at least one value"),
        ({"choice": [1, 2, 1]}, "search_space.x.choice: found [1, 2, 1]"),
        ({"choice": [1, 2], "when": "a"}, "search_space.x.when: found 'a'"),
    ],
)
def test_a_bad_parameter_is_an_error_that_says_what_is_allowed(data, message) -> None:
    with pytest.raises(InvalidSettingError) as error:
        SearchSpace.from_mapping({"x": data})
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("other", "value", "allowed"),
    [
        ({"later": 1}, None, "a parameter above it: optimizer, rate, steps, flag"),
        ({"optimizer": "lion"}, "lion", "a value that optimizer can take"),
        ({"optimizer": ["sgd", "lion"]}, "lion", "a value that optimizer can take"),
        ({"optimizer": []}, [], "at least one value"),
        ({"rate": 0.5}, 0.5, "a value that rate can take"),
        ({"steps": 4}, 4, "a value that steps can take"),
        ({"flag": True}, True, "a value that flag can take"),
    ],
)
def test_a_condition_that_cannot_hold_is_an_error(other, value, allowed) -> None:
    before = {
        "optimizer": {"choice": ["sgd", "adamw"]},
        "rate": {"float": [0, 1]},
        "steps": {"int": [1, 9], "step": 2},
        "flag": {"choice": [0, 1]},
    }
    with pytest.raises(InvalidSettingError, match=allowed):
        SearchSpace.from_mapping({**before, "x": {"choice": [1], "when": other}, "later": 1})


def test_conditions_chain() -> None:
    space = SearchSpace.from_mapping(
        {
            "optimizer": {"choice": ["sgd", "adamw"]},
            "nesterov": {"choice": [True, False], "when": {"optimizer": "sgd"}},
            "momentum": {"float": [0.1, 0.9], "step": 0.1, "when": {"nesterov": [True]}},
            "seed": 7,
        }
    )

    def config(optimizer: str, nesterov: bool) -> dict[str, object]:
        values = {"optimizer": optimizer, "nesterov": nesterov, "momentum": 0.3}
        return space.configure(lambda name, _: values[name])

    assert config("adamw", True) == {"optimizer": "adamw", "seed": 7}
    assert config("sgd", False) == {"optimizer": "sgd", "nesterov": False, "seed": 7}
    assert config("sgd", True) == {"optimizer": "sgd", "nesterov": True, "momentum": 0.3, "seed": 7}
    assert space.accepts({"seed": 7, "optimizer": "adamw"}), "the order of keys does not matter"
    assert not space.accepts({"optimizer": "adamw", "nesterov": True, "seed": 7})
    assert not space.accepts({"optimizer": "sgd", "nesterov": True, "momentum": 0.35, "seed": 7})


def test_steps_are_counted_in_decimals() -> None:
    parameter = Float(0.0, 0.3, step=0.1)
    assert [parameter.level(i) for i in range(parameter.count)] == [0.0, 0.1, 0.2, 0.3]


bounds = st.tuples(st.integers(1, 1000), st.integers(0, 1000)).map(lambda b: (b[0], b[0] + b[1]))
parameters = st.one_of(
    st.builds(lambda b, log: Float(b[0] / 7, b[1] / 7, log=log), bounds, st.booleans()),
    st.builds(lambda b, step: Float(*map(float, b), step=step), bounds, st.sampled_from([0.1, 0.25, 3.0])),
    st.builds(lambda b, log: Int(*b, log=log), bounds, st.booleans()),
    st.builds(lambda b, step: Int(*b, step=step), bounds, st.integers(1, 20)),
    st.just(Choice(("a", None, 3))),
)


@given(parameters, st.floats(0, 1, exclude_max=True))
def test_every_share_of_a_range_is_a_value_of_it(parameter: Parameter, share: float) -> None:
    assert contains(parameter, value_at(parameter, share))


@given(parameters)
def test_both_ends_of_a_range_can_be_drawn(parameter: Parameter) -> None:
    lowest, highest = value_at(parameter, 0.0), value_at(parameter, 1 - 2**-53)
    if isinstance(parameter, Choice):
        assert (lowest, highest) == ("a", 3)
    else:
        top = parameter.high if parameter.step is None else parameter.level(parameter.count - 1)
        assert (lowest, highest) == (pytest.approx(parameter.low), pytest.approx(top))
