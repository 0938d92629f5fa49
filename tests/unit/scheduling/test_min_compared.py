"""Rungs that hold their first comers, against an independent statement in plain lists, and as a story."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parsl_rasda.scheduling import build_scheduler
from parsl_rasda.scheduling.base import Action
from parsl_rasda.testing.schedulers import play

STREAMS = 10_000
MAX_T = 9


def percentile(earlier: list[float], eta: int) -> float:
    """The result that the best 1/eta of some reach, interpolated by exact fractions."""
    ranked = sorted(earlier)
    position = Fraction(len(ranked) - 1, eta)
    low, high = ranked[math.floor(position)], ranked[math.ceil(position)]
    if math.inf in (low, high) and low != high:
        return math.inf
    return low if low == high else Fraction(low) + (Fraction(high) - Fraction(low)) * (position % 1)


class NaiveHolding:
    """All results of a rung in a list; who waits there in another; decided is whoever has left them."""

    def __init__(self, eta: int, least: int, trials: int) -> None:
        self.eta, self.least = eta, least
        self.milestones = [m for m in (eta**k for k in range(9)) if m < MAX_T] + [MAX_T]
        self.aim = dict.fromkeys(range(trials), 0)  # rung that a trial trains towards
        self.results, self.waiting, self.opened = defaultdict(list), defaultdict(list), set()

    def report(self, trial: int, cost: float | None) -> dict[int, str]:
        """Return what becomes of this and other trials: go, stop, done or gone."""
        rung = self.aim.pop(trial)
        if cost is None:
            return {trial: "gone"} | self.open()
        if rung == len(self.milestones) - 1:
            return {trial: "done" if cost < math.inf else "stop"} | self.open()
        earlier = [c for c, _ in self.results[rung]]
        self.results[rung].append((cost, trial))
        if cost == math.inf:
            return {trial: "stop"} | self.open()
        if rung in self.opened:
            goes_on = cost <= percentile(earlier, self.eta)
            if goes_on:
                self.aim[trial] = rung + 1
            return {trial: "go" if goes_on else "stop"} | self.open()
        self.waiting[rung].append((cost, trial))
        return self.open()

    def open(self) -> dict[int, str]:
        decided = {}
        for rung in range(len(self.milestones) - 1):
            below = [t for t, aim in self.aim.items() if aim <= rung]
            below += [t for r in range(rung) for t in self.waiting[r]]
            if self.waiting[rung] and (len(self.results[rung]) >= self.least or not below):
                quota = max(1, len(self.results[rung]) // self.eta)
                for place, (_, trial) in enumerate(sorted(self.waiting[rung])):
                    decided[trial] = "go" if place < quota else "stop"
                    if place < quota:
                        self.aim[trial] = rung + 1
                self.waiting[rung] = []
                self.opened.add(rung)
        return decided


def _check(variant_of: dict, least: int, eta: int, trials: int, rng: random.Random) -> None:
    scheduler = build_scheduler(
        {"max_t": MAX_T, "reduction_factor": eta, "min_compared": least, **variant_of}
    )
    naive = NaiveHolding(eta, least, trials)
    for trial in range(trials):
        scheduler.add(str(trial))
    scheduler.close()
    training = dict.fromkeys(range(trials), scheduler.milestones[0])
    while training:
        trial = rng.choice(sorted(training))
        until = training.pop(trial)
        draw = rng.random()
        cost = None if draw < 0.05 else math.inf if draw < 0.1 else float(rng.randint(0, 6))
        expected = naive.report(trial, cost)
        if cost is None:
            scheduler.remove(str(trial))
            found = [(trial, "gone")]
        else:
            answer = scheduler.report(str(trial), until, math.nan if cost == math.inf else cost)
            found = [(trial, answer)]
        while (resumed := scheduler.resume_next()) is not None:
            found.append((int(resumed.trial), resumed))
        found += [(int(stop.trial), stop) for stop in scheduler.dismiss()]
        words = {}
        for one, decision in found:
            if decision == "gone":
                words[one] = "gone"
            elif decision.action is Action.CONTINUE:
                words[one], training[one] = "go", decision.until
            elif decision.action is Action.STOP:
                words[one] = "done" if decision.completed else "stop"
        assert words == expected
    assert not any(naive.waiting.values()), "somebody waits for ever"


def test_first_comers_are_judged_together_as_the_rule_says() -> None:
    for seed in range(STREAMS):
        rng = random.Random(seed)
        _check({}, rng.randint(2, 9), rng.choice((2, 3, 4)), rng.randint(1, 14), rng)


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 9), st.sampled_from((2, 3, 4)), st.integers(1, 14), st.randoms(use_true_random=False))
def test_the_same_holds_for_whatever_hypothesis_finds(least, eta, trials, rng) -> None:
    _check({}, least, eta, trials, rng)


def _story(variant: str, least: int, results: list[float]) -> list[tuple[str, str]]:
    block = {"variant": variant, "max_t": 4, "metric": "loss", "min_compared": least}
    scheduler = build_scheduler(block)
    said = []
    for number, loss in enumerate(results):
        decision = scheduler.report(f"t{number}", 1, loss)
        said.append((decision.action.value, decision.reason))
        while (resumed := scheduler.resume_next()) is not None:
            said.append((f"{resumed.trial} {resumed.action.value}", resumed.reason))
        said += [(f"{stop.trial} {stop.action.value}", stop.reason) for stop in scheduler.dismiss()]
    return said


def test_the_first_four_wait_for_each_other_and_the_fifth_is_judged_at_once() -> None:
    waits = ("pause", "waits for others to be compared with at epoch 1")
    assert _story("stopping", 4, [0.4, 0.1, 0.3, 0.2, 0.3]) == [
        waits,
        waits,
        waits,
        ("continue", "rank 2 of 4, best 2 go on"),
        ("t1 continue", "rank 1 of 4, best 2 go on"),
        ("t2 stop", "rank 3 of 4, best 2 go on"),
        ("t0 stop", "rank 4 of 4, best 2 go on"),
        ("stop", "loss 0.3 is worse than 0.25, the limit of the best half of 4 results before it"),
    ]


def test_nobody_is_promoted_before_so_many_results_are_there() -> None:
    actions = [action for action, _ in _story("promotion", 4, [0.1, 0.4, 0.3, 0.2])]
    assert actions == ["pause", "pause", "pause", "continue", "t0 continue"]


@pytest.mark.parametrize("variant", ["stopping", "promotion"])
def test_where_all_are_to_be_compared_as_many_go_on_as_eta_says(variant: str) -> None:
    for seed in range(20):
        rng = random.Random(seed)
        scheduler = build_scheduler({"variant": variant, "max_t": 8, "min_compared": 100})
        losses = {f"{i:02d}": rng.random() for i in range(26)}
        decisions = play(scheduler, [*losses], lambda trial, epoch, of=losses: of[trial] / epoch, rng)
        went_on = {d.trial for d in decisions if d.action is Action.CONTINUE and d.rung == 1}
        assert sum(d.action is Action.STOP for d in decisions) == 26
        assert went_on == {*sorted(losses, key=losses.get)[:13]}


def test_who_has_gone_is_not_waited_for_and_who_comes_later_is() -> None:
    scheduler = build_scheduler({"max_t": 4, "min_compared": 3})
    for trial in "abc":
        scheduler.add(trial)
    scheduler.close()
    assert scheduler.report("a", 1, 0.1).action is Action.PAUSE
    scheduler.remove("b")
    assert scheduler.resume_next() is None
    scheduler.add("d")  # a larger budget
    scheduler.remove("c")
    assert scheduler.resume_next() is None, "d may still come, and others after it"
    scheduler.close()
    assert scheduler.report("d", 1, 0.2).reason == "rank 2 of 2, best 1 go on"
    assert scheduler.resume_next().trial == "a"
