"""``ibrun`` of TACC, which starts ranks with whatever MPI library is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from parsl_rasda.launch.base import LaunchCommand, LaunchSettings, rank_environment, ranks_per_node, steady
from parsl_rasda.plugins import Plugin
from parsl_rasda.types import Placement


@dataclass(frozen=True, slots=True)
class IbrunLauncher:
    """Starts ranks with ``ibrun``, which places them on the nodes that Slurm's variables name.

    Its offset could only name nodes that are neighbours; so the variables name the placement's nodes alone.

    Source: ``ibrun --help``, and the user guides of TACC.
    """

    name: str = "ibrun"

    def command(
        self, placement: Placement, program: tuple[str, ...], settings: LaunchSettings
    ) -> LaunchCommand:
        """Return the ``ibrun`` command; ranks fill the nodes in the placement's order."""
        if (per_node := ranks_per_node(placement)) is None:
            per_node = steady(self.name, placement, evenly=True)
        nodes, count, size = (
            ",".join(n.node for n in placement.nodes),
            len(placement.nodes),
            placement.world_size,
        )
        per_nodes = f"{per_node}(x{count})" if count > 1 else str(per_node)
        environment = {
            **dict.fromkeys(("SLURM_NODELIST", "SLURM_JOB_NODELIST"), nodes),
            **dict.fromkeys(("SLURM_NNODES", "SLURM_JOB_NUM_NODES"), str(count)),
            **dict.fromkeys(("SLURM_NTASKS", "SLURM_NPROCS"), str(size)),
            "SLURM_TASKS_PER_NODE": per_nodes,
            "SLURM_OVERLAP": "1",  # its daemons are a step, which would wait for those of other trials
            **rank_environment(settings),
        }
        return LaunchCommand(("ibrun", "-n", str(size), *settings.options, *program), environment)


IBRUN = Plugin(lambda _: IbrunLauncher())
