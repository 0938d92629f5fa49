"""``mpiexec`` of Open MPI 4 and 5."""

from __future__ import annotations

from dataclasses import dataclass

from parsl_rasda.launch.base import LaunchCommand, LaunchSettings, MpiexecOptions, rank_environment
from parsl_rasda.plugins import Plugin
from parsl_rasda.types import Placement


@dataclass(frozen=True, slots=True)
class OpenMpiLauncher:
    """Starts ranks with Open MPI; the counts after the host names say how many ranks each node gets.

    Inside a batch job they are not enough: a job of Parsl's has one task a node, and Open MPI takes that
    for the node's only slot, whatever is asked for. So nodes may be oversubscribed; the ledger never does.

    Source: Open MPI 5 manual, mpirun(1).
    """

    name: str = "openmpi"
    program: str = "mpiexec"

    def command(
        self, placement: Placement, program: tuple[str, ...], settings: LaunchSettings
    ) -> LaunchCommand:
        """Return the ``mpiexec`` command; ranks fill the nodes in the placement's order."""
        variables = rank_environment(settings)
        hosts = ",".join(f"{n.node}:{len(n.gpus)}" for n in placement.nodes)
        if settings.local:
            hosts = f"localhost:{placement.world_size}"
        flags = (
            *("--map-by", "slot:OVERSUBSCRIBE"),
            *("--bind-to", "none"),  # trials share nodes: each would bind to core 0
            *(
                flag for name in sorted({"PYTHONPATH", *variables}) for flag in ("-x", name)
            ),  # else only the first node has them
            *settings.options,
        )
        argv = (self.program, "--host", hosts, "-n", str(placement.world_size), *flags, *program)
        one = "localhost:1" if settings.local else "{node}:1"
        lasting = (self.program, "--host", one, "-n", "1", *flags) if settings.is_contained else ()
        environment = {
            "OMPI_ALLOW_RUN_AS_ROOT": "1",  # containers; without effect for anybody else
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
            "SLURM_OVERLAP": "1",  # inside Slurm its daemons are a step, which would wait for others
            **variables,
        }
        return LaunchCommand(argv, environment, lasting=lasting)


OPENMPI = Plugin(lambda options: OpenMpiLauncher(program=options.command), MpiexecOptions)
