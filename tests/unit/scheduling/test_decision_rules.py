"""Each rule against an independent statement of it in plain lists, on random streams."""

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

ETAS = (2, 3, 4)
MODES = ("min", "max")
EXAMPLES = 28 * settings.default.max_examples // 5  # 560 in CI; times 3 etas, 2 modes, 3 variants: 10,080
MAX_T = 40

ties = st.integers(-3, 3).map(float)
anything = st.one_of(ties, ties, st.floats(width=16), st.just(math.nan))
seeds = st.integers(0, 2**32)


def one_in_five(drawn: st.SearchStrategy, of_seed) -> st.SearchStrategy:
    """Draw one stream in five value by value, the others from a seed: in a half of the time."""
    return st.integers(0, 4).flatmap(lambda which: seeds.map(of_seed) if which else drawn)


def metric_from(rng: random.Random) -> float:
    kind = rng.random()
    return math.nan if kind < 0.2 else rng.gauss(0.0, 100.0) if kind < 0.4 else float(rng.randint(-3, 3))


def steps_from(seed: int) -> list[tuple[int, int, float]]:
    rng = random.Random(seed)
    return [(rng.randint(0, 11), rng.randint(1, 6), metric_from(rng)) for _ in range(rng.randint(0, 40))]


steps = one_in_five(
    st.lists(st.tuples(st.integers(0, 11), st.integers(1, 6), anything), max_size=40), steps_from
)
every_case = pytest.mark.parametrize(("eta", "mode"), [(eta, mode) for eta in ETAS for mode in MODES])


def cost_of(metric: float, mode: str) -> float:
    """The sign turned so that lower is better; what is not finite is worst."""
    return (metric if mode == "min" else -metric) if math.isfinite(metric) else math.inf


def milestones_of(eta: int) -> list[int]:
    return [eta**k for k in range(10) if eta**k < MAX_T] + [MAX_T]


class NaiveStopping:
    """Results of a rung in a list; the percentile by exact fractions."""

    def __init__(self, eta: int) -> None:
        self.eta, self.milestones = eta, milestones_of(eta)
        self.results = defaultdict(list)
        self.aim = defaultdict(lambda: self.milestones[0])

    def report(self, trial: int, epoch: int, cost: float) -> tuple[str, int]:
        passed = [m for m in self.milestones if self.aim[trial] <= m <= epoch]
        if not passed:
            return ("continue", self.aim[trial]) if cost < math.inf else ("stop", epoch)
        earlier = sorted(self.results[passed[-1]], reverse=True)  # the worst first, as percentiles count
        self.results[passed[-1]].append(cost)
        if cost == math.inf or passed[-1] == MAX_T or (earlier and cost > self.percentile(earlier)):
            return ("stop", epoch)
        self.aim[trial] = self.milestones[self.milestones.index(passed[-1]) + 1]
        return ("continue", self.aim[trial])

    def percentile(self, worst_first: list[float]) -> Fraction | float:
        position = Fraction(self.eta - 1, self.eta) * (len(worst_first) - 1)
        low, high = worst_first[math.floor(position)], worst_first[math.ceil(position)]
        if math.inf in (low, high) and low != high:
            return math.inf
        share = position - math.floor(position)
        return low if low == high else Fraction(low) * (1 - share) + Fraction(high) * share


@every_case
def test_stopping_decides_as_the_rule_says(eta: int, mode: str) -> None:
    @settings(max_examples=EXAMPLES, deadline=None)
    @given(steps)
    def check(stream) -> None:
        scheduler = build_scheduler(
            {"variant": "stopping", "reduction_factor": eta, "mode": mode, "max_t": MAX_T}
        )
        naive, epochs, ended = NaiveStopping(eta), defaultdict(int), set()
        for trial, more, metric in stream:
            epochs[trial] += more
            decision = scheduler.report(str(trial), epochs[trial], metric)
            if trial in ended:
                assert decision.action is Action.STOP
                continue
            expected = naive.report(trial, epochs[trial], cost_of(metric, mode))
            assert (decision.action, decision.until) == expected
            assert decision.completed == (epochs[trial] >= MAX_T and math.isfinite(metric))
            if decision.action is Action.STOP:
                ended.add(trial)

    check()


class NaivePromotion:
    """Results of a rung in a list of (cost, age, trial); everything sorted anew each time."""

    def __init__(self, eta: int) -> None:
        self.eta, self.milestones = eta, milestones_of(eta)
        self.results = defaultdict(list)
        self.aim, self.paused = {}, {}

    def best(self, milestone: int) -> list[int]:
        ranked = sorted(self.results[milestone])
        return [trial for _, _, trial in ranked[: len(ranked) // self.eta]]

    def report(self, trial: int, epoch: int, cost: float) -> tuple[str, int]:
        self.aim.setdefault(trial, (self.milestones[0], len(self.aim)))
        aim, age = self.aim[trial]
        passed = [m for m in self.milestones if aim <= m <= epoch]
        if passed and passed[-1] < MAX_T:
            self.results[passed[-1]].append((cost, age, trial))
        if cost == math.inf or (passed and passed[-1] == MAX_T):
            return ("stop", epoch)
        if not passed:
            return ("continue", aim)
        if trial in self.best(passed[-1]):
            return ("continue", self.promote(trial, passed[-1]))
        self.paused[trial] = passed[-1]
        return ("pause", epoch)

    def resume(self) -> tuple[str, int] | None:
        for milestone in reversed(self.milestones):
            for trial in self.best(milestone):
                if self.paused.get(trial) == milestone:
                    del self.paused[trial]
                    return (str(trial), self.promote(trial, milestone))
        return None

    def promote(self, trial: int, milestone: int) -> int:
        following = self.milestones[self.milestones.index(milestone) + 1]
        self.aim[trial] = (following, self.aim[trial][1])
        return following


@every_case
def test_promotion_decides_as_the_rule_says(eta: int, mode: str) -> None:
    @settings(max_examples=EXAMPLES, deadline=None)
    @given(steps, st.integers(0, 2**40 - 1))
    def check(stream, resumptions) -> None:
        scheduler = build_scheduler(
            {"variant": "promotion", "reduction_factor": eta, "mode": mode, "max_t": MAX_T}
        )
        naive, epochs, ended = NaivePromotion(eta), defaultdict(int), set()
        for number, (trial, more, metric) in enumerate(stream):
            if trial in ended or trial in naive.paused:
                before = Action.STOP if trial in ended else Action.PAUSE
                assert scheduler.report(str(trial), epochs[trial] + more, metric).action is before
            else:
                epochs[trial] += more
                decision = scheduler.report(str(trial), epochs[trial], metric)
                expected = naive.report(trial, epochs[trial], cost_of(metric, mode))
                assert (decision.action, decision.until) == expected
                if decision.action is Action.STOP:
                    ended.add(trial)
            if resumptions >> number & 1:
                resumed = scheduler.resume_next()
                assert (resumed and (resumed.trial, resumed.until)) == naive.resume()

    check()


def naive_halving(metrics: dict[int, list[float | None]], eta: int, mode: str) -> dict[int, int]:
    """Return the last milestone each trial reports at: halve whole rungs, one after the other."""
    last, alive = {}, sorted(metrics)
    for rung, milestone in enumerate(milestones_of(eta)):
        last |= dict.fromkeys(alive, milestone)
        costs = {t: math.inf if metrics[t][rung] is None else cost_of(metrics[t][rung], mode) for t in alive}
        ranked = sorted(alive, key=lambda t: (costs[t], t))
        alive = [t for t in ranked[: max(1, len(ranked) // eta)] if costs[t] < math.inf]
    return last


@every_case
def test_synchronous_decides_as_the_rule_says_whatever_the_order_of_arrival(eta: int, mode: str) -> None:
    rungs = len(milestones_of(eta))
    results = st.lists(st.one_of(anything, ties, st.none()), min_size=rungs, max_size=rungs)

    def table_from(seed: int) -> list[list[float | None]]:
        rng = random.Random(seed)
        values = (metric_from(rng) if rng.random() < 0.9 else None for _ in range(14 * rungs))
        return [[next(values) for _ in range(rungs)] for _ in range(rng.randint(1, 14))]

    @settings(max_examples=EXAMPLES, deadline=None)
    @given(one_in_five(st.lists(results, min_size=1, max_size=14), table_from), st.booleans(), seeds)
    def check(table, closes, seed) -> None:
        rng = random.Random(seed)
        block = {"variant": "synchronous", "reduction_factor": eta, "mode": mode, "max_t": MAX_T}
        scheduler = build_scheduler({**block, "num_samples": None if closes else len(table)})
        running = {str(i): scheduler.add(str(i)).until for i in range(len(table))}
        last, stopped, close_after = {}, [], rng.randint(0, len(table)) if closes else -1
        while running or close_after >= 0:
            if close_after == 0 or not running:
                scheduler.close()
                answers, close_after = [], -1
            else:
                close_after -= 1
                trial = rng.choice(sorted(running))
                epoch = last[int(trial)] = running.pop(trial)
                metric = table[int(trial)][scheduler.milestones.index(epoch)]
                answers = [
                    scheduler.remove(trial) if metric is None else scheduler.report(trial, epoch, metric)
                ]
            while (resumed := scheduler.resume_next()) is not None:
                answers.append(resumed)
            answers = [a for a in answers if a is not None] + list(scheduler.dismiss())
            running |= {a.trial: a.until for a in answers if a.action is Action.CONTINUE}
            stopped += [a.trial for a in answers if a.action is Action.STOP]
        assert last == naive_halving(dict(enumerate(table)), eta, mode)
        assert len(stopped) == len(set(stopped))
        failed = {str(i) for i, row in enumerate(table) if row[scheduler.milestones.index(last[i])] is None}
        assert set(stopped) == {str(i) for i in range(len(table))} - failed

    check()
