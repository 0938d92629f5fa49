"""Finds a launcher by the name that a site file uses."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points

from parsl_rasda.errors import InvalidSettingError
from parsl_rasda.launch.base import Launcher
from parsl_rasda.launch.hydra import HydraLauncher
from parsl_rasda.launch.openmpi import OpenMpiLauncher
from parsl_rasda.launch.process import ProcessLauncher
from parsl_rasda.launch.srun import SrunLauncher

ENTRY_POINTS = "parsl_rasda.launchers"

_BUILT_IN: dict[str, Callable[[], Launcher]] = {
    "hydra": HydraLauncher,
    "openmpi": OpenMpiLauncher,
    "srun": SrunLauncher,
    "process": ProcessLauncher,
}


def build_launcher(name: str) -> Launcher:
    """Return the launcher of that name: one of ours, or one of an installed plug-in.

    Raises:
        InvalidSettingError: If there is none; the message lists what there is.
    """
    if name in _BUILT_IN:
        return _BUILT_IN[name]()
    plug_ins = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if name not in plug_ins:
        allowed = ", ".join([*_BUILT_IN, *sorted(plug_ins)])
        raise InvalidSettingError("mpi_launcher", name, allowed)
    build: Callable[[], Launcher] = plug_ins[name].load()
    return build()
