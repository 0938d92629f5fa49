"""The `render` stage: one app per object, what a camera that follows the laser would have seen, as HDF5.

Surface temperature -> Planck's radiance at 850 nm -> grey levels of 8 bits. Files have the layout of
RAISE-LPBF v1.1 (Blanc et al. 2023, Additive Manufacturing Letters 7:100161), so that what reads them reads
the real ones; attributes say that they are synthetic. As there, laser parameters of the objects in
`UNLABELLED` are not told.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates

from heat import IN625, Field
from parsl_rasda.errors import InvalidSettingError

UNLABELLED = (29, 32, 35, 40)  # test objects of RAISE-LPBF
SPEED_MM_S = (400.0, 1500.0)  # drawn per scan line, independently
POWER_W = (100.0, 330.0)
FRAMES = (16, 24)  # of a scan line; not what the line would take, which would tell the speed

AMBIENT_K = 293.0
WAVELENGTH_M = 850e-9
SECOND_RADIATION_M_K = 1.438776877e-2  # Source: CODATA 2018
SATURATION_K = 3200.0  # that fills a pixel
CAP = 3  # the higher, the sharper evaporation ends the rise
PIXEL_M = 10e-6
SIDE = 48  # pixels


@dataclass(frozen=True)
class Disturbances:
    """What separates the camera's view from the computed field; all are standard deviations but the means.

    Attributes:
        absorptivity: Mean, and relative scatter among objects, scan lines and frames.
        spot_m: Mean, and relative scatter of the focus among scan lines and frames.
        position_m: Of the laser in the frame, within a scan line.
        offset_px: Of the laser in the frames of an object.
        flicker: Relative, of the radiance from frame to frame.
        spatter: Mean number of glowing droplets in a frame.
        full_well: Electrons of a saturated pixel, for shot noise.
        read_noise: In grey levels.
    """

    absorptivity: tuple[float, float, float, float] = (0.35, 0.01, 0.02, 0.02)
    spot_m: tuple[float, float, float] = (27e-6, 0.03, 0.03)
    position_m: float = 3e-6
    offset_px: float = 1.5
    flicker: float = 0.05
    spatter: float = 0.3
    full_well: float = 10_000.0
    read_noise: float = 2.0


def planck_ratio(temperature_k: Field, reference_k: float = SATURATION_K) -> Field:
    """Return the spectral radiance at 850 nm relative to that at a reference temperature."""
    at = SECOND_RADIATION_M_K / WAVELENGTH_M
    return math.expm1(at / reference_k) / np.expm1(at / temperature_k)


class Surface:
    """Surface temperature for any speed, spot and direction, from tables that `simulate` wrote."""

    def __init__(self, fields: Sequence[str]) -> None:
        """Read the tables.

        Args:
            fields: Files of `simulate`, one a speed.

        Raises:
            InvalidSettingError: If they do not enclose the speeds that are drawn.
        """
        tables = []
        for path in fields:
            with h5py.File(path, "r") as file:
                tables.append((float(file.attrs["speed_mm_s"]), file["rise_k_w"][:]))
                self._spots, self._x, self._y = file["spot_m"][:], file["x_m"][:], file["y_m"][:]
        tables.sort(key=lambda table: table[0])
        self._speeds = np.array([speed for speed, _ in tables])
        if not tables or self._speeds[0] > SPEED_MM_S[0] or self._speeds[-1] < SPEED_MM_S[1]:
            low, high = SPEED_MM_S
            allowed = f"speeds from {low:g} or less to {high:g} mm/s or more"
            raise InvalidSettingError("render.fields", self._speeds.tolist(), allowed)
        self._rise = np.stack([rise for _, rise in tables]).astype(np.float64)

    def temperature(
        self, speed_mm_s: float, absorbed_w: float, spot_m: float, *, at_px: Field, angle: float
    ) -> Field:
        """Return what the camera looks at [K], shape ``(SIDE, SIDE)``.

        Args:
            speed_mm_s: Of the laser.
            absorbed_w: Power that the metal takes up.
            spot_m: Standard deviation of the laser's intensity.
            at_px: Row and column of the laser in the frame.
            angle: Direction of the scan, from the columns' axis towards the rows' [rad].
        """
        rows, columns = np.indices((SIDE, SIDE)).astype(np.float64)
        down, right = (rows - at_px[0]) * PIXEL_M, (columns - at_px[1]) * PIXEL_M
        along = math.cos(angle) * right + math.sin(angle) * down
        beside = np.abs(math.cos(angle) * down - math.sin(angle) * right)
        spacing = self._x[1] - self._x[0]
        places = np.stack(((along - self._x[0]) / spacing, beside / spacing))
        table = self._between(_weights(self._speeds, speed_mm_s), _weights(self._spots, spot_m))
        rise = absorbed_w * map_coordinates(table, places, order=1, mode="constant")
        # Conduction alone would reach 10,000 K: evaporation keeps the surface below the boiling point.
        limit = IN625.boiling_k - AMBIENT_K
        temperature: Field = AMBIENT_K + rise / (1 + (rise / limit) ** CAP) ** (1 / CAP)
        return temperature

    def _between(self, speeds: Field, spots: Field) -> Field:
        table: Field = np.einsum("v,s,vsxy->xy", speeds, spots, self._rise)
        return table


def render(
    fields: list[str],
    object_number: int,
    directory: str,
    *,
    layers: int = 4,
    lines: int = 24,
    rotation_deg: float = 67.0,
    seed: int = 0,
) -> str:
    """Return the path of one object's video, in the layout of RAISE-LPBF v1.1.

    Args:
        fields: Files that `simulate` returned, one a speed.
        object_number: Names the file and the object's own random numbers; those in `UNLABELLED` get no
            laser parameters.
        directory: Where the file goes; it exists.
        layers: Of the object.
        lines: Scan lines of a layer.
        rotation_deg: Of the scan direction, from layer to layer.
        seed: Of all objects.

    Returns:
        Path of ``C0NN.hdf5``: per layer ``frame`` (n, 48, 48) uint8, ``scan_line_index`` (n,),
        ``laser_params`` (lines, 2) with speed [mm/s] and power [W].

    Raises:
        InvalidSettingError: If there would be nothing to render, or the fields are too few.
    """
    if layers < 1 or lines < 1:
        raise InvalidSettingError("render.layers and lines", (layers, lines), "at least 1 each")
    camera = _Camera(Surface(fields), Disturbances(), np.random.default_rng([seed, object_number]))
    path = Path(directory) / f"C{object_number:03d}.hdf5"
    with h5py.File(path, "w") as file:
        file.attrs["synthetic"] = True
        file.attrs["description"] = "Computed by parsl_rasda's workflow am_meltpool; not a measurement."
        file.attrs.update({"seed": seed, "layout": "RAISE-LPBF v1.1"})
        for number in range(layers):
            layer = file.create_group(f"layer_{number:04d}")
            laser = np.stack([camera.random.uniform(*limits, lines) for limits in (SPEED_MM_S, POWER_W)], 1)
            # Neighbouring lines run in opposite directions, and each layer is turned against the last.
            angles = math.radians(rotation_deg) * number + math.pi * (np.arange(lines) % 2)
            videos = [camera.scan_line(v, p, angle) for (v, p), angle in zip(laser, angles, strict=True)]
            frames = np.concatenate(videos)
            layer.create_dataset("frame", data=frames, chunks=(FRAMES[0], SIDE, SIDE))
            layer["scan_line_index"] = np.repeat(np.arange(lines), [len(video) for video in videos])
            if object_number not in UNLABELLED:
                layer["laser_params"] = laser.astype(np.float32)
    return str(path)


class _Camera:
    """One object's camera: its view of one scan line after another."""

    def __init__(self, surface: Surface, disturbances: Disturbances, random: np.random.Generator) -> None:
        self.random = random
        self._surface, self._set = surface, disturbances
        mean, scatter, *_ = disturbances.absorptivity
        self._absorptivity = mean * (1 + scatter * random.standard_normal())
        self._at_px = (SIDE - 1) / 2 + disturbances.offset_px * random.standard_normal(2)

    def scan_line(self, speed_mm_s: float, power_w: float, angle: float) -> NDArray[np.uint8]:
        """Return the frames of a scan line, shape ``(n, SIDE, SIDE)``."""
        random, noise = self.random, self._set
        mean_spot, spot_of_line, spot_of_frame = noise.spot_m
        *_, absorbed_by_line, absorbed_by_frame = noise.absorptivity
        absorptivity = self._absorptivity * (1 + absorbed_by_line * random.standard_normal())
        spot = mean_spot * (1 + spot_of_line * random.standard_normal())
        frames = []
        for _ in range(random.integers(FRAMES[0], FRAMES[1], endpoint=True)):
            a, s, flicker = random.standard_normal(3)
            temperature = self._surface.temperature(
                speed_mm_s,
                power_w * absorptivity * (1 + absorbed_by_frame * a),
                spot * (1 + spot_of_frame * s),
                at_px=self._at_px + noise.position_m / PIXEL_M * random.standard_normal(2),
                angle=angle,
            )
            light = planck_ratio(temperature) * (1 + noise.flicker * flicker) + self._spatter()
            frames.append(self._grey(light))
        return np.stack(frames)

    def _spatter(self) -> Field:
        """Return the light of droplets, a point each that the optics blur."""
        light = np.zeros((SIDE, SIDE))
        for _ in range(self.random.poisson(self._set.spatter)):
            row, column = self.random.integers(SIDE, size=2)
            light[row, column] += self.random.uniform(1.0, 8.0)
        return gaussian_filter(light, 1.0) if light.any() else light

    def _grey(self, light: Field) -> NDArray[np.uint8]:
        """Return what the sensor makes of it: shot noise, read noise, 8 bits."""
        well = self._set.full_well
        electrons = light * well + np.sqrt(light * well) * self.random.standard_normal(light.shape)
        grey = 255 * electrons / well + self._set.read_noise * self.random.standard_normal(light.shape)
        return np.clip(np.rint(grey), 0, 255).astype(np.uint8)


def _weights(nodes: Field, value: float) -> Field:
    """Return the weights of linear interpolation between nodes, constant beyond them."""
    return np.array([np.interp(value, nodes, row) for row in np.eye(len(nodes))])
