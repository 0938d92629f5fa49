from __future__ import annotations

import doctest

import pytest

import parsl_rasda.scheduling as chapter
from parsl_rasda.errors import InvalidFileError
from parsl_rasda.scheduling import build_scheduler


def test_the_example_of_the_package_runs() -> None:
    assert doctest.testmod(chapter).failed == 0
    assert doctest.testmod(chapter).attempted == 3


def test_rasda_doubles_the_replicas_and_asha_keeps_them() -> None:
    block = {"scaling_factor": 2, "num_workers": 2, "max_t": 4}
    assert [build_scheduler({"kind": "rasda", **block}).replicas(k) for k in range(3)] == [2, 4, 8]
    assert [build_scheduler({"kind": "asha", **block}).replicas(k) for k in range(3)] == [2, 2, 2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"variant": "hyperband"},
            "scheduler.variant: found 'hyperband'; allowed: stopping, promotion, sync",
        ),
        ({"mode": "lowest"}, "scheduler.mode: found 'lowest'; allowed: min, max"),
        ({"eta": 2}, "scheduler.eta: found an unknown key; allowed: kind, variant, grace_period, max_t"),
        ({"num_samples": 0}, "scheduler.num_samples: found 0; allowed: greater than or equal to 1"),
        ({"kind": "pbt"}, "scheduler.kind: found 'pbt'; allowed: rasda, asha"),
        ({"kind": ["asha"]}, "scheduler.kind: found"),
    ],
)
def test_a_bad_setting_is_an_error_that_says_what_is_allowed(settings, message) -> None:
    with pytest.raises(InvalidFileError) as error:
        build_scheduler({"max_t": 4, **settings})
    assert str(error.value).startswith(message)
