from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from parsl_rasda.study import load_study
from tests.workflow_folder import workflow_folder

with workflow_folder("cfd_defiltering") as FOLDER:
    from simulate import PEAK, SPIN_UP
    from turbulence import (
        SpectralFlow,
        energy_spectrum,
        initial_spectrum,
        random_vorticity,
    )


def integrate(flow: SpectralFlow, w_hat: Tensor, duration: float, steps: int) -> Tensor:
    for _ in range(steps):
        w_hat = flow.step(w_hat, duration / steps)
    return w_hat


def test_taylor_green_vortices_decay_as_the_exact_solution_says() -> None:
    flow = SpectralFlow(grid=32, viscosity=0.05)
    x = torch.arange(32, dtype=torch.float64) * 2 * math.pi / 32
    y, x = torch.meshgrid(x, x, indexing="ij")
    k, duration = 2, 1.5
    start = torch.fft.rfft2(2 * k * torch.cos(k * x) * torch.cos(k * y))[None]

    velocity = flow.velocity(flow.advance(start, duration))[0]

    decay = math.exp(-2 * k**2 * flow.viscosity * duration)
    exact = decay * torch.stack((-torch.cos(k * x) * torch.sin(k * y), torch.sin(k * x) * torch.cos(k * y)))
    assert float((velocity - exact).abs().max()) < 1e-12 * decay


def test_time_stepping_is_of_fourth_order_on_a_turbulent_flow() -> None:
    flow = SpectralFlow(grid=32, viscosity=5e-3)
    start = random_vorticity(flow, 2, seed=1, peak=4.0)
    reference = integrate(flow, start, 0.2, 160)
    errors = [float((integrate(flow, start, 0.2, n) - reference).abs().max()) for n in (10, 20, 40)]
    orders = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert orders == pytest.approx([4.0, 4.0], abs=0.1)


def test_energy_is_lost_to_viscosity_and_to_nothing_else() -> None:
    flow = SpectralFlow(grid=32, viscosity=5e-3)
    w_hat = random_vorticity(flow, 3, seed=2, peak=4.0)
    duration, steps = 0.5, 100
    dissipation, before = [flow.enstrophy(w_hat)], flow.energy(w_hat)
    for _ in range(steps):
        w_hat = flow.step(w_hat, duration / steps)
        dissipation.append(flow.enstrophy(w_hat))

    # Simpson's rule, whose error is far below the one allowed.
    weights = torch.tensor([1.0, *[4.0, 2.0] * (steps // 2 - 1), 4.0, 1.0], dtype=torch.float64)
    lost = 2 * flow.viscosity * (weights @ torch.stack(dissipation)) * duration / steps / 3
    assert torch.allclose(before - flow.energy(w_hat), lost, rtol=1e-5, atol=0)
    assert bool((lost > 0.01 * before).all()), "a flow that loses nothing would show nothing"


def test_the_rate_of_energy_loss_is_twice_viscosity_times_enstrophy() -> None:
    flow = SpectralFlow(grid=32, viscosity=5e-3)
    states = [random_vorticity(flow, 3, seed=3, peak=4.0)]
    dt = 5e-3
    for _ in range(2):
        states.append(flow.step(states[-1], dt))
    rate = (flow.energy(states[2]) - flow.energy(states[0])) / (2 * dt)
    assert torch.allclose(rate, -2 * flow.viscosity * flow.enstrophy(states[1]), rtol=1e-4, atol=0)


def test_without_viscosity_energy_and_enstrophy_stay() -> None:
    flow = SpectralFlow(grid=32, viscosity=0.0)
    start = random_vorticity(flow, 2, seed=4, peak=4.0)
    end = integrate(flow, start, 0.2, 40)
    assert torch.allclose(flow.energy(end), flow.energy(start), rtol=1e-7)
    assert torch.allclose(flow.enstrophy(end), flow.enstrophy(start), rtol=1e-6)


def test_velocity_is_free_of_divergence_and_its_curl_is_the_vorticity() -> None:
    flow = SpectralFlow(grid=32, viscosity=1e-3)
    w_hat = random_vorticity(flow, 2, seed=5, peak=4.0)
    u_hat, v_hat = torch.fft.rfft2(flow.velocity(w_hat)).unbind(dim=1)
    assert float((1j * flow.kx * u_hat + 1j * flow.ky * v_hat).abs().max()) < 1e-9
    assert torch.allclose(1j * flow.kx * v_hat - 1j * flow.ky * u_hat, w_hat, atol=1e-9)


def test_the_initial_spectrum_holds_energy_one_half_and_peaks_where_it_is_told() -> None:
    k = torch.linspace(0, 60, 60_001, dtype=torch.float64)
    spectrum = initial_spectrum(k, peak=5.0)
    assert float(torch.trapezoid(spectrum, k)) == pytest.approx(0.5, abs=1e-9)
    assert float(k[spectrum.argmax()]) == pytest.approx(5.0, abs=1e-3)


def test_a_random_flow_has_the_spectrum_it_was_made_from() -> None:
    flow = SpectralFlow(grid=64, viscosity=1e-3)
    measured = energy_spectrum(flow.velocity(random_vorticity(flow, 2, seed=6, peak=5.0)))
    wanted = initial_spectrum(torch.arange(33, dtype=torch.float64), peak=5.0)
    assert torch.allclose(measured, wanted * 0.5 / wanted.sum(), rtol=1e-9, atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), flows=st.integers(1, 4), grid=st.sampled_from([16, 24, 32]))
def test_a_seed_names_its_flows_and_every_flow_starts_with_energy_one_half(
    seed: int, flows: int, grid: int
) -> None:
    flow = SpectralFlow(grid, viscosity=1e-3)
    w_hat = random_vorticity(flow, flows, seed, peak=3.0)
    assert torch.equal(w_hat, random_vorticity(flow, flows, seed, peak=3.0))
    assert not torch.equal(w_hat, random_vorticity(flow, flows, seed + 1, peak=3.0))
    assert torch.allclose(flow.energy(w_hat), torch.full((flows,), 0.5, dtype=torch.float64), rtol=1e-12)
    mean_square = flow.velocity(w_hat).square().sum(dim=1).mean(dim=(1, 2))
    assert torch.allclose(mean_square, torch.ones(flows, dtype=torch.float64), rtol=1e-12)


def test_flows_of_a_batch_do_not_touch_each_other() -> None:
    flow = SpectralFlow(grid=32, viscosity=1e-3)
    batch = random_vorticity(flow, 3, seed=7, peak=4.0)
    together = integrate(flow, batch, 0.1, 5)
    alone = torch.cat([integrate(flow, batch[i : i + 1], 0.1, 5) for i in range(3)])
    assert torch.allclose(together, alone, rtol=1e-12, atol=1e-9)


def test_the_grid_of_the_study_resolves_what_viscosity_leaves() -> None:
    arguments = load_study(FOLDER / "study.yaml").stages["simulate"].with_
    flow = SpectralFlow(int(arguments["grid"]), float(arguments["viscosity"]))
    w_hat = flow.advance(random_vorticity(flow, 4, seed=0, peak=PEAK), SPIN_UP)
    for _ in range(3):
        palinstrophy = flow.enstrophy(flow.k_squared.sqrt() * w_hat).mean()
        length = flow.viscosity**0.5 / float(2 * flow.viscosity * palinstrophy) ** (1 / 6)
        assert length * (flow.grid // 3) >= 1.0
        w_hat = flow.advance(w_hat, 0.25)
