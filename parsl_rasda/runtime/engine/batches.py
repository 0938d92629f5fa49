"""Batches of any structure: collated from samples and moved to a device, by torch's own rules.

A batch is a tensor, or a mapping, a tuple (named or not), a list or a dataclass of batches. Whatever else is
in it (strings, numbers, None) stays as it is. Beyond torch's rules, dataclasses are collated field by field.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn
from torch.utils.data._utils.collate import collate as torch_collate
from torch.utils.data._utils.collate import default_collate_fn_map

Batch: TypeAlias = Any  # what a data set yields: a tensor, or a structure of tensors
_NUMERIC = "biufc"  # kinds of NumPy's types that tensors have, too


class _DataclassType(type):
    def __instancecheck__(cls, value: object) -> bool:
        return dataclasses.is_dataclass(value) and not isinstance(value, type)


class _AnyDataclass(metaclass=_DataclassType):
    """Every dataclass is an instance of it, as `torch_collate` looks for types."""


def collate(samples: Sequence[Any]) -> Batch:
    """Return samples as one batch, whose tensors have them along their first dimension."""
    return torch_collate(samples, collate_fn_map=_COLLATORS)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return a batch whose tensors are on the device."""

    def move(part: Any) -> Any:
        if isinstance(part, torch.Tensor):
            return part.to(device, non_blocking=True)
        moves_itself = callable(getattr(type(part), "to", None)) and not isinstance(part, nn.Module)
        return part.to(device) if moves_itself else None

    return _mapped(batch, move)


def pinned(batch: Batch) -> Batch:
    """Return a batch whose tensors are in pinned memory, from which a device copies while it computes."""

    def pin(part: Any) -> Any:
        if isinstance(part, torch.Tensor):
            is_there = part.device.type != "cpu" or part.layout is not torch.strided or part.is_pinned()
            return part if is_there else part.pin_memory()
        return part.pin_memory() if callable(getattr(type(part), "pin_memory", None)) else None

    return _mapped(batch, pin)


def as_tensors(batch: Batch) -> Batch:
    """Return a batch whose arrays are tensors."""
    return _mapped(batch, lambda part: _as_tensor(part) if is_array(part) else None)


def is_array(value: object) -> bool:
    """Return whether a value is a tensor, or an array of numbers that can be one."""
    if isinstance(value, torch.Tensor):
        return True
    if isinstance(value, np.ndarray | np.generic):
        return value.dtype.kind in _NUMERIC
    return all(hasattr(type(value), name) for name in ("__array__", "shape", "dtype"))


def _as_tensor(array: Any) -> torch.Tensor:
    is_known = isinstance(array, torch.Tensor | np.ndarray)
    return torch.as_tensor(array if is_known else np.asarray(array))


def _mapped(batch: Batch, act: Callable[[Any], Any]) -> Batch:
    """Return a batch in which parts are replaced by what ``act`` returns of them, unless it is None."""
    found = act(batch)
    if found is not None:
        return found
    match batch:
        case str() | bytes() | type():
            return batch
        case Mapping():
            return _like_mapping(batch, {key: _mapped(value, act) for key, value in batch.items()})
        case tuple() if hasattr(batch, "_fields"):
            return type(batch)(*(_mapped(value, act) for value in batch))
        case Sequence():
            return _like_sequence(batch, [_mapped(value, act) for value in batch])
        case _AnyDataclass():
            return _with_fields(batch, lambda name: _mapped(getattr(batch, name), act))
        case _:
            return batch


def _like_mapping(like: Mapping[Any, Any], values: dict[Any, Any]) -> Mapping[Any, Any]:
    if type(like) is dict:
        return values
    try:
        if isinstance(like, MutableMapping):
            clone = copy.copy(like)  # it may have more than its items
            clone.update(values)
            return clone
        return type(like)(values)  # type: ignore[call-arg] # as mappings are made, usually
    except TypeError:
        return values


def _like_sequence(like: Sequence[Any], values: list[Any]) -> Sequence[Any]:
    try:
        return type(like)(values)  # type: ignore[call-arg] # as sequences are made, usually
    except TypeError:  # `range`, for one
        return values


def _with_fields(like: Any, value_of: Callable[[str], Any]) -> Any:
    """Return a copy of a dataclass with other values of its fields, whatever its ``__init__`` takes."""
    clone = copy.copy(like)
    for field in dataclasses.fields(like):
        object.__setattr__(clone, field.name, value_of(field.name))  # it may be frozen
    return clone


def _collate_dataclasses(samples: Sequence[Any], *, collate_fn_map: Any = None) -> Any:
    return _with_fields(
        samples[0],
        lambda name: torch_collate([getattr(s, name) for s in samples], collate_fn_map=collate_fn_map),
    )


_COLLATORS = {**default_collate_fn_map, _AnyDataclass: _collate_dataclasses}
