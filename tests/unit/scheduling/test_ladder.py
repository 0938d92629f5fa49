"""PASHA against an independent statement of it, which looks at everything anew each time."""

from __future__ import annotations

import itertools
import math
import random
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parsl_rasda.scheduling import build_scheduler
from parsl_rasda.scheduling.base import Action
from tests.unit.scheduling.test_min_compared import NaiveHolding

STREAMS = 5_000  # of each variant


class NaiveLadder:
    """The rule of Bohdal et al. 2023: groups of trials that are as good as each other, and who left his."""

    def __init__(self, milestones: list[int], curves: dict[int, list[float]]) -> None:
        self.milestones, self.curves, self.epsilon, self.top = milestones, curves, 0.0, 1
        self.here: list[int] = []

    def at(self, trial: int, epoch: int) -> float:
        return self.curves[trial][epoch - 1]

    def come(self, trial: int) -> None:
        self.here.append(trial)
        low, high = self.milestones[self.top - 1], self.milestones[self.top]
        apart = []
        for a, b in itertools.combinations(self.here, 2):
            signs = [math.copysign(1, d) for e in range(1, high + 1) if (d := self.at(a, e) - self.at(b, e))]
            d = self.at(a, high) - self.at(b, high)
            left = any(sign != signs[-1] and signs[-1] in signs[:n] for n, sign in enumerate(signs))
            if d and left:
                apart.append(abs(d))
        if apart:
            self.epsilon = sorted(apart)[math.ceil(0.9 * len(apart)) - 1]
        before = sorted(self.here, key=lambda t: self.at(t, low))
        now = sorted(self.here, key=lambda t: (self.at(t, high), t))
        for place, trial_here in enumerate(now):
            middle = self.at(before[place], low)
            group = {t for t in self.here if abs(self.at(t, low) - middle) <= self.epsilon}
            if trial_here not in group:
                self.top, self.here = self.top + 1, []
                return


class NaiveStoppingLadder(NaiveHolding):
    def __init__(self, eta: int, trials: int, curves: dict[int, list[float]], max_t: int) -> None:
        super().__init__(eta, 1, trials)
        self.milestones = [m for m in (eta**k for k in range(9)) if m < max_t] + [max_t]
        self.ladder = NaiveLadder(self.milestones, curves)

    @property
    def holds(self) -> int:
        return self.ladder.top if self.ladder.top < len(self.milestones) - 1 else -1

    def report(self, trial: int, cost: float | None) -> dict[int, str]:
        if self.aim[trial] == self.holds and cost not in (None, math.inf):
            rung = self.aim.pop(trial)
            self.results[rung].append((cost, trial))
            self.waiting[rung].append((cost, trial))
            self.ladder.come(trial)
            return self.open()
        return super().report(trial, cost)

    def open(self) -> dict[int, str]:
        top, done = self.holds, {}
        if top > 0:
            waiting, self.waiting[top] = self.waiting[top], []
            decided = super().open()
            if any(aim <= top for aim in self.aim.values()) or any(self.waiting.values()):
                self.waiting[top] = waiting
            else:
                done = {trial: "done" for _, trial in waiting}
            return decided | done
        return super().open()


def _curves(rng: random.Random, trials: int, max_t: int) -> dict[int, list[float]]:
    """Curves that mostly keep their order, and now and then do not."""
    noise = rng.choice((0, 1, 3))
    quality = {t: rng.randint(0, 8) for t in range(trials)}
    return {t: [float(quality[t] + rng.randint(0, noise)) for _ in range(max_t)] for t in quality}


def _check_stopping(eta: int, trials: int, rng: random.Random) -> int:
    max_t = eta**3 + rng.randint(0, 4)
    curves = _curves(rng, trials, max_t)
    scheduler = build_scheduler({"max_t": {"auto": max_t}, "reduction_factor": eta})
    naive = NaiveStoppingLadder(eta, trials, curves, max_t)
    training = {t: scheduler.add(str(t)).until for t in range(trials)}
    epochs = dict.fromkeys(training, 0)
    scheduler.close()
    while training:
        trial = rng.choice(sorted(training))
        draw = rng.random()
        epochs[trial] += 1
        gone, diverged = draw < 0.01, draw > 0.99
        if epochs[trial] < training[trial] and not gone and not diverged:
            between = scheduler.report(str(trial), epochs[trial], curves[trial][epochs[trial] - 1])
            assert (between.action, between.until) == (Action.CONTINUE, training[trial])
            continue
        until = training.pop(trial)
        if gone or (diverged and epochs[trial] < until):
            scheduler.remove(str(trial))
            expected, found = naive.report(trial, None), []
            del expected[trial]
        else:
            cost = math.inf if diverged else curves[trial][until - 1]
            found = [scheduler.report(str(trial), until, math.nan if diverged else cost)]
            expected = naive.report(trial, cost)
        while (resumed := scheduler.resume_next()) is not None:
            found.append(resumed)
        found += scheduler.dismiss()
        words = {}
        for decision in found:
            if decision.action is Action.CONTINUE:
                words[int(decision.trial)], training[int(decision.trial)] = "go", decision.until
            elif decision.action is Action.STOP:
                words[int(decision.trial)] = "done" if decision.completed else "stop"
        assert words == expected
    assert not any(naive.waiting.values()), "somebody waits for ever"
    return naive.ladder.top


def test_the_ladder_of_the_stopping_rule_grows_as_pasha_says() -> None:
    tops = defaultdict(int)
    for seed in range(STREAMS):
        rng = random.Random(seed)
        tops[_check_stopping(rng.choice((2, 3)), rng.randint(1, 16), rng)] += 1
    assert min(tops[1], tops[2], tops[3]) > STREAMS // 20, f"each is tried: {tops}"


def _check_promotion(eta: int, trials: int, rng: random.Random) -> None:
    max_t = eta**3
    curves = _curves(rng, trials, max_t)
    scheduler = build_scheduler(
        {"variant": "promotion", "max_t": {"auto": max_t}, "reduction_factor": eta, "mode": "max"}
    )
    ladder = NaiveLadder(list(scheduler.milestones), curves)
    results, promoted = defaultdict(list), defaultdict(set)

    def promotable(rung: int) -> list[int]:
        ranked = sorted(results[rung])
        is_held = rung == ladder.top < 3
        return [] if is_held else [t for _, t in ranked[: len(ranked) // eta] if t not in promoted[rung]]

    rung_of = {t: (scheduler.add(str(t)).rung, 0)[1] for t in range(trials)}
    training, done = set(rung_of), set()
    scheduler.close()
    while training:
        trial = rng.choice(sorted(training))
        training.remove(trial)
        rung = rung_of[trial]
        first = 1 if rung == 0 else scheduler.milestones[rung - 1] + 1
        for epoch in range(first, scheduler.milestones[rung] + 1):
            decision = scheduler.report(str(trial), epoch, -curves[trial][epoch - 1])
        if rung == 3:
            assert decision.completed
            done.add(trial)
        else:
            results[rung].append((curves[trial][scheduler.milestones[rung] - 1], trial))
            if rung == ladder.top < 3:
                ladder.come(trial)
            assert (decision.action is Action.CONTINUE) == (trial in promotable(rung))
            if decision.action is Action.CONTINUE:
                promoted[rung].add(trial)
                rung_of[trial] = rung + 1
                training.add(trial)
        while (resumed := scheduler.resume_next()) is not None:
            rung, one = next((r, promotable(r)[0]) for r in (2, 1, 0) if promotable(r))
            assert (int(resumed.trial), resumed.rung) == (one, rung + 1)
            promoted[rung].add(one)
            rung_of[one] = rung + 1
            training.add(one)
        assert not any(promotable(r) for r in range(3))
        done |= {int(stop.trial) for stop in scheduler.dismiss() if stop.completed}
    highest = {t for t in rung_of if rung_of[t] == ladder.top}
    assert done == highest, "who is at the top when nobody comes any more is done, and nobody else"


def test_the_ladder_of_the_promotion_rule_grows_as_pasha_says() -> None:
    for seed in range(STREAMS):
        rng = random.Random(seed)
        _check_promotion(rng.choice((2, 3)), rng.randint(1, 16), rng)


@pytest.mark.parametrize("check", [_check_stopping, _check_promotion])
def test_the_same_holds_for_whatever_hypothesis_finds(check) -> None:
    @settings(max_examples=100, deadline=None)
    @given(st.sampled_from((2, 3)), st.integers(1, 12), st.randoms(use_true_random=False))
    def with_these(eta, trials, rng) -> None:
        check(eta, trials, rng)

    with_these()


def _report_all(scheduler, curves: dict[str, list[float]]) -> dict[str, list[str]]:
    """Train all trials side by side to where they stop; return what was said of each."""
    said = defaultdict(list)
    running = {t: scheduler.add(t).until for t in curves}
    epochs = dict.fromkeys(curves, 0)
    scheduler.close()
    while running:
        for trial in tuple(running):
            epochs[trial] += 1
            answers = [scheduler.report(trial, epochs[trial], curves[trial][epochs[trial] - 1])]
            del running[trial]
            while (resumed := scheduler.resume_next()) is not None:
                answers.append(resumed)
            answers += scheduler.dismiss()
            for answer in answers:
                if answer.action is Action.CONTINUE:
                    running[answer.trial] = answer.until
                if "next judged" not in answer.reason:
                    said[answer.trial].append(f"{answer.action}: {answer.reason}")
    return said


BLOCK = {"max_t": {"auto": 16}, "metric": "loss", "min_compared": 4}


def test_where_the_ranking_stands_nobody_trains_on() -> None:
    scheduler = build_scheduler(BLOCK)
    said = _report_all(scheduler, {f"t{i}": [i + 1 / e for e in range(1, 17)] for i in range(8)})
    ends = sorted(lines[-1] for lines in said.values())
    assert ends[-1].startswith("stop: the ranking at epoch 2 is that at epoch 1: max_t 2 is enough")
    assert sum("is enough" in line for line in ends) == 2, "the best two of the first four"
    assert scheduler.milestones == (1, 2, 4, 8, 16)


def test_where_it_changes_they_do() -> None:
    curves = {f"t{i}": [float(i), *([float(-i)] * 15)] for i in range(8)}
    said = _report_all(build_scheduler(BLOCK), curves)
    assert any("max_t 4 is enough" in lines[-1] for lines in said.values())


def test_a_higher_cap_lets_those_go_on_who_had_come_to_the_last_rung() -> None:
    scheduler = build_scheduler({"max_t": {"auto": 4}, "metric": "loss"})
    curves = {"a": [2, 3, 1, 1], "b": [1, 4, 0, 0]}
    said = _report_all(scheduler, {t: [float(x) for x in c] * 4 for t, c in curves.items()})
    completed = [t for t, lines in said.items() if lines[-1] == "stop: reached max_t 4"]
    assert completed
    again = scheduler.extend((1, 2, 4, 8), None)
    assert [d.trial for d in again] == completed
    assert {d.action for d in again} <= {Action.PAUSE, Action.CONTINUE, Action.STOP}
    assert not any(d.completed for d in again) or all(d.until == 4 for d in again)
