"""``mpiexec`` of MPICH and of Intel MPI."""

from __future__ import annotations

from dataclasses import dataclass

from parsl_rasda.launch.base import LaunchCommand, LaunchSettings, rank_environment, ranks_per_node
from parsl_rasda.plugins import Plugin
from parsl_rasda.types import Placement


@dataclass(frozen=True, slots=True)
class HydraLauncher:
    """Starts ranks with hydra, which both MPICH and Intel MPI use.

    Source: MPICH "Using the Hydra Process Manager"; Intel MPI "Hydra environment variables".
    """

    name: str = "hydra"

    def command(
        self, placement: Placement, program: tuple[str, ...], settings: LaunchSettings
    ) -> LaunchCommand:
        """Return the ``mpiexec`` command; ranks fill the nodes in the placement's order."""
        environment = {
            "I_MPI_PIN": "0",  # ranks of different trials would be pinned to the same cores
            "SLURM_OVERLAP": "1",  # inside Slurm its proxies are steps, which would wait for each other
            **rank_environment(settings),
        }
        hosts = _hosts(placement)
        if settings.local:
            # No ssh and no srun for this machine; the variable is the only spelling that both know.
            hosts = ()
            environment |= {"HYDRA_LAUNCHER": "fork", "I_MPI_HYDRA_BOOTSTRAP": "fork"}
        argv = ("mpiexec", *hosts, "-n", str(placement.world_size), *settings.options, *program)
        return LaunchCommand(argv, environment)


def _hosts(placement: Placement) -> tuple[str, ...]:
    per_node = ranks_per_node(placement)
    if per_node is None:  # MPICH only: Intel MPI has no counts in its host list
        return ("-hosts", ",".join(f"{n.node}:{len(n.gpus)}" for n in placement.nodes))
    return ("-hosts", ",".join(n.node for n in placement.nodes), "-ppn", str(per_node))


HYDRA = Plugin(lambda _: HydraLauncher())
