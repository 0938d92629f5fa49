"""The shipped contracts, as the author of the plug-ins runs them; tests/contract/test_foreign.py does."""

from __future__ import annotations

from pathlib import Path

from parsl_rasda.backends.registry import build_backend
from parsl_rasda.launch.registry import build_launcher
from parsl_rasda.orchestration.backend import BackendContext
from parsl_rasda.placement.growth import build_growth
from parsl_rasda.scheduling import build_scheduler
from parsl_rasda.scheduling.early import build_early
from parsl_rasda.search import build_searcher
from parsl_rasda.study import PluginSiteSpec
from parsl_rasda.testing import (
    BackendContract,
    EarlyRuleContract,
    GrowthPolicyContract,
    LauncherContract,
    SchedulerContract,
    SearcherContract,
)


class TestScheduler(SchedulerContract):
    def build(self, **settings):
        return build_scheduler({"kind": "tolerant", "tolerance": 0.2, **settings})


class TestSearcher(SearcherContract):
    def build(self, space, *, seed):
        return build_searcher({"kind": "lattice", "step": 0.38}, space, mode="min", seed=seed)


class TestGrowth(GrowthPolicyContract):
    def build(self):
        return build_growth({"kind": "late", "after": 2})


class TestEarlyRule(EarlyRuleContract):
    def build(self):
        return build_early({"kind": "steady", "steps": 3})


class TestLauncher(LauncherContract):
    def build(self):
        return build_launcher({"kind": "nice", "niceness": 5})


class TestBackend(BackendContract):
    def build(self, directory: Path):

        site = PluginSiteSpec(backend="emulated", decay=1.0, gpus_per_node=4)
        return build_backend(site, BackendContext(directory))
