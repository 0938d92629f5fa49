"""Finds a launcher by the name that a site file uses."""

from __future__ import annotations

from parsl_rasda.launch.base import Launcher
from parsl_rasda.plugins import LAUNCHERS, Choice


def build_launcher(choice: Choice) -> Launcher:
    """Return the launcher that a site chooses: one of ours, or one of an installed plug-in.

    Raises:
        InvalidFileError: If there is none, or its options are wrong.
    """
    launcher: Launcher = LAUNCHERS.build(choice)
    return launcher
