"""``mpiexec`` of Cray's PALS, on machines with PBS such as Aurora and Polaris."""

from __future__ import annotations

from dataclasses import dataclass

from parsl_rasda.launch.base import (
    LaunchCommand,
    LaunchSettings,
    MpiexecOptions,
    rank_environment,
    ranks_per_node,
    steady,
)
from parsl_rasda.plugins import Plugin
from parsl_rasda.types import Placement


@dataclass(frozen=True, slots=True)
class PalsLauncher:
    """Starts ranks with PALS, which fills each host with ``--ppn`` ranks before it goes on to the next.

    So it can place uneven ranks only where the last node has fewer than all others.

    Source: mpiexec(1) of the HPE Cray Parallel Application Launch Service.
    """

    name: str = "pals"
    program: str = "mpiexec"

    def command(
        self, placement: Placement, program: tuple[str, ...], settings: LaunchSettings
    ) -> LaunchCommand:
        """Return the ``mpiexec`` command; ranks fill the nodes in the placement's order."""
        per_node = ranks_per_node(placement) or steady(self.name, placement)
        hosts = ",".join(node.node for node in placement.nodes)
        flags = ("--cpu-bind", "none", *settings.options)  # trials share nodes: each would bind to core 0
        argv = (
            self.program,
            "--hosts",
            hosts,
            "--ppn",
            str(per_node),
            "-n",
            str(placement.world_size),
            *flags,
        )
        one = (self.program, "--hosts", "{node}", "--ppn", "1", "-n", "1", *flags)
        lasting = one if settings.is_contained else ()
        return LaunchCommand((*argv, *program), rank_environment(settings), lasting=lasting)


PALS = Plugin(lambda options: PalsLauncher(program=options.command), MpiexecOptions)
