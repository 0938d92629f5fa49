from __future__ import annotations

from parsl_rasda.plugins import EARLY_RULES
from parsl_rasda.scheduling.early import EarlyRule, build_early
from parsl_rasda.testing import EarlyRuleContract


class TestCurve(EarlyRuleContract):
    def build(self) -> EarlyRule:
        return build_early("curve")


class TestCurveThatIsSure(EarlyRuleContract):
    def build(self) -> EarlyRule:
        return build_early({"kind": "curve", "quantile": 0.999, "min_epochs": 4})


class TestNone(EarlyRuleContract):
    def build(self) -> EarlyRule:
        assert build_early("none") is None, "nothing is asked"
        return EARLY_RULES.build("none")
