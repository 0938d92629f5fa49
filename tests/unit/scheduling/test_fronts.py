"""Several metrics: the order of trials, and each rule, against an independent statement on random streams."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parsl_rasda.scheduling import build_scheduler
from parsl_rasda.scheduling.base import Action, Decision, Multiobjective
from parsl_rasda.scheduling.objectives import Limit, Objectives, Values, places
from parsl_rasda.testing.schedulers import play
from parsl_rasda.types import Mode, TrialId

STREAMS = 3400  # times 3 variants: more than 10,000
small = st.integers(-2, 2).map(float)


def beats(a: Sequence[float], b: Sequence[float]) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True)) and tuple(a) != tuple(b)


def naive_order(found: Sequence[Values]) -> list[tuple[float, ...]]:
    """Peel fronts one by one; the crowding distance by definition."""
    left = {i for i, v in enumerate(found) if v.violation == 0}
    result: list[tuple[float, ...]] = [(math.inf, v.violation) for v in found]
    number = 0
    while left:
        front = sorted(i for i in left if not any(beats(found[j].costs, found[i].costs) for j in left))
        room = dict.fromkeys(front, 0.0)
        for m in range(len(found[0].costs)):
            row = sorted(front, key=lambda i, m=m: found[i].costs[m])
            span = found[row[-1]].costs[m] - found[row[0]].costs[m]
            for k, i in enumerate(row if span else ()):
                if k in (0, len(row) - 1):
                    room[i] = math.inf
                else:
                    room[i] += (found[row[k + 1]].costs[m] - found[row[k - 1]].costs[m]) / span
        for i in front:
            result[i] = (number, -room[i])
        left, number = left - set(front), number + 1
    return result


@given(st.integers(1, 4).flatmap(lambda m: st.lists(st.tuples(st.tuples(*[small] * m), st.tuples(small)))))
def test_places_are_those_of_fronts_peeled_one_by_one(
    rows: list[tuple[tuple[float, ...], tuple[float]]],
) -> None:
    found = [Values(costs, violations) for costs, violations in rows]
    expected, got = naive_order(found), places(found)
    for i in range(len(found)):
        for j in range(len(found)):
            assert (got[i] < got[j]) == (expected[i] < expected[j])


class Naive:
    """The three rules, on one rung, in plain lists."""

    def __init__(self, variant: str, eta: int) -> None:
        self.variant, self.eta, self.seen = variant, eta, list[tuple[int, Values | None]]()

    def ranked(self) -> list[int]:
        good = sorted((t, v) for t, v in self.seen if v is not None)
        order = naive_order([v for _, v in good])
        return [t for _, t in sorted((o, t) for o, (t, _) in zip(order, good, strict=True))]

    def goes_on(self, trial: int, values: Values | None) -> bool:
        before = len(self.seen)
        self.seen.append((trial, values))
        if values is None:
            return False
        if self.variant == "promotion":
            return trial in self.ranked()[: len(self.seen) // self.eta]
        good = [v for _, v in self.seen if v is not None]
        order = naive_order(good)
        return self.eta * sum(o < order[-1] for o in order) <= max(0, before - 1)


@pytest.mark.parametrize("variant", ["stopping", "promotion", "synchronous"])
def test_each_rule_decides_as_stated_on_random_streams(variant: str) -> None:
    rng = random.Random(18)
    limits = (Limit("c", 1.0, Mode.MIN), Limit("a", -1.5, Mode.MAX))
    objectives = Objectives((("a", Mode.MIN), ("b", Mode.MAX)), limits)
    for _ in range(STREAMS):
        eta, trials = rng.choice((2, 3, 4)), rng.randrange(1, 11)
        block = {"max_t": 2 * eta, "grace_period": 2, "reduction_factor": eta, "variant": variant}
        scheduler = build_scheduler({**block, "num_samples": trials}, objectives)
        assert isinstance(scheduler, Multiobjective)
        naive, went, said = Naive(variant, eta), set(), set()
        for trial in range(trials):
            scheduler.add(TrialId(str(trial)))
        for trial in rng.sample(range(trials), trials):
            metrics = {name: float(rng.randrange(-2, 3)) for name in "abc"}
            if rng.random() < 0.1:
                metrics[rng.choice("abc")] = math.nan
            values = objectives.values(metrics)
            if naive.goes_on(trial, values):
                went.add(trial)
            answers = [scheduler.report_all(TrialId(str(trial)), 2, metrics)]
            while (more := scheduler.resume_next()) is not None:
                answers.append(more)
            said |= {int(a.trial) for a in answers if a.action is Action.CONTINUE}
            if variant == "promotion":
                went |= set(naive.ranked()[: len(naive.seen) // eta])
            if variant != "synchronous":
                assert said == went
        if variant == "synchronous":
            assert said == set(naive.ranked()[: max(1, trials // eta)])


ONE = Objectives((("x", Mode.MIN),))


class ByMapping:
    """A scheduler of several metrics, told of one."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler

    def report(self, trial: TrialId, epoch: int, metric: float) -> Decision:
        found: Decision = self.scheduler.report_all(trial, epoch, {"x": metric})
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self.scheduler, name)


@pytest.mark.parametrize("variant", ["promotion", "synchronous"])
@pytest.mark.parametrize("seed", range(20))
def test_fronts_of_one_metric_decide_as_the_metric_does(variant: str, seed: int) -> None:
    block = {"max_t": 9, "reduction_factor": 3, "variant": variant, "num_samples": 10}
    rng = random.Random(seed)
    loss = {TrialId(str(i)): rng.choice((rng.random(), math.nan, 0.5)) for i in range(10)}
    played = []
    for scheduler in (build_scheduler(block), ByMapping(build_scheduler(block, ONE))):
        decisions = play(scheduler, list(loss), lambda t, _: loss[t], random.Random(seed))
        played.append([decision._replace(reason="") for decision in decisions])
    assert played[0] == played[1]
