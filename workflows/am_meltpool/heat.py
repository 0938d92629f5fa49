"""Heat conduction under a moving laser: Eagar-Tsai and Rosenthal in closed form, finite differences in time.

All of them answer the same question: how many kelvins a half-space ``z >= 0`` with constant properties
warms up per watt that it absorbs. Conduction is linear, so temperature is ``T0 + rise * absorptivity *
power``. The laser moves towards +x; ``x`` is measured from its centre, so the tail lies at ``x < 0``.
Melting, flow and evaporation are left out. Nothing here writes files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Field = NDArray[np.float64]

NODES = 80  # of the quadrature
NEGLIGIBLE = 40.0  # exp(-40) = 4e-18


@dataclass(frozen=True)
class Material:
    """Constant properties of a metal, at the temperature that conduction around a melt pool sees.

    Attributes:
        boiling_k: Where evaporation keeps the surface from getting any hotter.
    """

    density_kg_m3: float
    conductivity_w_mk: float
    heat_capacity_j_kgk: float
    boiling_k: float

    @property
    def diffusivity_m2_s(self) -> float:
        """Conductivity over volumetric heat capacity."""
        return self.conductivity_w_mk / (self.density_kg_m3 * self.heat_capacity_j_kgk)


# Nickel alloy 625 at 982 C, the hottest row of its data sheet.
# Source: Special Metals, INCONEL alloy 625, publication SMC-063, tables 2 and 3 (density, conductivity,
# specific heat); boiling point of its base, nickel: CRC Handbook of Chemistry and Physics.
IN625 = Material(
    density_kg_m3=8440.0,
    conductivity_w_mk=25.2,
    heat_capacity_j_kgk=645.0,
    boiling_k=3186.0,
)


@dataclass(frozen=True)
class Beam:
    """A Gaussian laser spot in motion.

    Attributes:
        spot_m: Standard deviation of the intensity; the D4sigma diameter is four of it.
    """

    speed_m_s: float
    spot_m: float


def eagar_tsai(
    x_m: ArrayLike,
    y_m: ArrayLike,
    z_m: ArrayLike,
    beam: Beam,
    material: Material,
    *,
    duration_s: float = math.inf,
    nodes: int = NODES,
) -> Field:
    """Return the temperature rise [K/W] under a Gaussian spot, in the shape that the points broadcast to.

    With ``s^2 = 2 a t / sigma^2 = sinh(w)^2`` the integral over the time ``t`` since heat was released
    becomes one of an analytic, rapidly falling integrand over ``w``, for which Gauss-Legendre converges
    geometrically.

    Args:
        x_m: Ahead of the laser.
        y_m: Beside the track.
        z_m: Below the surface.
        beam: The laser.
        material: What it heats.
        duration_s: How long the laser has been moving; infinity gives the quasi-steady melt pool.
        nodes: Of the quadrature.

    Source:
        Eagar & Tsai 1983, Welding Journal 62:346s, eq. 9.
    """
    points = np.broadcast_arrays(*(np.asarray(p, dtype=np.float64)[..., None] for p in (x_m, y_m, z_m)))
    x, y, z = points
    a, sigma, speed = material.diffusivity_m2_s, beam.spot_m, beam.speed_m_s
    # Heat released earlier than this is too far away to matter at the point furthest behind.
    behind = max(0.0, -float(x.min(initial=0.0)))
    b = 2 * speed * behind + 4 * NEGLIGIBLE * a
    c = behind**2 - 2 * NEGLIGIBLE * sigma**2
    longest_s = (b + math.sqrt(b**2 - 4 * speed**2 * c)) / (2 * speed**2)
    last = math.asinh(math.sqrt(2 * a * min(duration_s, longest_s)) / sigma)
    roots, weights = np.polynomial.legendre.leggauss(nodes)
    w = last * (roots + 1) / 2
    sinh2, cosh2 = np.sinh(w) ** 2, np.cosh(w) ** 2
    travelled = speed * sigma**2 / (2 * a) * sinh2
    exponent = ((x + travelled) ** 2 + y**2) / cosh2 + z**2 / sinh2
    integrand = np.exp(-exponent / (2 * sigma**2)) / np.cosh(w)
    scale = last / (material.conductivity_w_mk * sigma * (2 * math.pi) ** 1.5)
    rise: Field = scale * (integrand @ weights)
    return rise


def rosenthal(x_m: ArrayLike, y_m: ArrayLike, z_m: ArrayLike, speed_m_s: float, material: Material) -> Field:
    """Return the quasi-steady rise [K/W] under a point source, infinite where the source is.

    Source:
        Rosenthal 1946, Transactions of the ASME 68:849, thick plate.
    """
    x, y, z = (np.asarray(p, dtype=np.float64) for p in (x_m, y_m, z_m))
    r = np.sqrt(x**2 + y**2 + z**2)
    decay = np.exp(-speed_m_s * (x + r) / (2 * material.diffusivity_m2_s))
    rise: Field = decay / (2 * math.pi * material.conductivity_w_mk * r)
    return rise


@dataclass(frozen=True)
class Transient:
    """Half of a symmetric temperature field, some time after the laser was switched on.

    Attributes:
        x_m: Nodes along the track, measured from the laser.
        y_m: Nodes beside the track, from 0 on.
        z_m: Nodes below the surface, from 0 on.
        rise_k_w: Shape ``(x, y, z)``.
    """

    x_m: Field
    y_m: Field
    z_m: Field
    rise_k_w: Field


def finite_differences(
    beam: Beam,
    material: Material,
    *,
    duration_s: float,
    spacing_m: float = 10e-6,
    margin_m: float = 300e-6,
) -> Transient:
    """Return the field after the laser has moved for a while, by the transient 3-D heat equation.

    Second order in space. Under a fast laser heat has reached a depth of 10 um only, so nodes lie dense
    below the surface: depth is solved implicitly (Crank-Nicolson), the other directions explicitly.

    Args:
        beam: The laser.
        material: What it heats.
        duration_s: From switching it on.
        spacing_m: Of nodes along and across the track; an eighth of it in depth, at the surface.
        margin_m: From the track to the boundaries, which stay cold.
    """
    a, h = material.diffusivity_m2_s, spacing_m
    length = beam.speed_m_s * duration_s
    x = np.arange(-margin_m, length + margin_m + h / 2, h)
    y = np.arange(0.0, margin_m + h / 2, h)
    z, cells, conduction = _depth(h, margin_m)
    # At this step the leading errors of space and time cancel along each axis; the limit is 1.5 times it.
    steps = math.ceil(duration_s / (h**2 / (6 * a)))
    dt = duration_s / steps
    identity = np.eye(len(z))
    implicit = np.linalg.inv(identity - a * dt / 2 * conduction)
    solve, advance = implicit.T.copy(), (implicit @ (identity + a * dt / 2 * conduction)).T.copy()
    surface_cell_j_m2k = material.density_kg_m3 * material.heat_capacity_j_kgk * cells[0]
    across = dt / surface_cell_j_m2k * _gauss(y, beam.spot_m)
    rise = np.zeros((len(x), len(y), len(z)))
    for n in range(steps):
        change = a * dt / h**2 * _laplacian(rise)
        change[..., 0] += np.multiply.outer(_gauss(x - beam.speed_m_s * dt * (n + 0.5), beam.spot_m), across)
        rise = rise @ advance + change @ solve
    return Transient(x - length, y, z, rise)


def _depth(spacing_m: float, margin_m: float) -> tuple[Field, Field, Field]:
    """Return nodes and cell heights [m] in depth, and the matrix of the second derivative there [1/m2]."""
    gaps = [spacing_m / 8]
    while sum(gaps) < margin_m:
        gaps.append(min(1.25 * gaps[-1], 2 * spacing_m))
    gap = np.array(gaps)
    z = np.concatenate(([0.0], gap.cumsum()))
    edges = np.concatenate(([0.0], (z[1:] + z[:-1]) / 2, z[-1:]))
    cells = np.diff(edges)
    above, below = np.concatenate(([0.0], 1 / gap)), np.concatenate((1 / gap, 1 / gap[-1:]))
    flux = np.diag(above[1:], -1) + np.diag(below[:-1], 1) - np.diag(above + below)
    return z, cells, flux / cells[:, None]


def _laplacian(rise: Field) -> Field:
    """Return the 5-point sum along x and y, with symmetry at ``y = 0`` and cold boundaries elsewhere."""
    total = -4 * rise
    total[1:] += rise[:-1]
    total[:-1] += rise[1:]
    total[:, 1:] += rise[:, :-1]
    total[:, :-1] += rise[:, 1:]
    total[:, 0] += rise[:, 1]
    return total


def _gauss(distance: Field, deviation: float) -> Field:
    """Return a normal density."""
    density: Field = np.exp(-(distance**2) / (2 * deviation**2)) / (deviation * math.sqrt(2 * math.pi))
    return density
