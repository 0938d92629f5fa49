"""Real ranks measure the noise scale of a small network as the gradients of its single samples have it."""

from __future__ import annotations

from statistics import fmean

import pytest
import torch
from rank_functions import lopsided_samples, unmoved_network
from rank_launch import epochs_of, finished, mpi_command, written_order
from torch.nn import functional

from parsl_rasda.protocol import Training
from parsl_rasda.types import GradientNoise

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def direct() -> GradientNoise:
    """What the gradients of all single samples say."""
    model, grads = unmoved_network(), []
    for x, y in zip(*lopsided_samples(), strict=True):
        loss = functional.cross_entropy(model(x[None]), y[None])
        grads.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]))
    each = torch.stack(grads).double()
    variance = float(each.var(0).sum())
    return GradientNoise(float(each.mean(0).square().sum()) - variance / len(each), variance)


def measured(folder, world_size: int, reduce: str) -> list[GradientNoise]:
    order = written_order(
        folder / f"{reduce}-{world_size}",
        python="rank_functions:stand_still",
        world_size=world_size,
        schedule=((0, 8, 1),),
        training=Training(batch_size=32, reduce=reduce),
        until=4,
    )
    status, errors = finished(mpi_command(order))
    assert status == 0, errors
    return [report.noise for report in epochs_of(order)]


def scale_of(noise: list[GradientNoise]) -> float:
    return GradientNoise(fmean(n.gradient for n in noise), fmean(n.variance for n in noise)).scale


def test_it_is_within_a_fifth_of_the_direct_estimate_and_the_same_bits_on_1_2_and_4_ranks(
    tmp_path, direct
) -> None:
    one, two, four = (measured(tmp_path, world_size, "exact") for world_size in (1, 2, 4))
    assert len(one) == 4
    assert one == two == four
    assert scale_of(one) == pytest.approx(direct.scale, rel=0.2)


def test_ranks_that_add_in_place_measure_it_by_their_sums(tmp_path, direct) -> None:
    assert scale_of(measured(tmp_path, 4, "ddp")) == pytest.approx(direct.scale, rel=0.2)
