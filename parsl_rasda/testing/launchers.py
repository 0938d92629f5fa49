"""The contract of a launcher, as a suite that a plug-in's tests inherit.

class TestMyLauncher(LauncherContract):
    def build(self) -> Launcher:
        return MyLauncher()
"""

from __future__ import annotations

from dataclasses import replace

from parsl_rasda.launch.base import LaunchCommand, Launcher, LaunchSettings
from parsl_rasda.types import NodeName, NodeSlots, PilotId, Placement, SiteName

_PROGRAM = ("python", "-m", "parsl_rasda.runtime", "a file with spaces.json")


class LauncherContract:
    """What holds for every launcher."""

    def build(self) -> Launcher:
        """Return a launcher; overridden by the plug-in's test."""
        raise NotImplementedError

    def command(self, *counts: int, settings: LaunchSettings | None = None) -> LaunchCommand:
        """Return the command for ``counts[i]`` slots on node ``n<i>``."""
        nodes = tuple(NodeSlots(NodeName(f"n{i}"), tuple(range(count))) for i, count in enumerate(counts))
        placement = Placement(SiteName("site"), PilotId("site-0"), nodes)
        return self.build().command(placement, _PROGRAM, settings or LaunchSettings())

    def test_it_has_a_name(self) -> None:
        assert self.build().name

    def test_the_program_ends_the_command_unquoted(self) -> None:
        for counts in [(1,), (2,), (4,), (4, 4, 4, 4)]:
            assert self.command(*counts).argv[-len(_PROGRAM) :] == _PROGRAM

    def test_the_same_placement_gives_the_same_command(self) -> None:
        assert self.command(4, 4) == self.command(4, 4)

    def test_options_come_right_before_the_program(self) -> None:
        argv = self.command(2, settings=LaunchSettings(options=("--first", "second"))).argv
        assert argv[-len(_PROGRAM) - 2 : -len(_PROGRAM)] == ("--first", "second")

    def test_ranks_get_the_sites_variables_and_a_fixed_number_of_threads(self) -> None:
        settings = LaunchSettings(threads_per_rank=5, environment={"NCCL_DEBUG": "WARN"})
        environment = self.command(2, settings=settings).environment
        assert environment["NCCL_DEBUG"] == "WARN"
        assert environment["OMP_NUM_THREADS"] == "5"

    def test_threads_do_not_depend_on_the_width(self) -> None:
        one, four = (self.command(n).environment["OMP_NUM_THREADS"] for n in (1, 4))
        assert one == four

    def test_no_command_carries_a_gpu_mask(self) -> None:
        settings = LaunchSettings(accelerator="cuda", gpus_per_node=4)
        for local in (False, True):
            command = self.command(2, settings=replace(settings, local=local))
            words = [*command.argv, *command.environment]
            assert not [word for word in words if "VISIBLE_DEVICES" in word or "AFFINITY_MASK" in word]
