"""How samples are read: as whole micro-batches, from any of the usual kinds of data set.

A data set is one of these: an array or a tensor, a tuple of them with equal lengths, a
`torch.utils.data.TensorDataset`, a `Readable` (reads many samples at once, and may be `Ordered`), a
`Blockwise` (too large for memory: `parsl_rasda.data.open_shards`), or any map-style
`torch.utils.data.Dataset` (samples are read one by one and collated).
"""

from __future__ import annotations

import random
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch.utils.data import DataLoader, Dataset, Sampler, TensorDataset, default_collate

from parsl_rasda.errors import TrainingError
from parsl_rasda.runtime.engine.replicas import seed_of

Batch: TypeAlias = Any  # what a data set yields: a tensor, a tuple or a dict of tensors
Read: TypeAlias = tuple[int, Sequence[int]]  # a seed and the samples of one batch


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
    """Any data set, as one that reads many samples at once.

    Attributes:
        ordered: The data set if it is `Ordered`, or None.
        blockwise: The data set if it is `Blockwise`, or None.
    """

    def __init__(self, dataset: Any) -> None:
        self.read: Callable[[list[int]], Batch]
        self.blockwise = dataset if isinstance(dataset, Blockwise) else None
        is_ordered = isinstance(dataset, Readable | Blockwise) and isinstance(dataset, Ordered)
        self.ordered: Ordered | None = dataset if is_ordered else None
        if isinstance(dataset, TensorDataset):
            dataset = dataset.tensors
        if isinstance(dataset, tuple | list) and dataset and all(hasattr(part, "shape") for part in dataset):
            tensors = tuple(torch.as_tensor(part) for part in dataset)
            lengths = {len(part) for part in tensors}
            if len(lengths) > 1:
                raise TrainingError(
                    f"The arrays of the data set have lengths {sorted(lengths)}.", "Make them equal."
                )
            self.length = lengths.pop()
            self.read = lambda indices: tuple(part[indices] for part in tensors)
        elif hasattr(dataset, "shape"):
            tensor = torch.as_tensor(dataset)
            self.length = len(tensor)
            self.read = lambda indices: tensor[indices]
        elif self.blockwise is not None:
            self.length = len(self.blockwise)
        elif isinstance(dataset, Readable):
            self.length = len(dataset)
            self.read = lambda indices: _as_tensors(dataset.read(indices))
        elif hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
            self.length = len(dataset)
            self.read = lambda indices: default_collate([dataset[i] for i in indices])
        else:
            raise TrainingError(
                f"A {type(dataset).__name__} is not a data set that replicas can share.",
                "Give arrays, a map-style Dataset, or an object with __len__ and read(indices).",
            )

    def __len__(self) -> int:
        return self.length

    def order(self, seed: int, epoch: int) -> Order:
        """Return the order of an epoch: the data set's own, or a random one."""
        if self.ordered is not None:
            return self.ordered.order(seed, epoch)
        generator = torch.Generator().manual_seed(seed_of(seed, "order", epoch))
        order: list[int] = torch.randperm(self.length, generator=generator).tolist()
        return order


class _Batches(Dataset[Batch]):
    """A batch for each `Read`. The read brings the seed, so any process may read it."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples

    def __getitem__(self, read: Any) -> Batch:  # a Read, where torch expects an int
        seed, indices = read
        seed_everything(seed, None)
        return self._samples.read(list(indices))


class _Reads(Sampler[Any]):
    """The reads, as a sampler of torch."""

    def __init__(self, reads: Iterable[Read]) -> None:
        self._reads = reads

    def __iter__(self) -> Iterator[Read]:
        return iter(self._reads)


def read_all(
    samples: Samples, reads: Iterable[Read], device: torch.device, *, workers: int = 0, streams: int = 1
) -> Iterator[Batch]:
    """Yield a batch on the device for each read.

    Args:
        samples: The data set.
        reads: What to read. They are taken one by one, so there may be very many.
        device: The device of the batches.
        workers: Number of processes that read ahead; a `Blockwise` data set reads ahead by itself.
        streams: The number of places in the order from which the reads come in turn.
    """
    batches: Iterator[Batch]
    if samples.blockwise is not None:
        batches = samples.blockwise.stream((indices for _, indices in reads), streams=streams)
        batches = map(_as_tensors, batches)
    elif workers:
        todo, pinned = _Reads(reads), device.type == "cuda"
        loader = DataLoader(
            _Batches(samples),
            batch_size=None,
            sampler=todo,
            num_workers=workers,
            pin_memory=pinned,
            worker_init_fn=_ignore_sigterm,
        )
        batches = iter(loader)
    else:
        batches = map(_Batches(samples).__getitem__, reads)
    for batch in batches:
        yield to_device(batch, device)


def _ignore_sigterm(_worker: int) -> None:
    """Ignore SIGTERM: if all processes of a job get it, the rank saves, and needs its batches for that."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def seed_everything(seed: int, device: torch.device | None) -> None:
    """Seed the global generators of Python, NumPy, torch and the device."""
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed & 0xFFFFFFFF)
    torch.default_generator.manual_seed(seed)
    if device is not None and device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return a batch whose tensors are on the device."""
    match batch:
        case torch.Tensor():
            return batch.to(device, non_blocking=True)
        case dict():
            return {key: to_device(value, device) for key, value in batch.items()}
        case tuple() | list():
            parts = [to_device(value, device) for value in batch]
            is_named = hasattr(batch, "_fields")
            return type(batch)(*parts) if is_named else type(batch)(parts)
        case _:
            return batch


def _as_tensors(batch: Batch) -> Batch:
    match batch:
        case dict():
            return {key: _as_tensors(value) for key, value in batch.items()}
        case tuple() | list():
            return type(batch)(_as_tensors(value) for value in batch)
        case _:
            return torch.as_tensor(batch) if hasattr(batch, "shape") else batch
