from __future__ import annotations

import statistics

from parsl_rasda.placement.times import Assumed
from parsl_rasda.simulation.costs import assumed_costs

ASSUMED = Assumed(epoch_s=60.0, restart_s=10.0, efficiency=0.9)


def test_without_spread_every_trial_costs_what_is_assumed() -> None:
    costs = assumed_costs(ASSUMED, seed=1)
    assert {costs.epoch_s(trial, 1) for trial in range(9)} == {60.0}
    assert costs.epoch_s(0, 2) == 60.0 / 1.8
    assert costs.epoch_s(0, 4) == 60.0 / 4 / 0.81
    assert costs.restart_s == costs.launch_s(0) == 10.0


def test_the_spread_is_the_one_that_is_asked_for_and_the_same_at_any_width() -> None:
    costs = assumed_costs(ASSUMED, seed=1, spread=0.2)
    paces = [costs.epoch_s(trial, 1) / 60.0 for trial in range(2000)]
    assert abs(statistics.median(paces) - 1.0) < 0.03
    assert abs(statistics.stdev(paces) - 0.2) < 0.03
    assert costs.epoch_s(7, 2) == costs.epoch_s(7, 1) / 1.8


def test_draws_depend_on_the_seed_and_the_trial_alone() -> None:
    first, again, other = (assumed_costs(ASSUMED, seed=s, spread=0.2) for s in (1, 1, 2))
    forwards = [first.epoch_s(trial, 1) for trial in range(20)]
    backwards = [again.epoch_s(trial, 1) for trial in reversed(range(20))]
    assert forwards == backwards[::-1]
    assert forwards != [other.epoch_s(trial, 1) for trial in range(20)]


def test_a_better_trial_is_better_at_every_epoch() -> None:
    costs = assumed_costs(ASSUMED, seed=1)
    ranking = sorted(range(50), key=lambda trial: costs.metric(trial, 1))
    for epoch in (2, 8, 64):
        assert sorted(range(50), key=lambda trial: costs.metric(trial, epoch)) == ranking
