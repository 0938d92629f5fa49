"""The exchange between ranks adds along the tree that is defined by the replicas alone."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from parsl_rasda.errors import TrainingError
from parsl_rasda.runtime.engine import exact_tree, flat
from parsl_rasda.runtime.engine.exact_tree import ExactTree
from tests.unit.runtime import stand_ins
from tests.unit.runtime.stand_ins import on_each_rank

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128)
SPECIAL = (0.0, -0.0, float("inf"), float("-inf"), float("nan"), 1e-40, 1e30)
VALUE_DTYPES = (torch.float32, torch.float64, torch.float16)


def added(left, right):
    """One addition of the tree; None is a leaf without a value."""
    if left is None or right is None:
        return right if left is None else left
    if left.is_complex():  # by components
        return torch.view_as_complex(torch.view_as_real(left) + torch.view_as_real(right))
    return left + right


def tree(leaves):
    """The reference: neighbours are added, then neighbouring sums."""
    while len(leaves) > 1:
        leaves = [added(*leaves[i : i + 2]) for i in range(0, len(leaves), 2)]
    return leaves[0]


def bits(tensor):
    """Return the bits; those of a NaN say that it is one."""
    if tensor is None:
        return None
    real = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    numbers = real.contiguous().clone().flatten()
    numbers[numbers.isnan()] = float("nan")
    return numbers.view(torch.uint8).tolist()


def random_numbers(shape, dtype, generator):
    real = flat.real_type(dtype)
    numbers = torch.randn(
        (*shape, 2) if dtype.is_complex else shape, generator=generator, dtype=torch.float64
    )
    numbers *= 10 ** torch.randint(-3, 4, numbers.shape, generator=generator).double()
    special = torch.tensor(SPECIAL, dtype=torch.float64)
    chosen = special[torch.randint(0, len(SPECIAL), numbers.shape, generator=generator)]
    is_special = torch.rand(numbers.shape, generator=generator) < 0.2
    numbers = torch.where(is_special, chosen, numbers).to(real)
    return torch.view_as_complex(numbers) if dtype.is_complex else numbers


@st.composite
def steps(draw):
    """Replicas, their gradients (some are absent) and values of buffers, of random shapes and types."""
    replicas = 2 ** draw(st.integers(0, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shapes = draw(st.lists(st.lists(st.integers(0, 5), max_size=3), min_size=1, max_size=6))
    dtypes = [draw(st.sampled_from(DTYPES)) for _ in shapes]
    values = draw(st.lists(st.tuples(st.integers(0, 9), st.sampled_from(VALUE_DTYPES)), max_size=3))
    with_samples = draw(st.integers(1, replicas))  # the last replicas may have none
    never = draw(st.sets(st.integers(0, len(shapes) - 1)))

    def leaf(replica):
        if replica >= with_samples:
            return [None] * len(shapes), None
        grads = [
            None
            if i in never or torch.rand((), generator=generator) < 0.2
            else random_numbers(shape, dtype, generator)
            for i, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=True))
        ]
        return grads, [random_numbers((size,), dtype, generator) for size, dtype in values]

    leaves = [leaf(replica) for replica in range(replicas)]
    parameters = [torch.zeros(shape, dtype=dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
    return parameters, leaves, [torch.empty(size, dtype=dtype) for size, dtype in values]


def reduced(group, parameters, leaves, means):
    """Run one step on a rank, twice, since its vectors are used again; returns gradients and means."""
    mine = [nn.Parameter(parameter.clone()) for parameter in parameters]
    means = [mean.clone() for mean in means]
    carried = len(leaves) // group.size
    reduction = ExactTree(group, mine, carried)
    own = [leaf for leaf in leaves[group.rank * carried :][:carried] if leaf[1] is not None]
    for is_raised in (False, True):
        for number, (grads, values) in enumerate(own, start=1):
            reduction.begin()
            reduction.listen(last=number == len(own))
            arrive(mine, grads)
            reduction.add(values, 1.0, 1)
        halt = is_raised and group.rank == group.size - 1
        assert reduction.finish(means, halt=halt) is is_raised
    return [parameter.grad for parameter in mine], means


def arrive(parameters, grads):
    """What a backward pass does, the last parameter first."""
    for parameter, grad in reversed(list(zip(parameters, grads, strict=True))):
        if grad is not None:
            parameter.backward(grad.clone())


@settings(deadline=None)
@given(step=steps(), levels=st.integers(0, 4), bucket_bytes=st.sampled_from([1, 40, 10**6]))
def test_the_sum_has_the_bits_of_the_tree_at_any_width_and_in_any_buckets(
    tmp_path_factory, step, levels, bucket_bytes
) -> None:
    parameters, leaves, means = step
    size = min(2**levels, len(leaves))
    grads = [tree([leaf[0][i] for leaf in leaves]) for i in range(len(parameters))]
    sums = [
        tree([None if leaf[1] is None else leaf[1][i] * 1.0 for leaf in leaves]) for i in range(len(means))
    ]
    with pytest.MonkeyPatch.context() as context:
        context.setattr(flat, "BUCKET_BYTES", bucket_bytes)
        found = on_each_rank(
            size, tmp_path_factory.mktemp("ranks"), lambda group: reduced(group, parameters, leaves, means)
        )
    for own, own_means in found:
        assert [bits(grad) for grad in own] == [bits(grad) for grad in grads]
        assert [bits(mean) for mean in own_means] == [bits(total) for total in sums]


def trained(model, forward, tmp_path, *, steps=3, size=2):
    """Let two ranks add the gradients of `forward`; returns rank 0's gradients after the last step."""

    def work(group):
        own = copy.deepcopy(model)
        reduction = ExactTree(group, list(own.parameters()), 2)
        for step in range(steps):
            for replica in range(2):
                reduction.begin()
                loss = forward(own, torch.full((2, 4), 1.0 + group.rank + replica), step)
                reduction.listen(last=replica == 1)
                loss.backward()
                reduction.add([], 1.0, 2)
            reduction.finish([], halt=False)
        return [parameter.grad for parameter in own.parameters()]

    return on_each_rank(size, tmp_path, work)[0]


def small_network():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))


def plainly(model, x, step):
    return model(x).square().sum()


def twice(model, x, step):
    """As a checkpointed part that is used twice: its gradients arrive in two inner backward passes."""
    for _ in range(2):
        x = checkpoint(model[0], x.requires_grad_(), use_reentrant=True)
    return model[1](x).square().sum()


def test_gradients_that_arrive_twice_are_added_after_the_backward_pass(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(flat, "LEAST_BUCKET_BYTES", 1)

    def without_checkpoints(model, x, step):
        return model[1](model[0](model[0](x))).square().sum()

    found = trained(small_network(), twice, tmp_path)
    expected = trained(small_network(), without_checkpoints, tmp_path)
    for grad, other in zip(found, expected, strict=True):
        torch.testing.assert_close(grad, other)


def test_gradients_that_arrive_twice_only_later_are_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(flat, "LEAST_BUCKET_BYTES", 1)
    monkeypatch.setattr(stand_ins, "PATIENCE_S", 0.5)
    with pytest.raises(TrainingError, match="arrived twice"):
        trained(small_network(), lambda *given: (twice if given[2] else plainly)(*given), tmp_path)


def test_gradients_that_arrive_twice_in_their_first_pass_are_added_after_it(tmp_path, monkeypatch) -> None:
    """As those of a generator that is not trained in the first step."""
    monkeypatch.setattr(flat, "LEAST_BUCKET_BYTES", 1)

    def only_the_last(model, x, step):
        return model[1](model[0](x).detach()).square().sum()

    found = trained(small_network(), lambda *given: (twice if given[2] else only_the_last)(*given), tmp_path)
    expected = trained(small_network(), twice, tmp_path)
    for grad, other in zip(found, expected, strict=True):
        torch.testing.assert_close(grad, other)


def test_a_backward_pass_of_the_user_before_the_step_counts_too(tmp_path) -> None:
    def with_penalty(model, x, step):
        model[0].weight.square().sum().backward()
        return plainly(model, x, step)

    plain = trained(small_network(), plainly, tmp_path)
    found = trained(small_network(), with_penalty, tmp_path)
    torch.testing.assert_close(found[0], plain[0] + 4 * 2 * small_network()[0].weight)


def test_frozen_parameters_keep_no_bucket_waiting_and_have_no_gradient(tmp_path) -> None:
    def unfrozen_later(model, x, step):
        model[1].requires_grad_(step == 2)
        return plainly(model, x, step)

    frozen = trained(small_network(), unfrozen_later, tmp_path, steps=2)
    assert [grad is None for grad in frozen] == [False, False, True, True]
    found = trained(small_network(), unfrozen_later, tmp_path)
    for grad, other in zip(found, trained(small_network(), plainly, tmp_path), strict=True):
        assert torch.equal(grad, other)


def test_gradients_have_the_strides_that_autograd_gives_them(tmp_path) -> None:
    model = nn.Conv2d(4, 3, 2).to(memory_format=torch.channels_last)

    def forward(model, x, step):
        return model(x.repeat(2, 2).reshape(1, 4, 2, 4)).square().sum()

    found = trained(model, forward, tmp_path)
    assert found[0].stride() == model.weight.stride()
    assert found[0].data_ptr() % flat.ALIGNMENT == 0


class _Joined(nn.Module):
    """The gradients of its parts are views of one tensor, so that the second lies unaligned."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ParameterList(torch.ones(size) for size in (1, 3))

    def forward(self, x):
        return x * torch.cat(list(self.parts))


@pytest.mark.parametrize("size", [1, 2])
def test_gradients_lie_aligned_at_any_width_also_those_whose_norms_are_taken(
    tmp_path, monkeypatch, size
) -> None:
    normed = []
    monkeypatch.setattr(exact_tree, "norms", lambda grads: normed.extend(grads) or flat.norms(grads))
    found = trained(_Joined(), plainly, tmp_path, size=size)
    assert len(normed) == 3 * 2 * size * 2
    assert not any(grad.data_ptr() % flat.ALIGNMENT for grad in (*found, *normed))
