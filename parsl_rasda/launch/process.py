"""One plain process per trial, whatever its width: no MPI, for emulation and single-GPU sites."""

from __future__ import annotations

from dataclasses import dataclass

from parsl_rasda.launch.base import LaunchCommand, LaunchSettings, rank_environment
from parsl_rasda.plugins import Plugin
from parsl_rasda.types import Placement


@dataclass(frozen=True, slots=True)
class ProcessLauncher:
    """Starts the program itself; the one rank stands for all slots.

    It says so: inside a job step, whoever reads Slurm's variables takes those of the pilot for its own.
    """

    name: str = "process"

    def command(
        self, placement: Placement, program: tuple[str, ...], settings: LaunchSettings
    ) -> LaunchCommand:
        """Return ``program`` behind the site's options (a container's ``exec``, ``nice``, ...)."""
        alone = {"PARSL_RASDA_RANK": "0", "PARSL_RASDA_SIZE": "1"}
        lasting = settings.options or ("env",) if settings.is_contained else ()
        argv = (*settings.options, *program)
        return LaunchCommand(argv, rank_environment(settings) | alone, lasting=lasting)


PROCESS = Plugin(lambda _: ProcessLauncher())
