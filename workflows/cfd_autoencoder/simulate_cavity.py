"""The `cavity` stage: one app per Reynolds number, snapshots of a cavity whose lid has just started.

The turbulence that the same study compresses comes from `simulate`.
"""

from __future__ import annotations

from pathlib import Path

import h5py

from cavity import CavityFlow, cell_centres
from parsl_rasda.errors import InvalidSettingError


def simulate_cavity(
    reynolds: float, grid: int, snapshots: int, directory: str, *, interval: float = 0.25
) -> str:
    """Return the path of a file with velocity snapshots of a lid-driven cavity, from the start of the lid.

    Args:
        reynolds: Lid speed times side over viscosity.
        grid: Cells in each direction.
        snapshots: How many; the first is taken one interval after the start.
        directory: Where the file goes; it exists.
        interval: Time between snapshots, in sides over lid speeds.

    Returns:
        Path of an HDF5 file: ``velocity`` (1, times, 2, grid, grid) fp32 in the middle of the cells,
        ``time`` (times,), and the arguments as attributes.

    Raises:
        InvalidSettingError: If there is no such flow, or the grid is too coarse for it.
    """
    if not reynolds > 0:
        raise InvalidSettingError("cavity.reynolds", reynolds, "a number above 0")
    if snapshots < 1:
        raise InvalidSettingError("cavity.snapshots", snapshots, "1 or more")
    if not interval > 0:
        raise InvalidSettingError("cavity.interval", interval, "a number above 0")
    if grid < 8 or reynolds > grid**2 / 4:
        # The boundary layers are about 1 / sqrt(Re) thick: give them two cells.
        allowed = f"8 or more, and two cells in a boundary layer (Re {reynolds:g})"
        raise InvalidSettingError("cavity.grid", grid, allowed)
    flow = CavityFlow(grid, float(reynolds))
    w = flow.at_rest()
    path = Path(directory) / f"cavity-re{reynolds:g}.h5"
    with h5py.File(path, "w") as file:
        file.attrs.update({"reynolds": reynolds, "grid": grid, "interval": interval})
        file["time"] = [interval * (n + 1) for n in range(snapshots)]
        shape = (1, snapshots, 2, grid, grid)
        velocity = file.create_dataset("velocity", shape, dtype="f4", chunks=(1, 1, 2, grid, grid))
        for n in range(snapshots):
            w = flow.advance(w, interval)
            velocity[0, n] = cell_centres(flow.velocity(w))
    return str(path)
