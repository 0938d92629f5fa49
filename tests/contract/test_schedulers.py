from __future__ import annotations

from typing import ClassVar

from parsl_rasda.scheduling import build_scheduler
from parsl_rasda.scheduling.base import Action, Extensible, Scheduler
from parsl_rasda.testing.schedulers import SchedulerContract


class TestStopping(SchedulerContract):
    def build(self, **settings: object) -> Scheduler:
        return build_scheduler({"variant": "stopping", **settings})


class TestStoppingThatHoldsFirstComers(SchedulerContract):
    def build(self, **settings: object) -> Scheduler:
        return build_scheduler({"variant": "stopping", "min_compared": 5, **settings})


class TestPromotionThatHoldsFirstComers(SchedulerContract):
    def build(self, **settings: object) -> Scheduler:
        return build_scheduler({"variant": "promotion", "min_compared": 5, **settings})


class _LadderThatGrows(SchedulerContract):
    """Trials are completed at the top rung in use, which may be below `max_t`, and stay so."""

    variant: ClassVar[str]

    def build(self, **settings: object) -> Scheduler:
        return build_scheduler({"variant": self.variant, **settings, "max_t": {"auto": settings["max_t"]}})

    def test_only_trials_that_reached_max_t_are_completed(self) -> None:
        for seed in range(20):
            _, decisions = self._played(seed)
            ends = {d.until for d in decisions if d.completed}
            assert len(ends) <= 1
            stopped = [d for d in decisions if d.action is Action.STOP and not d.completed]
            assert all(d.until < min(ends) or "finite" in d.reason for d in stopped if ends)

    def test_a_longer_ladder_is_climbed_by_those_who_had_completed_the_shorter_one(self) -> None:
        for seed in range(20):
            scheduler, decisions = self._played(seed)
            assert isinstance(scheduler, Extensible)
            at_the_cap = [d.trial for d in decisions if d.completed and d.until == 9]
            again = scheduler.extend((*scheduler.milestones, 20, 40, 80), None)
            assert [d.trial for d in again] == at_the_cap


class TestStoppingOnALadderThatGrows(_LadderThatGrows):
    variant = "stopping"


class TestPromotionOnALadderThatGrows(_LadderThatGrows):
    variant = "promotion"


class TestPromotion(SchedulerContract):
    def build(self, **settings: object) -> Scheduler:
        return build_scheduler({"variant": "promotion", **settings})


class TestSynchronous(SchedulerContract):
    def build(self, **settings: object) -> Scheduler:
        return build_scheduler({"variant": "synchronous", **settings})


class TestAshaWithFixedReplicas(SchedulerContract):
    def build(self, **settings: object) -> Scheduler:
        return build_scheduler({"kind": "asha", "num_workers": 4, **settings})


class TestBracketsStopping(SchedulerContract):
    def build(self, **settings: object) -> Scheduler:
        return _bracketed("stopping", 2, settings)


class TestBracketsPromotion(SchedulerContract):
    def build(self, **settings: object) -> Scheduler:
        return _bracketed("promotion", 2, settings)


class TestBracketsSynchronous(SchedulerContract):
    def build(self, **settings: object) -> Scheduler:
        return _bracketed("synchronous", 2, settings)


class TestBracketsAuto(SchedulerContract):
    def build(self, **settings: object) -> Scheduler:
        return _bracketed("promotion", "auto", settings)


def _bracketed(variant: str, brackets: int | str, settings: dict[str, object]) -> Scheduler:
    return build_scheduler({"variant": variant, "brackets": brackets, **settings})
