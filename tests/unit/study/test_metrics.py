"""What a `tune` block may say of several metrics and of limits."""

from __future__ import annotations

import pytest

from parsl_rasda.study.metrics import metric_problems

LIMITS = {"constraints": [{"metric": "latency", "at_most": 1.0}]}
SEVERAL = {"metrics": [{"name": "loss"}, {"name": "latency"}]}


@pytest.mark.parametrize("judged", [LIMITS, SEVERAL])
@pytest.mark.parametrize(
    ("block", "key", "value"),
    [
        ("scheduler", "brackets", 2),
        ("scheduler", "brackets", "auto"),
        ("scheduler", "min_compared", 4),
        ("scheduler", "early", {"kind": "curve"}),
        ("scheduler", "max_t", {"auto": 16}),
        ("searcher", "kind", "cmaes"),
    ],
)
def test_what_compares_trials_by_one_number_is_refused(judged, block, key, value) -> None:
    (mistake,) = metric_problems({**judged, block: {key: value}})
    assert mistake.loc == (block, key)


@pytest.mark.parametrize("judged", [LIMITS, SEVERAL])
def test_the_best_epoch_is_refused(judged) -> None:
    (mistake,) = metric_problems({**judged, "best": "epoch"})
    assert mistake.loc == ("best",)


@pytest.mark.parametrize("judged", [LIMITS, SEVERAL])
def test_what_is_spelt_out_as_the_default_is_not_refused(judged) -> None:
    plain = {"brackets": 1, "min_compared": 1, "early": "none", "max_t": 16}
    assert [*metric_problems({**judged, "scheduler": plain, "searcher": {"kind": "tpe"}})] == []
