"""What a searcher learns of trials that must keep limits."""

from __future__ import annotations

import pytest

from parsl_rasda.search import SearchSpace, build_searcher
from parsl_rasda.types import TrialId

SPACE = SearchSpace.from_mapping({"lr": {"float": [1e-4, 1e-1], "log": True}})


@pytest.mark.parametrize("kind", ["tpe", "gp", "nsgaii"])
@pytest.mark.parametrize("metric", [None, 0.5, float("inf")])
def test_a_trial_that_ended_without_its_limits_teaches_nothing(kind: str, metric: float | None) -> None:
    searcher = build_searcher({"kind": kind}, SPACE, mode="min", seed=1, limits=1)
    for i in range(12):
        trial = TrialId(f"{i:04d}")
        assert searcher.propose(trial) is not None
        searcher.observe(trial, 1, 0.7)
        if i % 2:
            searcher.conclude(trial, metric)
        else:
            searcher.conclude_all(trial, (0.1 * i,), (float(i - 5),))
