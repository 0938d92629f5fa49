"""What plug-in authors test with: a contract suite for each kind of plug-in, and stateful fakes.

A suite is inherited by a test class that says how to build the plug-in; pytest finds the rest::

    from parsl_rasda.testing import LauncherContract

    class TestMine(LauncherContract):
        def build(self):
            return build_launcher({"kind": "mine", "queue": "debug"})
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from parsl_rasda.testing.backends import BackendContract, FakeBackend
    from parsl_rasda.testing.early import EarlyRuleContract
    from parsl_rasda.testing.growth import GrowthPolicyContract
    from parsl_rasda.testing.launchers import LauncherContract
    from parsl_rasda.testing.schedulers import SchedulerContract
    from parsl_rasda.testing.searchers import SearcherContract

__all__ = [
    "BackendContract",
    "EarlyRuleContract",
    "FakeBackend",
    "GrowthPolicyContract",
    "LauncherContract",
    "SchedulerContract",
    "SearcherContract",
]

_MODULES = {
    "BackendContract": "backends",
    "EarlyRuleContract": "early",
    "FakeBackend": "backends",
    "GrowthPolicyContract": "growth",
    "LauncherContract": "launchers",
    "SchedulerContract": "schedulers",
    "SearcherContract": "searchers",
}


def __getattr__(name: str) -> object:
    """Import on first use: each suite brings the layers that it tests."""
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
