from __future__ import annotations

from parsl_rasda.launch.base import Launcher
from parsl_rasda.launch.registry import build_launcher
from parsl_rasda.testing.launchers import LauncherContract


class TestHydra(LauncherContract):
    def build(self) -> Launcher:
        return build_launcher("hydra")


class TestOpenMpi(LauncherContract):
    def build(self) -> Launcher:
        return build_launcher("openmpi")


class TestSrun(LauncherContract):
    def build(self) -> Launcher:
        return build_launcher("srun")


class TestProcess(LauncherContract):
    def build(self) -> Launcher:
        return build_launcher("process")


class TestPalsLauncher(LauncherContract):
    def build(self) -> Launcher:
        return build_launcher("pals")


class TestFluxLauncher(LauncherContract):
    def build(self) -> Launcher:
        return build_launcher("flux")


class TestIbrunLauncher(LauncherContract):
    def build(self) -> Launcher:
        return build_launcher("ibrun")
