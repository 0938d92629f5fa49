"""The `simulate` stage: one app per seed, a few independent decaying flows each, one HDF5 file out."""

from __future__ import annotations

from pathlib import Path

import h5py
import torch

from parsl_rasda.errors import InvalidSettingError
from turbulence import SpectralFlow, random_vorticity

PEAK = 5.0  # wave number where the initial spectrum is largest
SPIN_UP = 1.0  # time in which random phases become vortices, about one turnover; not recorded


def simulate(
    seed: int,
    grid: int,
    snapshots: int,
    viscosity: float,
    directory: str,
    *,
    flows: int = 8,
    interval: float = 0.25,
) -> str:
    """Return the path of a file with velocity snapshots of decaying turbulence.

    Args:
        seed: Of the random phases the flows start from.
        grid: Points in each direction of the periodic box of side 2 pi.
        snapshots: In all; each flow gives ``snapshots / flows`` of them.
        viscosity: Kinematic, where the initial root-mean-square speed is 1.
        directory: Where the file goes; it exists.
        flows: Independent flows, solved as one batch.
        interval: Time between snapshots.

    Returns:
        Path of an HDF5 file: ``velocity`` (flows, times, 2, grid, grid) fp32, ``time`` (times,), and the
        arguments as attributes.

    Raises:
        InvalidSettingError: If the snapshots cannot be shared out evenly, or the grid is too coarse.
    """
    if snapshots < flows or snapshots % flows:
        raise InvalidSettingError("simulate.snapshots", snapshots, f"a multiple of flows ({flows})")
    if grid < 4 * PEAK or grid % 2:
        raise InvalidSettingError("simulate.grid", grid, f"an even number of at least {int(4 * PEAK)}")
    flow = SpectralFlow(grid, viscosity)
    w_hat = flow.advance(random_vorticity(flow, flows, seed, peak=PEAK), SPIN_UP)
    times = [SPIN_UP + interval * n for n in range(snapshots // flows)]
    path = Path(directory) / f"flow-seed{seed}.h5"
    with h5py.File(path, "w") as file:
        file.attrs.update(
            {"seed": seed, "grid": grid, "viscosity": viscosity, "interval": interval, "peak": PEAK}
        )
        file["time"] = times
        shape = (flows, len(times), 2, grid, grid)
        velocity = file.create_dataset("velocity", shape, dtype="f4", chunks=(1, 1, 2, grid, grid))
        for n in range(len(times)):
            if n:
                w_hat = flow.advance(w_hat, interval)
            velocity[:, n] = flow.velocity(w_hat).to(torch.float32).numpy()
    return str(path)
