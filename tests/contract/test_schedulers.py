from __future__ import annotations

from parsl_rasda.scheduling import build_scheduler
from parsl_rasda.scheduling.base import Scheduler
from parsl_rasda.testing.schedulers import SchedulerContract


class TestStopping(SchedulerContract):
    def build(self, **settings: object) -> Scheduler:
        return build_scheduler({"variant": "stopping", **settings})


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
