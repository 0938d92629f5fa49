from __future__ import annotations

from parsl_rasda.scheduling import build_scheduler
from parsl_rasda.scheduling.base import Scheduler
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


class TestPromotion(SchedulerContract):
    def build(self, **settings: object) -> Scheduler:
        return build_scheduler({"variant": "promotion", **settings})


class TestSynchronous(SchedulerContract):
    def build(self, **settings: object) -> Scheduler:
        return build_scheduler({"variant": "synchronous", **settings})


class TestAshaWithFixedReplicas(SchedulerContract):
    def build(self, **settings: object) -> Scheduler:
        return build_scheduler({"kind": "asha", "num_workers": 4, **settings})
