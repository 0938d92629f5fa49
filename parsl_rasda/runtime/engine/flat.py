"""Many tensors as few: vectors that hold the tensors of one type, and one call for a list of tensors.

A model has hundreds of small tensors. One call for each would keep a GPU waiting for its launches.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

ALIGNMENT = 64  # bytes: kernels that reduce unaligned tensors may add in another order
BUCKET_BYTES = 25 * 2**20  # as in DistributedDataParallel
LEAST_BUCKET_BYTES = 2**20
BUCKETS = 8  # at least, in all but small models, so that little is left when the backward pass ends


class Flat:
    """A vector with room for tensors of one type.

    Args:
        like: Tensors of one type, on one device.

    Attributes:
        vector: Real, also if the tensors are complex. Shape ``(elements,)``.
        views: Of the vector, with the shape and strides of each tensor.
    """

    def __init__(self, like: Sequence[Tensor]) -> None:
        places, end = [], 0
        per_element = 2 if like[0].is_complex() else 1
        per_line = ALIGNMENT // (like[0].element_size() // per_element)
        for tensor in like:
            places.append((end, end + tensor.numel() * per_element))
            end = -(-places[-1][1] // per_line) * per_line
        self.vector = torch.zeros(end, dtype=real_type(like[0].dtype), device=like[0].device)
        self.views = [_view(self.vector[a:b], tensor) for (a, b), tensor in zip(places, like, strict=True)]


def _view(part: Tensor, like: Tensor) -> Tensor:
    if like.is_complex():
        part = torch.view_as_complex(part.view(-1, 2))
    return part.as_strided(like.shape, dense_strides(like))


def dense_strides(tensor: Tensor) -> tuple[int, ...]:
    """Return the strides that autograd gives a tensor's gradient: its own, if those leave no gaps."""
    dense = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != dense:
            return torch.empty(tensor.shape, device="meta").stride()
        dense *= size
    return tensor.stride()


def aligned(tensor: Tensor) -> Tensor:
    """Return a tensor that lies as those of a `Flat` do: itself, or a copy."""
    return tensor if tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone()


def real_type(dtype: torch.dtype) -> torch.dtype:
    """Return the type of the real and the imaginary part."""
    return dtype.to_real() if dtype.is_complex else dtype


def as_real(tensor: Tensor) -> Tensor:
    """Return complex numbers as pairs: torch adds them by way of a product, which spoils -0 and inf."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def by_type(tensors: Iterable[Tensor]) -> list[list[int]]:
    """Return the positions of the tensors of each type."""
    groups: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    for position, tensor in enumerate(tensors):
        groups.setdefault((tensor.dtype, tensor.device), []).append(position)
    return list(groups.values())


def buckets(parameters: Sequence[Tensor]) -> list[list[int]]:
    """Return parameters of one type together, about in the order in which their gradients arrive.

    Returns:
        Positions, those of the last parameters first.
    """
    sizes = [parameter.numel() * parameter.element_size() for parameter in parameters]
    full = min(BUCKET_BYTES, max(LEAST_BUCKET_BYTES, sum(sizes) // BUCKETS))
    found: list[list[int]] = []
    for group in by_type(parameters):
        filled = full
        for position in reversed(group):
            if filled >= full:
                found.append([])
                filled = 0
            found[-1].append(position)
            filled += sizes[position]
    return sorted(found, key=lambda bucket: -bucket[0])


def copy_all(into: Sequence[Tensor], tensors: Sequence[Tensor]) -> None:
    """Copy tensors of any types into others of the same types."""
    for group in by_type(tensors):
        torch._foreach_copy_([into[i] for i in group], [tensors[i] for i in group])


def norms(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the Euclidean norm of each of some tensors of one type."""
    return tuple(torch._foreach_norm(list(tensors))) if tensors else ()


def sum_of_squares(numbers: Sequence[Tensor]) -> Tensor | float:
    """Return the sum of the squares of numbers of any types, in double precision."""
    parts = [torch.stack([numbers[i] for i in group]).double().square().sum() for group in by_type(numbers)]
    return sum(parts[1:], parts[0]) if parts else 0.0


def squared_norm(tensors: Sequence[Tensor]) -> Tensor | float:
    """Return the squared norm of all tensors together, in double precision."""
    each: dict[int, Tensor] = {}
    for group in by_type(tensors):
        each.update(zip(group, norms([tensors[i] for i in group]), strict=True))
    return sum_of_squares([each[i] for i in range(len(tensors))])
