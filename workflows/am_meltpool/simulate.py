"""The `simulate` stage: one app per speed, surface temperature around the laser for a few spot sizes.

Conduction is linear in power, so a file holds the rise per absorbed watt; `render` scales and interpolates.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from heat import IN625, Beam, Field, eagar_tsai, finite_differences
from parsl_rasda.errors import InvalidSettingError

METHODS = ("eagar_tsai", "transient")
SPACING_M = 10e-6
X_M = np.arange(-45, 31) * SPACING_M  # a frame of 48 pixels of 10 um, turned and shifted, fits in
Y_M = np.arange(0, 36) * SPACING_M  # the other side is the same
SPOTS_UM = (20.0, 25.0, 30.0, 36.0)
TRACK_M = 1.2e-3  # after which the tail that is seen has become steady


def simulate(
    speed_mm_s: float,
    directory: str,
    *,
    method: str = "eagar_tsai",
    spots_um: tuple[float, ...] = SPOTS_UM,
) -> str:
    """Return the path of a file with the temperature rise of the surface around a moving laser.

    Args:
        speed_mm_s: Of the laser.
        directory: Where the file goes; it exists.
        method: ``eagar_tsai`` (quasi-steady, in closed form) or ``transient`` (finite differences).
        spots_um: Standard deviations of the laser's intensity.

    Returns:
        Path of an HDF5 file: ``rise_k_w`` (spots, x, y) fp32, ``spot_m``, ``x_m``, ``y_m``, and the
        arguments as attributes.

    Raises:
        InvalidSettingError: If there is no such method, or no such laser.
    """
    if method not in METHODS:
        raise InvalidSettingError("simulate.method", method, f"one of {', '.join(METHODS)}")
    if not speed_mm_s > 0:
        raise InvalidSettingError("simulate.speed_mm_s", speed_mm_s, "more than 0")
    if not spots_um or min(spots_um) <= 0:
        raise InvalidSettingError("simulate.spots_um", spots_um, "at least one spot larger than 0")
    surface = _quasi_steady if method == "eagar_tsai" else _transient
    spots_m = sorted(spot * 1e-6 for spot in spots_um)
    rise = [surface(Beam(speed_mm_s * 1e-3, spot)) for spot in spots_m]
    path = Path(directory) / f"fields-{speed_mm_s:g}.h5"
    with h5py.File(path, "w") as file:
        file.attrs.update({"synthetic": True, "speed_mm_s": float(speed_mm_s), "method": method})
        file["rise_k_w"] = np.stack(rise).astype(np.float32)
        file["spot_m"], file["x_m"], file["y_m"] = spots_m, X_M, Y_M
    return str(path)


def _quasi_steady(beam: Beam) -> Field:
    return eagar_tsai(X_M[:, None], Y_M, 0.0, beam, IN625)


def _transient(beam: Beam) -> Field:
    solution = finite_differences(
        beam,
        IN625,
        duration_s=TRACK_M / beam.speed_m_s,
        spacing_m=SPACING_M,
        margin_m=float(Y_M[-1]) + 2 * SPACING_M,
    )
    surface = solution.rise_k_w[:, : len(Y_M), 0]
    along = [np.interp(X_M, solution.x_m, column) for column in surface.T]  # nodes lie off the laser
    return np.stack(along, axis=1)
