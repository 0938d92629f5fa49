"""Hyperband, which plans are compared with."""

from __future__ import annotations

import random
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from parsl_rasda.scheduling.base import Action
from parsl_rasda.simulation.hyperband import HyperbandScheduler, bracket_sizes
from parsl_rasda.study import SchedulerSpec
from parsl_rasda.testing.schedulers import play
from parsl_rasda.types import TrialId


def test_the_brackets_of_the_paper_are_those_of_its_table() -> None:
    # Li et al. 2018, table 1: R = 81, eta = 3.
    assert bracket_sizes(5, 3, 81 + 34 + 15 + 8 + 5) == [81, 34, 15, 8, 5]


@given(rungs=st.integers(1, 8), eta=st.integers(2, 5), trials=st.integers(1, 500))
def test_every_trial_has_a_bracket_and_earlier_ones_are_larger(rungs: int, eta: int, trials: int) -> None:
    sizes = bracket_sizes(rungs, eta, trials)
    assert sum(sizes) == trials
    assert all(a >= b - 1 for a, b in pairwise(sizes))


@given(trials=st.integers(1, 40), eta=st.integers(2, 4), seed=st.integers(0, 99))
def test_every_trial_ends_once_and_is_judged_at_its_own_rungs_only(trials: int, eta: int, seed: int) -> None:
    scheduler = HyperbandScheduler(SchedulerSpec(max_t=16, reduction_factor=eta), trials)
    names = [TrialId(f"{n:04d}") for n in range(trials)]
    quality = {name: random.Random(f"{seed}/{name}").random() for name in names}
    decisions = play(scheduler, names, lambda trial, epoch: quality[trial] + 1 / epoch, random.Random(seed))
    stops = [d.trial for d in decisions if d.action is Action.STOP]
    assert sorted(stops) == names
    sizes = bracket_sizes(len(scheduler.milestones), eta, trials)
    firsts = [next(d.rung for d in decisions if d.trial == name) for name in names]
    assert [firsts.count(k) for k in range(len(sizes))] == sizes
    for d in decisions:
        if d.action is Action.CONTINUE:
            assert d.until == scheduler.milestones[d.rung]
            assert d.replicas == 1
