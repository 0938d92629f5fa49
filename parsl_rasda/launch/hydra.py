"""``mpiexec`` of MPICH and of Intel MPI."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

from parsl_rasda.launch.base import (
    LaunchCommand,
    LaunchSettings,
    MpiexecOptions,
    rank_environment,
    ranks_per_node,
)
from parsl_rasda.plugins import Plugin
from parsl_rasda.types import Placement


@dataclass(frozen=True, slots=True)
class HydraLauncher:
    """Starts ranks with hydra, which both MPICH and Intel MPI use.

    Source: MPICH "Using the Hydra Process Manager"; Intel MPI "Hydra environment variables".
    """

    name: str = "hydra"
    program: str = "mpiexec"

    def command(
        self, placement: Placement, program: tuple[str, ...], settings: LaunchSettings
    ) -> LaunchCommand:
        """Return the ``mpiexec`` command; ranks fill the nodes in the placement's order."""
        environment = {
            "I_MPI_PIN": "0",  # ranks of different trials would be pinned to the same cores
            "SLURM_OVERLAP": "1",  # inside Slurm its proxies are steps, which would wait for each other
            **rank_environment(settings),
        }
        hosts, files = _hosts(placement, settings.directory)
        one: tuple[str, ...] = ("-hosts", "{node}", "-ppn", "1")
        if settings.local:
            # No ssh and no srun for this machine; the variable is the only spelling that both know.
            hosts, one, files = (), (), {}
            environment |= {"HYDRA_LAUNCHER": "fork", "I_MPI_HYDRA_BOOTSTRAP": "fork"}
        argv = (self.program, *hosts, "-n", str(placement.world_size), *settings.options, *program)
        lasting = (self.program, *one, "-n", "1", *settings.options) if settings.is_contained else ()
        return LaunchCommand(argv, environment, files, lasting=lasting)


def _hosts(placement: Placement, directory: str) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the words that place the ranks, and the file that they name, by its path."""
    per_node = ranks_per_node(placement)
    if per_node is None:  # Intel MPI takes counts from a file only, and MPICH from one too
        path = str(PurePosixPath(directory) / "hosts.txt")
        lines = "".join(f"{n.node}:{len(n.gpus)}\n" for n in placement.nodes)
        return ("-machinefile", path), {path: lines}
    return ("-hosts", ",".join(n.node for n in placement.nodes), "-ppn", str(per_node)), {}


HYDRA = Plugin(lambda options: HydraLauncher(program=options.command), MpiexecOptions)
