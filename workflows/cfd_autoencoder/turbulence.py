"""Decaying two-dimensional turbulence in a periodic box, solved pseudo-spectrally in fp64.

The equations are those of the vorticity ``w`` in the square ``[0, 2 pi)^2``::

    dw/dt + u . grad w = nu lap w,    lap psi = -w,    u = (dpsi/dy, -dpsi/dx)

Space: Fourier, the products in physical space, dealiased by the 2/3 rule (Orszag 1971,
J. Atmos. Sci. 28:1074). Time: classical RK4 on the integrating factor ``exp(nu k^2 t) w_hat``, which
makes viscous decay exact (Canuto et al. 2006, *Spectral Methods: Fundamentals in Single Domains*,
appendix D). Every function works on a batch of independent flows. Nothing here writes files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class SpectralFlow:
    """The equations on one grid; the state is ``w_hat = rfft2(w)``, shape ``(flows, grid, grid // 2 + 1)``.

    Attributes:
        grid: Points in each direction; axis -2 is y, axis -1 is x.
        viscosity: Kinematic viscosity nu, in units of (initial root-mean-square speed x length unit).
    """

    grid: int
    viscosity: float
    kx: Tensor = field(init=False, repr=False)
    ky: Tensor = field(init=False, repr=False)
    k_squared: Tensor = field(init=False, repr=False)
    kept: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        ky, kx = wave_numbers(self.grid)
        constants = {
            "kx": kx,
            "ky": ky,
            "k_squared": kx**2 + ky**2,
            "kept": (kx.abs() < self.grid / 3) & (ky.abs() < self.grid / 3),
        }
        for name, value in constants.items():
            object.__setattr__(self, name, value)

    def velocity(self, w_hat: Tensor) -> Tensor:
        """Return ``(u, v)`` in physical space, shape ``(flows, 2, grid, grid)``."""
        psi_hat = w_hat / self.k_squared.clamp(min=1.0)
        return self._physical(torch.stack((1j * self.ky * psi_hat, -1j * self.kx * psi_hat), dim=-3))

    def tendency(self, w_hat: Tensor) -> Tensor:
        """Return ``-u . grad w``, dealiased; viscosity is the integrating factor's."""
        velocity = self.velocity(w_hat)
        gradient = self._physical(torch.stack((1j * self.kx * w_hat, 1j * self.ky * w_hat), dim=-3))
        advection: Tensor = torch.fft.rfft2((velocity * gradient).sum(dim=-3))
        return -advection * self.kept

    def step(self, w_hat: Tensor, dt: float) -> Tensor:
        """Return the state ``dt`` later: one step of RK4 with integrating factor."""
        half = torch.exp(-self.viscosity * self.k_squared * (dt / 2))
        decayed = half * w_hat
        k1 = self.tendency(w_hat)
        k2 = self.tendency(decayed + (dt / 2) * half * k1)
        k3 = self.tendency(decayed + (dt / 2) * k2)
        k4 = self.tendency(half * (decayed + dt * k3))
        return half * (decayed + (dt / 6) * (half * k1 + 2 * (k2 + k3))) + (dt / 6) * k4

    def advance(self, w_hat: Tensor, duration: float, *, courant: float = 0.5) -> Tensor:
        """Return the state ``duration`` later, in equal steps of at most the given Courant number."""
        fastest = float(self.velocity(w_hat).abs().sum(dim=-3).max())
        spacing = 2 * math.pi / self.grid
        steps = max(1, math.ceil(duration * fastest / (courant * spacing)))
        for _ in range(steps):
            w_hat = self.step(w_hat, duration / steps)
        return w_hat

    def energy(self, w_hat: Tensor) -> Tensor:
        """Return the mean kinetic energy ``<u.u> / 2`` of each flow, shape ``(flows,)``."""
        return 0.5 * self._mean_square(w_hat / self.k_squared.clamp(min=1.0).sqrt())

    def enstrophy(self, w_hat: Tensor) -> Tensor:
        """Return ``<w w> / 2`` of each flow, shape ``(flows,)``; ``dE/dt = -2 nu`` times it."""
        return 0.5 * self._mean_square(w_hat)

    def _physical(self, f_hat: Tensor) -> Tensor:
        field: Tensor = torch.fft.irfft2(f_hat, s=(self.grid, self.grid))
        return field

    def _mean_square(self, f_hat: Tensor) -> Tensor:
        return (_rings(self.grid)[1] * f_hat.abs() ** 2).sum(dim=(-2, -1)) / self.grid**4  # Parseval


def wave_numbers(grid: int) -> tuple[Tensor, Tensor]:
    """Return ``ky``, shape ``(grid, 1)``, and ``kx``, shape ``(1, grid // 2 + 1)``, of `rfft2` in fp64."""
    ky = torch.fft.fftfreq(grid, 1 / grid, dtype=torch.float64)[:, None]
    kx = torch.fft.rfftfreq(grid, 1 / grid, dtype=torch.float64)[None, :]
    return ky, kx


def initial_spectrum(k: Tensor, peak: float) -> Tensor:
    """Return E(k), whose integral over k is 1/2 (a root-mean-square speed of 1).

    ``E(k) = (a / 2 kp) (k/kp)^(2s+1) exp(-(s + 1/2) (k/kp)^2)``, ``a = (2s+1)^(s+1) / (2^s s!)``, s = 3.

    Source:
        San & Staples 2012, Computers & Fluids 63:105, eq. for decaying homogeneous 2-D turbulence.
    """
    s = 3
    scale = (2 * s + 1) ** (s + 1) / (2**s * math.factorial(s))
    x = k / peak
    spectrum: Tensor = scale / (2 * peak) * x ** (2 * s + 1) * torch.exp(-(s + 0.5) * x**2)
    return spectrum


def random_vorticity(flow: SpectralFlow, flows: int, seed: int, *, peak: float) -> Tensor:
    """Return ``w_hat`` of random phases, the given spectrum and energy 1/2, the same for the same seed.

    Args:
        flow: Grid and viscosity.
        flows: Number of independent flows, the first axis of the result.
        seed: Of the phases.
        peak: Wave number where the spectrum is largest.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn((flows, flow.grid, flow.grid), generator=generator, dtype=torch.float64)
    # The phases of real white noise have the conjugate symmetry of a real field; only they are used.
    phases = torch.exp(1j * torch.fft.rfft2(noise).angle())
    ring, twice = _rings(flow.grid)
    modes = torch.zeros(int(ring.max()) + 1, dtype=torch.float64).scatter_add(
        0, ring.flatten(), twice.flatten()
    )
    spectrum = initial_spectrum(torch.arange(len(modes), dtype=torch.float64), peak)
    # The modes of a ring share its energy E(k) evenly; the energy of one is |w_hat|^2 / (2 k^2).
    amplitude = (2 * flow.k_squared * (spectrum / modes)[ring]).sqrt() * flow.grid**2
    w_hat = phases * amplitude * flow.kept
    return w_hat * (0.5 / flow.energy(w_hat)).sqrt()[:, None, None]


def energy_spectrum(velocity: Tensor) -> Tensor:
    """Return E(k) for k = 0, 1, ... grid // 2: energies of rings one wave number wide.

    Args:
        velocity: ``(u, v)``, shape ``(..., 2, grid, grid)``; leading axes are averaged over.

    Returns:
        Shape ``(grid // 2 + 1,)``; its sum is the mean kinetic energy of what the rings hold.
    """
    grid = velocity.shape[-1]
    ring, twice = _rings(grid)
    modes = torch.fft.rfft2(velocity.double()).abs() ** 2 / grid**4
    energy = 0.5 * (twice * modes.sum(dim=-3)).reshape(-1, *modes.shape[-2:]).mean(dim=0)
    rings = torch.zeros(int(ring.max()) + 1, dtype=torch.float64)
    return rings.scatter_add(0, ring.flatten(), energy.flatten())[: grid // 2 + 1]


def _rings(grid: int) -> tuple[Tensor, Tensor]:
    """Return the nearest whole wave number of each mode of `rfft2`, and for how many modes it stands."""
    ky, kx = wave_numbers(grid)
    # A mode with kx > 0 also stands for its conjugate, which rfft2 does not store.
    twice = torch.where((kx > 0) & (kx < grid / 2), 2.0, 1.0).to(torch.float64).expand(grid, -1)
    return (kx**2 + ky**2).sqrt().round().long(), twice
