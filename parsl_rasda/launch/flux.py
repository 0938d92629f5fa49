"""``flux run`` of the Flux Framework, inside an instance of Flux, which may itself be a Slurm job."""

from __future__ import annotations

import re
from dataclasses import dataclass

from parsl_rasda.launch.base import (
    LaunchCommand,
    LaunchSettings,
    rank_environment,
    ranks_per_node,
    steady,
    step_name,
)
from parsl_rasda.plugins import Plugin
from parsl_rasda.types import Placement


@dataclass(frozen=True, slots=True)
class FluxLauncher:
    """Starts ranks as one Flux job, which asks for a core a rank and for no GPU.

    Flux would give a job GPUs of its own choice; which GPU a rank uses is our ledger's. It spreads the ranks
    evenly over the nodes, so uneven ones cannot be placed.

    Source: flux-run(1), flux-shell(1), flux-pkill(1); the constraints of Flux RFC 35.
    """

    name: str = "flux"

    def command(
        self, placement: Placement, program: tuple[str, ...], settings: LaunchSettings
    ) -> LaunchCommand:
        """Return the ``flux run`` command; ranks fill the nodes in the placement's order."""
        if ranks_per_node(placement) is None:
            steady(self.name, placement, evenly=True)
        job = step_name(settings.directory)
        hosts = ",".join(node.node for node in placement.nodes)
        options = ("-o", "cpu-affinity=off", "-o", "gpu-affinity=off", *settings.options)
        argv = (
            *("flux", "run", "--unbuffered", f"--nodes={len(placement.nodes)}"),
            *(f"--ntasks={placement.world_size}", f"--requires=hosts:{hosts}"),
            *((f"--job-name={job}",) if job else ()),
            *options,
        )
        one = ("flux", "run", "--nodes=1", "--ntasks=1", "--requires=hosts:{node}", *options)
        return LaunchCommand(
            (*argv, *program),
            rank_environment(settings),
            lasting=one if settings.is_contained else (),
            cancel=("flux", "pkill", f"name:^{re.escape(job)}$") if job else (),
        )


FLUX = Plugin(lambda _: FluxLauncher())
