from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from tests.workflow_folder import workflow_folder

with workflow_folder("am_meltpool"):
    from heat import IN625, Beam, Field, eagar_tsai, finite_differences, rosenthal

UM = 1e-6


def reference(x: float, y: float, z: float, beam: Beam, duration_s: float) -> float:
    """Eagar & Tsai's integral over time as they print it, by adaptive quadrature over its square root."""
    a, sigma = IN625.diffusivity_m2_s, beam.spot_m

    def integrand(root_s: float) -> float:
        spread = 2 * a * root_s**2
        if z and not spread:
            return 0.0  # nothing has come down there yet
        depth = z**2 / (2 * spread) if z else 0.0
        reach = ((x + beam.speed_m_s * root_s**2) ** 2 + y**2) / (2 * spread + 2 * sigma**2)
        return 2 * math.exp(-reach - depth) / (spread + sigma**2)

    last = math.sqrt(duration_s)
    breaks = [p for p in (math.sqrt(max(-x, 0) / beam.speed_m_s), sigma / math.sqrt(2 * a)) if 0 < p < last]
    value, _ = quad(integrand, 0, last, points=breaks or None, limit=500, epsabs=0, epsrel=1e-12)
    volumetric = IN625.density_kg_m3 * IN625.heat_capacity_j_kgk
    return float(value / (math.pi * volumetric * math.sqrt(4 * math.pi * a)))


@settings(max_examples=40, deadline=None)
@example(x=-1.1125369292536007e-308, y=0.0, z=5.0, speed=1.0, spot=20.0)
@given(
    x=st.floats(-600, 60),
    y=st.floats(0, 100),
    z=st.one_of(st.just(0.0), st.floats(5, 60)),
    speed=st.floats(0.3, 1.5),
    spot=st.floats(20, 40),
)
def test_the_quadrature_agrees_with_an_adaptive_one(
    x: float, y: float, z: float, speed: float, spot: float
) -> None:
    beam = Beam(speed, spot * UM)
    for duration_s in (1e-3 / speed, 4e-3 / speed):
        expected = reference(x * UM, y * UM, z * UM, beam, duration_s)
        value = float(eagar_tsai(x * UM, y * UM, z * UM, beam, IN625, duration_s=duration_s))
        peak = float(eagar_tsai(0.0, 0.0, 0.0, beam, IN625))
        assert value == pytest.approx(expected, rel=1e-6, abs=1e-9 * peak)


def test_a_spot_without_size_is_a_point_source() -> None:
    x, y, z = (a.ravel() * UM for a in np.meshgrid([-400, -100, -30, 20], [0, 15, 40], [10, 25]))
    for speed in (0.4, 0.9, 1.5):
        beam = Beam(speed, 0.1 * UM)
        ratio = eagar_tsai(x, y, z, beam, IN625) / rosenthal(x, y, z, speed, IN625)
        assert np.abs(ratio - 1).max() < 1e-3


def test_a_point_source_far_behind_cools_like_heat_in_a_half_space() -> None:
    behind = 3e-3
    assert float(rosenthal(-behind, 0.0, 0.0, 0.9, IN625)) == pytest.approx(
        1 / (2 * math.pi * IN625.conductivity_w_mk * behind), rel=1e-12
    )


def test_a_laser_that_has_moved_long_enough_leaves_the_quasi_steady_field() -> None:
    x = np.linspace(-500, 50, 12) * UM
    beam = Beam(0.9, 25 * UM)
    steady = eagar_tsai(x, 0.0, 0.0, beam, IN625)
    assert np.allclose(eagar_tsai(x, 0.0, 0.0, beam, IN625, duration_s=3e-3), steady, rtol=1e-6)
    assert (eagar_tsai(x, 0.0, 0.0, beam, IN625, duration_s=2e-4) <= steady).all()
    assert eagar_tsai(x[0], 0.0, 0.0, beam, IN625, duration_s=2e-4) < 0.1 * steady[0]


@pytest.mark.parametrize("speed", [0.4, 0.9, 1.5])
def test_finite_differences_of_10_um_agree_with_eagar_tsai_on_the_centre_line(speed: float) -> None:
    beam, duration_s = Beam(speed, 25 * UM), 0.6e-3 / speed
    solution = finite_differences(beam, IN625, duration_s=duration_s, spacing_m=10 * UM)
    exact = eagar_tsai(solution.x_m, 0.0, 0.0, beam, IN625, duration_s=duration_s)
    error = np.abs(solution.rise_k_w[:, 0, 0] - exact)
    assert error.max() < 0.01 * exact.max()
    hot = exact > 0.1 * exact.max()
    assert (error[hot] / exact[hot]).max() < 0.03


def test_finite_differences_agree_beside_and_below_the_track_too() -> None:
    beam, duration_s = Beam(0.9, 25 * UM), 0.6e-3 / 0.9
    solution = finite_differences(beam, IN625, duration_s=duration_s)
    whole = np.meshgrid(solution.x_m, solution.y_m[:8], solution.z_m[:12], indexing="ij")
    exact = eagar_tsai(*whole, beam, IN625, duration_s=duration_s)
    assert np.abs(solution.rise_k_w[:, :8, :12] - exact).max() < 0.015 * exact.max()


def test_finite_differences_keep_the_heat_that_the_laser_brought() -> None:
    beam, duration_s = Beam(0.9, 25 * UM), 0.3e-3 / 0.9
    solution = finite_differences(beam, IN625, duration_s=duration_s)

    def integral(values: Field, nodes: Field) -> Field:
        return np.trapezoid(values, nodes, axis=-1)

    over_z = integral(solution.rise_k_w, solution.z_m)
    content = float(integral(integral(over_z, solution.y_m), solution.x_m))
    energy_j = 2 * IN625.density_kg_m3 * IN625.heat_capacity_j_kgk * content
    assert energy_j == pytest.approx(duration_s, rel=1e-3)
