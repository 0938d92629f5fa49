from pydantic import BaseModel, Field

from parsl_rasda.launch.base import LaunchCommand, LaunchSettings, rank_environment
from parsl_rasda.plugins import Plugin
from parsl_rasda.types import Placement


class Options(BaseModel):
    niceness: int = Field(10, ge=0, le=19, description="As nice(1) has it.")


class NiceLauncher:
    """One process for the whole trial, which gives way to others."""

    name = "nice"

    def __init__(self, options: Options) -> None:
        self._niceness = options.niceness

    def command(
        self, placement: Placement, program: tuple[str, ...], settings: LaunchSettings
    ) -> LaunchCommand:
        alone = {"PARSL_RASDA_RANK": "0", "PARSL_RASDA_SIZE": "1"}
        argv = ("nice", "-n", str(self._niceness), *settings.options, *program)
        return LaunchCommand(argv, rank_environment(settings) | alone)


NICE = Plugin(NiceLauncher, Options)
