"""What `plan` says of a budget: where it ends a search, and the largest search that fits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parsl_rasda.errors import InvalidSettingError
from parsl_rasda.placement.times import Assumed
from parsl_rasda.simulation.budgets import MOST, forecast_budget, largest
from parsl_rasda.simulation.comparison import WhatIf
from parsl_rasda.simulation.costs import assumed_costs
from parsl_rasda.simulation.forecast import forecast
from parsl_rasda.simulation.rehearsal import VirtualSite
from parsl_rasda.types import Budget, SiteName
from tests.unit.orchestration.small_study import tune

SITES = {SiteName("here"): VirtualSite(nodes=1, gpus_per_node=4)}
COSTS = assumed_costs(Assumed(10.0, 0.0, 0.9), seed=1)


@given(st.integers(0, 12_000), st.integers(1, 9))
def test_the_largest_number_is_found(limit: int, least: int) -> None:
    expected = 0 if limit < least else min(limit, MOST)
    assert largest(lambda n: n <= limit, least) == expected


def test_a_budget_that_lasts_and_one_that_does_not() -> None:
    enough = forecast_budget(tune(budget={"gpu_hours": 10}), SITES, COSTS, now=0.0)
    assert enough is not None
    assert enough.is_enough
    assert enough.trials == 6
    short = forecast_budget(tune(budget={"wall_time": "00:00:25"}, num_samples=40), SITES, COSTS, now=0.0)
    assert short is not None
    assert not short.is_enough
    assert 0 < short.trials < 40
    assert short.makespan_s <= 25
    assert forecast_budget(tune(), SITES, COSTS, now=0.0) is None


def test_the_largest_search_that_fits_does_fit_and_one_more_does_not() -> None:
    def under(num_samples: int, max_t: int, *, fit: bool = False):
        spec = tune(
            budget={"gpu_hours": 0.2}, num_samples=num_samples, scheduler={"max_t": max_t, "max_workers": 2}
        )
        found = forecast_budget(spec, SITES, COSTS, now=0.0, fit=fit)
        assert found is not None
        return found

    found = under(6, 4, fit=True)
    assert found.num_samples is not None
    assert found.max_t is not None
    assert found.num_samples > 6
    assert under(found.num_samples, 4).is_enough
    assert not under(found.num_samples + 1, 4).is_enough
    assert under(6, found.max_t).is_enough
    assert not under(6, found.max_t + 1).is_enough


def test_a_time_of_day_counts_from_now() -> None:
    spec = tune(budget={"until": "2026-12-01 08:00"})
    found, limits = forecast_budget(spec, SITES, COSTS, now=1e9), spec.budget.limits(0.0)
    assert found is not None
    assert limits is not None
    assert limits.until is not None
    assert found.limits == Budget(until=limits.until - 1e9)


def test_pilots_that_wait_longer_than_the_budget_lasts_leave_nothing_of_it() -> None:
    def under(wait_s: float):
        what_if = WhatIf(seeds=1, waits={SiteName("here"): [wait_s]})
        spec = tune(budget={"wall_time": "01:00:00"})
        found = forecast("tune", spec, SITES, seed=1, what_if=what_if).budget
        assert found is not None
        return found

    assert under(60.0).is_enough
    late = under(7200.0)
    assert (late.is_enough, late.trials, late.gpu_hours) == (False, 0, 0.0)


def test_to_fit_into_no_budget_is_an_error() -> None:
    with pytest.raises(InvalidSettingError, match=r"no limit.*--set tune\.budget\.gpu_hours=100"):
        forecast_budget(tune(), SITES, COSTS, now=0.0, fit=True)
