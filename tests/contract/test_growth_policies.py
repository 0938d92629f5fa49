from __future__ import annotations

from parsl_rasda.placement.cluster_state import GrowthPolicy
from parsl_rasda.placement.growth import build_growth
from parsl_rasda.testing.growth import GrowthPolicyContract


class TestElastic(GrowthPolicyContract):
    def build(self) -> GrowthPolicy:
        return build_growth("elastic")


class TestStrict(GrowthPolicyContract):
    def build(self) -> GrowthPolicy:
        return build_growth("strict")


class TestNone(GrowthPolicyContract):
    def build(self) -> GrowthPolicy:
        return build_growth("none")
