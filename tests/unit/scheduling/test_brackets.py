"""Brackets: which trial goes where, when it is judged and by whom; the rules again in plain lists."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parsl_rasda.scheduling import VARIANTS, build_scheduler
from parsl_rasda.scheduling.agreement import RankAgreement
from parsl_rasda.scheduling.base import Action
from parsl_rasda.scheduling.brackets import BracketedScheduler, bracket_shares
from parsl_rasda.types import TrialId

MAX_T = 16
CHOICES = (2, 3, 4, "auto")
STREAMS = 420  # of each choice and variant: 12 x 420 x 2 etas = 10,080 in all


class Naive:
    """Who is in which bracket, and what the inner scheduler of a bracket says, which knows no other."""

    def __init__(self, variant: str, brackets: int | str, eta: int) -> None:
        self.milestones = [eta**k for k in range(9) if eta**k < MAX_T] + [MAX_T]
        self.auto = brackets == "auto"
        number = min(3, len(self.milestones) - 1) if self.auto else brackets
        block = {"variant": variant, "max_t": MAX_T, "reduction_factor": eta, "kind": "asha"}
        self.inner = [build_scheduler({**block, "grace_period": m}) for m in self.milestones[:number]]
        last = len(self.milestones) - 1
        self.shares = [math.ceil((last + 1) / (last - k + 1) * eta ** (last - k)) for k in range(number)]
        self.home: dict[str, int] = {}
        self.seen: dict[str, list[float]] = defaultdict(list)
        self.second: list[str] = []  # who has come to a second rung, in that order

    def bracket(self, trial: str) -> int:
        if trial not in self.home:
            counts = [list(self.home.values()).count(k) for k in range(len(self.inner))]
            by_share = [s / (n + 1) for s, n in zip(self.shares, counts, strict=True)]
            self.home[trial] = by_share.index(max(by_share)) if not self.auto else self.chosen(by_share)
        return self.home[trial]

    def chosen(self, by_share: list[float]) -> int:
        if len(self.home) < 4:
            return len(self.inner) - 1
        if len(self.second) < 4:
            return by_share.index(max(by_share))
        worth = [self.tau(k) * math.sqrt(s) for k, s in enumerate(self.shares)]
        return worth.index(max(worth))

    def tau(self, rung: int) -> float:
        signs = [1, 1, 1]
        for a, b in combinations([self.seen[t] for t in self.second[-32:]], 2):
            top = min(len(a), len(b)) - 1
            if rung < top:
                signs.append(_sign((a[rung] - b[rung]) * (a[top] - b[top])))
        return sum(signs) / len(signs)

    def report(self, trial: str, epoch: int, metric: float) -> tuple[str, int]:
        inner = self.inner[self.bracket(trial)]
        is_new = epoch in self.milestones and self.milestones.index(epoch) == len(self.seen[trial])
        if is_new and math.isfinite(metric) and inner.add(trial).action is Action.CONTINUE:
            self.seen[trial].append(metric)
            self.second += [trial] * (len(self.seen[trial]) == 2)
        answer = inner.report(trial, epoch, metric)
        return answer.action.value, answer.until


def _sign(x: float) -> int:
    return (x > 0) - (x < 0)


def one_stream(variant: str, brackets: int | str, eta: int, rng: random.Random) -> None:
    block = {"variant": variant, "brackets": brackets, "max_t": MAX_T, "reduction_factor": eta}
    ours, naive = build_scheduler({"kind": "asha", **block}), Naive(variant, brackets, eta)
    epochs: dict[str, int] = {}
    for _ in range(rng.randrange(60)):
        trial = str(rng.randrange(14))
        epochs[trial] = epochs.get(trial, 0) + rng.choice((1, 1, 1, 2, 5))
        metric = rng.choice((math.nan, *[float(rng.randrange(8))] * 12))
        found = ours.report(trial, epochs[trial], metric)
        action, until = naive.report(trial, epochs[trial], metric)
        assert (ours.bracket_of(trial), found.action.value) == (naive.home[trial], action)
        if action != "continue" or found.rung > naive.home[trial]:
            assert found.until == until
        else:  # it passes the rungs below, one after another
            assert epochs[trial] < found.until <= until or found.until == until
            assert found.until in naive.milestones
        assert found.rung == len([m for m in naive.milestones if m < found.until]) or action != "continue"
        for resumed in iter(ours.resume_next, None):
            inner = next(i for i in naive.inner if (other := i.resume_next()) is not None)
            assert inner is naive.inner[naive.home[resumed.trial]]
            assert (resumed.trial, resumed.until) == (other.trial, other.until)
    ours.close()
    for inner in naive.inner:
        inner.close()
    assert [d.trial for d in ours.dismiss()] == [d.trial for i in naive.inner for d in i.dismiss()]


@pytest.mark.parametrize("brackets", CHOICES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_ten_thousand_streams_are_decided_as_the_rule_says(variant: str, brackets: int | str) -> None:
    for eta in (2, 3):
        for number in range(STREAMS):
            one_stream(variant, brackets, eta, random.Random(number))


@given(st.sampled_from(VARIANTS), st.sampled_from(CHOICES), st.integers(2, 3), st.randoms())
def test_any_stream_is_decided_as_the_rule_says(variant, brackets, eta, rng) -> None:
    one_stream(variant, brackets, eta, rng)


def test_a_trial_passes_the_rungs_below_its_bracket_unjudged_on_the_replicas_of_the_ladder() -> None:
    scheduler = build_scheduler({"max_t": 8, "brackets": 3, "metric": "loss"})
    decisions = [scheduler.add(t) for t in "abcd"]
    assert [scheduler.bracket_of(t) for t in "abcd"] == [0, 1, 0, 2]
    assert {(d.until, d.replicas, d.rung) for d in decisions} == {(1, 1, 0)}
    scheduler.report("a", 1, 0.1)
    passed = [scheduler.report("d", epoch, 0.9) for epoch in (1, 2)]
    assert [(d.until, d.replicas, d.rung) for d in passed] == [(2, 2, 1), (4, 4, 2)]
    assert passed[0].reason == "next judged at epoch 4"
    assert scheduler.report("c", 1, 0.9).reason == "loss 0.9 is worse than 0.1, the only result before it"
    judged = scheduler.report("d", 4, 0.9)
    assert (judged.until, judged.replicas, judged.reason) == (8, 8, "loss 0.9 is the first at epoch 4")


def test_epochs_that_are_trained_again_change_nothing() -> None:
    scheduler = build_scheduler({"max_t": 8, "brackets": 3})
    for trial in "abcd":
        scheduler.add(trial)
    before = [scheduler.report("d", epoch, 0.9) for epoch in (1, 2)][-1]
    assert [scheduler.report("d", epoch, 0.9) for epoch in (1, 2)] == [before, before]


def test_brackets_share_the_epochs_as_hyperband_does() -> None:
    assert bracket_shares(5, 3) == [81, 34, 15, 8, 5]  # table 1 of the paper
    scheduler = build_scheduler({"max_t": 81, "reduction_factor": 3, "brackets": 5})
    for number in range(143):
        scheduler.add(str(number))
    counts = [0] * 5
    for number in range(143):
        counts[scheduler.bracket_of(str(number))] += 1
    assert counts == [81, 34, 15, 8, 5]


@pytest.mark.parametrize(("is_truthful", "bracket"), [(True, 0), (False, 2)])
def test_auto_goes_to_the_first_rung_that_tells_the_truth(is_truthful: bool, bracket: int) -> None:
    scheduler = build_scheduler({"max_t": 16, "brackets": "auto"})
    for number in range(30):
        trial, quality = f"{number:02d}", random.Random(number).random()
        decision = scheduler.add(trial)
        while decision.action is Action.CONTINUE:
            lies = decision.until < 4 and not is_truthful
            decision = scheduler.report(trial, decision.until, -quality if lies else quality)
    assert [scheduler.bracket_of(f"{n:02d}") for n in (*range(4), *range(20, 30))] == [2] * 4 + [bracket] * 10
    assert scheduler.taus[bracket] == 1
    assert (scheduler.taus[0] < 0) == (not is_truthful)


def test_auto_forgets_what_a_trial_reported_before_it_was_started_afresh() -> None:
    scheduler = build_scheduler({"max_t": 16, "brackets": "auto"})
    for number, trial in enumerate("abcde"):
        scheduler.add(trial)
        assert (scheduler.taus is None) == (number < 4)
        for epoch in (1, 2):
            scheduler.report(trial, epoch, float(-9 if (trial, epoch) == ("e", 2) else number))
    assert scheduler.taus[0] < 1
    scheduler.remove("e")
    assert scheduler.readmit("e").until == 1
    assert scheduler.taus[0] == 1


@pytest.mark.parametrize(
    "settings", [{"brackets": 1}, {"brackets": "auto", "max_t": 1}, {"brackets": 1, "max_t": 1}]
)
def test_one_bracket_is_the_ladder_as_it_ever_was(settings) -> None:
    assert not isinstance(build_scheduler({"max_t": 8, **settings}), BracketedScheduler)


def test_auto_compares_as_many_trials_whatever_the_size_of_a_search() -> None:
    agreement = RankAgreement()
    for number in range(500):
        for rung in (0, 1, 2):
            agreement.note(TrialId(f"{number:03d}"), rung, random.Random(number).random())
    assert agreement.trials == 32
    assert agreement.taus(2) == [1.0, 1.0]


def test_a_longer_ladder_is_climbed_in_the_order_of_completion_each_time() -> None:
    scheduler = build_scheduler({"max_t": 4, "brackets": 2})
    for trial in "ab":
        scheduler.add(trial)
        for epoch in (1, 2, 4):
            scheduler.report(trial, epoch, 0.5)
    assert [(d.trial, d.until, d.rung) for d in scheduler.extend((1, 2, 4, 8), None)] == [
        ("a", 8, 3),
        ("b", 8, 3),
    ]
    assert all(scheduler.report(trial, 8, 0.5).completed for trial in "ba")
    assert scheduler.extend((1, 2, 4, 8), 2) == ()
    assert [d.trial for d in scheduler.extend((1, 2, 4, 8, 16), 2)] == ["b", "a"]


def test_a_trial_that_starts_afresh_passes_its_rungs_once_more() -> None:
    scheduler = build_scheduler({"max_t": 8, "brackets": 2})
    for trial in "ab":
        scheduler.add(trial)
    assert scheduler.report("b", 1, 0.5).until == 2
    scheduler.remove("b")
    assert (scheduler.readmit("b").until, scheduler.report("b", 1, 0.5).until) == (1, 2)
    assert scheduler.bracket_of("b") == 1
