"""How samples are read: as whole micro-batches, from any of the usual kinds of data set.

A data set is one of these: an array or a tensor, a tuple or a dict of them with equal lengths, a
`torch.utils.data.TensorDataset`, any map-style `torch.utils.data.Dataset` (samples are read one by one, or by
its ``__getitems__``, and collated), a `Readable` (reads many samples at once, and may be `Ordered`), or a
`Blockwise` (too large for memory: `parsl_rasda.data.open_shards`). What it is, its type says: a ``Dataset``
may have a `shape` or a method `read` besides.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from parsl_rasda.errors import TrainingError
from parsl_rasda.runtime.engine.batches import Batch, as_tensors, collate, is_array
from parsl_rasda.runtime.engine.replicas import seed_of
from parsl_rasda.user_modules import add_user_folders_of_parent

add_user_folders_of_parent()  # a worker that was not forked imports this before the data set's module


@runtime_checkable
class Readable(Protocol):
    """A data set that reads many samples at once."""

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def read(self, indices: list[int]) -> Batch:
        """Return these samples, in this order, as one batch, whose first dimension counts samples."""
        ...


class Order(Protocol):
    """All samples once, in the order of an epoch. A list of their numbers is one."""

    def __getitem__(self, part: slice, /) -> Sequence[int]:
        """Return the numbers of some consecutive samples."""
        ...


@runtime_checkable
class Ordered(Protocol):
    """A data set that chooses the order, because it is fast only if neighbours are read together."""

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def order(self, seed: int, epoch: int) -> Order:
        """Return the order of an epoch, a function of the arguments alone."""
        ...


@runtime_checkable
class Blockwise(Ordered, Protocol):
    """A data set that chooses the order and reads ahead by itself."""

    def stream(self, reads: Iterable[Sequence[int]], *, streams: int) -> Iterator[Batch]:
        """Yield a batch for each list of neighbours in the order.

        It may read ahead in a thread, and must not use global random numbers.

        Args:
            reads: The samples of each batch.
            streams: The number of places in the order from which the lists come in turn.
        """
        ...


class Samples:
    """Any data set, as one that reads many samples at once. It can be pickled if the data set can.

    Attributes:
        read: Returns samples, by their numbers, as one batch.
        ordered: The data set if it is `Ordered`, or None.
        blockwise: The data set if it is `Blockwise`, or None.
        is_plain: Whether it is arrays in memory: to read those draws no random numbers.
        given: The data set itself.
    """

    def __init__(self, dataset: Any) -> None:
        source = _Columns.of(dataset)
        self.given, self.is_plain = dataset, source is not None
        self.blockwise: Blockwise | None = None
        self.ordered: Ordered | None = None
        self.read: Callable[[list[int]], Batch]
        if source is not None:
            self.length, self.read = len(source), source.read
            return
        is_readable, is_blockwise = _is_a(Readable, dataset), _is_a(Blockwise, dataset)
        if not (is_readable or is_blockwise):
            _refuse_unfit(dataset)
        self.length = len(dataset)
        if is_blockwise:
            self.blockwise = dataset
        if is_readable or is_blockwise:
            self.ordered = dataset if _is_a(Ordered, dataset) else None
            self.read = _Reading(dataset).read
        else:
            self.read = _OneByOne(dataset).read

    def __len__(self) -> int:
        return self.length

    def order(self, seed: int, epoch: int) -> Order:
        """Return the order of an epoch: the data set's own, or a random one."""
        if self.ordered is not None:
            return self.ordered.order(seed, epoch)
        generator = torch.Generator().manual_seed(seed_of(seed, "order", epoch))
        order: list[int] = torch.randperm(self.length, generator=generator).tolist()
        return order


def _is_a(protocol: type, dataset: Any) -> bool:
    """Whether a data set is of a kind: it says so, or has its methods and cannot be anything else.

    A ``Dataset`` of torch, and whatever is indexed, may have methods of these names for itself.
    """
    kind = type(dataset)
    if protocol in kind.__mro__:
        return True
    if protocol is not Ordered and (_is_indexed(kind) or issubclass(kind, IterableDataset)):
        return False
    wanted = [name for name in ("read", "stream", "order") if hasattr(protocol, name)]
    return all(callable(getattr(kind, name, None)) for name in ("__len__", *wanted))


def _is_indexed(kind: type) -> bool:
    own = getattr(kind, "__getitem__", None)
    return own is not None and own is not Dataset.__getitem__


def _refuse_unfit(dataset: Any) -> None:
    kind = type(dataset)
    is_mapped = not issubclass(kind, IterableDataset | DataLoader | str | bytes | Mapping)
    is_mapped = is_mapped and hasattr(kind, "__len__")
    if is_mapped and (_is_indexed(kind) or hasattr(kind, "__getitems__")):
        return
    what = f"A {kind.__name__} is not a data set that replicas can share"
    if issubclass(kind, IterableDataset):
        what += ": its samples (it is an IterableDataset) come in an order of their own"
    elif issubclass(kind, DataLoader):
        what += ": it has cut its samples into batches already; give its data set"
    raise TrainingError(
        f"{what}.",
        "Give arrays, a map-style Dataset with __len__, shards (parsl_rasda.data.open_shards), or an object "
        "with __len__ and read(indices).",
    )


class _Columns:
    """Arrays of one length, in a structure that each batch has, too: alone, in a tuple, or in a dict."""

    def __init__(self, arrays: Any) -> None:
        self._arrays = as_tensors(arrays)
        parts = self._arrays.values() if isinstance(self._arrays, Mapping) else self._arrays
        parts = [self._arrays] if isinstance(self._arrays, Tensor) else list(parts)
        lengths = {len(part) for part in parts}
        if len(lengths) > 1:
            raise TrainingError(
                f"The arrays of the data set have lengths {sorted(lengths)}.", "Make them equal."
            )
        self._length = lengths.pop()

    @classmethod
    def of(cls, dataset: Any) -> Self | None:
        """Return a data set as columns if it is some."""
        if isinstance(dataset, TensorDataset) and type(dataset).__getitem__ is TensorDataset.__getitem__:
            return cls(tuple(dataset.tensors))
        if isinstance(dataset, Dataset):
            return None
        if is_array(dataset):
            return cls(dataset)
        if not isinstance(dataset, tuple | list | Mapping) or not dataset:
            return None
        parts = list(dataset.values() if isinstance(dataset, Mapping) else dataset)
        columns = [part for part in parts if is_array(part) and len(part.shape)]
        if not columns:
            return None
        if len(columns) < len(parts):
            raise TrainingError(
                "Some columns of the data set are arrays of numbers, and others are not.",
                "Give a Dataset whose samples have what else there is.",
            )
        if isinstance(dataset, list) and len(parts) > 1 and len({tuple(part.shape) for part in parts}) == 1:
            raise TrainingError(
                f"A list of {len(parts)} arrays of one shape may be samples, or columns.",
                "Give torch.stack(samples), or a tuple of columns.",
            )
        return cls(tuple(dataset) if isinstance(dataset, list) else dataset)

    def __len__(self) -> int:
        return self._length

    def read(self, indices: list[int]) -> Batch:
        """Return some rows of each column."""
        match self._arrays:
            case Tensor():
                return self._arrays[indices]
            case Mapping():
                return {key: part[indices] for key, part in self._arrays.items()}
            case _:
                rows = [part[indices] for part in self._arrays]
                return type(self._arrays)(*rows) if hasattr(self._arrays, "_fields") else tuple(rows)


@dataclass(frozen=True, slots=True)
class _Reading:
    """A `Readable`."""

    dataset: Any

    def read(self, indices: list[int]) -> Batch:
        """Return samples as the data set reads them."""
        return as_tensors(self.dataset.read(indices))


@dataclass(frozen=True, slots=True)
class _OneByOne:
    """A map-style data set."""

    dataset: Any

    def read(self, indices: list[int]) -> Batch:
        """Return samples, collated; fetched at once if the data set can, as a ``DataLoader`` would."""
        at_once = getattr(self.dataset, "__getitems__", None)
        return collate(at_once(indices) if at_once else [self.dataset[i] for i in indices])


def seed_everything(seed: int, device: torch.device | None) -> None:
    """Seed the global generators of Python, NumPy, torch and the device."""
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed & 0xFFFFFFFF)
    torch.default_generator.manual_seed(seed)
    if device is not None and device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)
