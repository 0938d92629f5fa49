"""The lid-driven cavity: vorticity and stream function on the unit square, finite differences in fp64.

The equations of the vorticity ``w`` in a box whose lid, at y = 1, moves with speed 1 to the right::

    dw/dt + u . grad w = lap w / Re,    lap psi = -w,    u = (dpsi/dy, -dpsi/dx),    psi = 0 on the walls

Space: central differences on a uniform grid; Poisson's equation is solved exactly by sine transforms.
Walls: the vorticity there follows from the stream function beside it (Thom 1933, Proc. R. Soc. A 141:651).
Time: Heun's method, explicit; E & Liu 1996 (J. Comput. Phys. 124:368) show that Thom's formula then asks
for no smaller steps than diffusion does. Everything is of second order. Nothing here writes files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dstn, idstn

Field = NDArray[np.float64]


@dataclass(frozen=True)
class CavityFlow:
    """The equations on one grid; the state is ``w`` at the inner nodes, shape ``(grid - 1, grid - 1)``.

    Attributes:
        grid: Cells in each direction; the nodes are ``grid + 1``, axis 0 is y, axis 1 is x.
        reynolds: Lid speed times side over viscosity.
    """

    grid: int
    reynolds: float

    @property
    def spacing(self) -> float:
        """Distance between nodes, in sides of the box."""
        return 1 / self.grid

    @property
    def largest_step(self) -> float:
        """A stable time step: a part of what diffusion, and central differences of advection, allow."""
        return 0.8 * min(self.reynolds * self.spacing**2 / 4, self.spacing / 2)

    @cached_property
    def _eigenvalues(self) -> Field:
        """Of the negative five-point Laplacian, for the sine modes of the inner nodes."""
        one = (2 * self.grid * np.sin(np.pi * np.arange(1, self.grid) / (2 * self.grid))) ** 2
        total: Field = one[:, None] + one[None, :]
        return total

    def at_rest(self) -> Field:
        """Return the state before the lid starts."""
        return np.zeros((self.grid - 1, self.grid - 1))

    def stream_function(self, w: Field) -> Field:
        """Return psi on all nodes, shape ``(grid + 1, grid + 1)``."""
        psi: Field = np.pad(idstn(dstn(w, type=1) / self._eigenvalues, type=1), 1)
        return psi

    def velocity(self, w: Field) -> Field:
        """Return ``(u, v)`` on all nodes, shape ``(2, grid + 1, grid + 1)``; the lid's ends stand still."""
        u, v = self._inner_velocity(self.stream_function(w))
        velocity = np.zeros((2, self.grid + 1, self.grid + 1))
        velocity[0, 1:-1, 1:-1], velocity[1, 1:-1, 1:-1] = u, v
        velocity[0, -1, 1:-1] = 1.0
        return velocity

    def tendency(self, w: Field) -> Field:
        """Return dw/dt at the inner nodes."""
        psi = self.stream_function(w)
        whole = self._with_walls(w, psi)
        u, v = self._inner_velocity(psi)
        right, left = whole[1:-1, 2:], whole[1:-1, :-2]
        above, below = whole[2:, 1:-1], whole[:-2, 1:-1]
        advection = (u * (right - left) + v * (above - below)) * (self.grid / 2)
        diffusion = (right + left + above + below - 4 * w) * (self.grid**2 / self.reynolds)
        return diffusion - advection

    def step(self, w: Field, dt: float) -> Field:
        """Return the state ``dt`` later: one step of Heun's method."""
        first = self.tendency(w)
        return w + (dt / 2) * (first + self.tendency(w + dt * first))

    def advance(self, w: Field, duration: float) -> Field:
        """Return the state ``duration`` later, in equal stable steps."""
        steps = max(1, math.ceil(duration / self.largest_step))
        for _ in range(steps):
            w = self.step(w, duration / steps)
        return w

    def _inner_velocity(self, psi: Field) -> tuple[Field, Field]:
        half = self.grid / 2
        return half * (psi[2:, 1:-1] - psi[:-2, 1:-1]), -half * (psi[1:-1, 2:] - psi[1:-1, :-2])

    def _with_walls(self, w: Field, psi: Field) -> Field:
        """Return the vorticity on all nodes; corners are never used."""
        twice = 2 * self.grid**2
        whole = np.pad(w, 1)
        whole[0], whole[:, 0], whole[:, -1] = -twice * psi[1], -twice * psi[:, 1], -twice * psi[:, -2]
        whole[-1] = -twice * psi[-2] - 2 * self.grid  # the lid drags the fluid along
        return whole


def cell_centres(nodes: Field) -> Field:
    """Return the mean of the four corners of each cell, shape ``(..., grid, grid)``."""
    mean: Field = (nodes[..., 1:, 1:] + nodes[..., 1:, :-1] + nodes[..., :-1, 1:] + nodes[..., :-1, :-1]) / 4
    return mean
