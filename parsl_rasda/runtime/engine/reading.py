"""How batches come from a data set to the device: who reads them, and how far ahead.

==========================  ===========================  =====================================================
Data set                    ``workers=0``                ``workers=N``
==========================  ===========================  =====================================================
arrays in memory            a thread, on accelerators    processes
shards (`Blockwise`)        threads of its own           the same threads
all others                  the training thread          processes, which live on over epochs
==========================  ===========================  =====================================================

To an accelerator all of them are copied from pinned memory, while it computes. A thread reads only what draws
no random numbers, because their generators belong to the whole process.
"""

from __future__ import annotations

import hashlib
import pickle
import signal
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from parsl_rasda.read_ahead import read_ahead
from parsl_rasda.runtime.engine.batches import Batch, as_tensors, pinned, to_device
from parsl_rasda.runtime.engine.datasets import Samples, seed_everything
from parsl_rasda.socket_folder import shorten_paths

Read: TypeAlias = tuple[int, Sequence[int]]  # a seed and the samples of one batch
Pin: TypeAlias = Callable[[Batch], Batch]

BATCHES_AHEAD = 2  # in pinned memory, read by a thread
LARGE_BYTES = 2**20  # a read-only array from this size on counts as unchanged while it is the same object
MOST_BYTES = 2**26  # of a data set that are compared by their contents


class _Batches(Dataset[Batch]):
    """A batch for each `Read`. The read brings the seed, so any process may read it."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples

    def __getitem__(self, read: Any) -> Batch:  # a Read, where torch expects an int
        seed, indices = read
        seed_everything(seed, None)
        return self._samples.read(list(indices))


class _Reads(Sampler[Any]):
    """The reads of the present epoch, as a sampler of torch."""

    def __init__(self) -> None:
        self.reads: Iterable[Read] = ()

    def __iter__(self) -> Iterator[Read]:
        return iter(self.reads)


class _Workers:
    """Processes that read ahead, for one data set as it was when they were started."""

    def __init__(self, samples: Samples, count: int, *, is_pinned: bool, sign: Signature | None) -> None:
        shorten_paths()  # the training function may have set a TMPDIR of its own
        self._dataset, self._count, self._sign = samples.given, count, sign
        self._todo = _Reads()
        self._loader = DataLoader(
            _Batches(samples),
            batch_size=None,
            sampler=self._todo,
            num_workers=count,
            pin_memory=is_pinned,
            worker_init_fn=_ignore_sigterm,
            persistent_workers=sign is not None,
        )

    def can_read(self, samples: Samples, count: int, sign: Signature | None) -> bool:
        """Whether they have this data set as it is now."""
        is_same = self._dataset is samples.given and self._count == count
        return is_same and sign is not None and self._sign is not None and self._sign.is_of_same(sign)

    def read(self, reads: Iterable[Read]) -> Iterator[Batch]:
        """Yield a batch for each read."""
        self._todo.reads = reads
        yield from self._loader


class Reader:
    """Reads the batches of a trial, and keeps the processes that do.

    Args:
        device: Of the batches.
        pin: Puts a batch where an accelerator can copy it while it computes; None for the CPU.
    """

    def __init__(self, device: torch.device, pin: Pin | None = None) -> None:
        self._device = device
        self._pin = pinned if pin is None and device.type != "cpu" else pin
        self._workers: _Workers | None = None

    def read(
        self, samples: Samples, reads: Iterable[Read], *, workers: int = 0, streams: int = 1
    ) -> Iterator[Batch]:
        """Yield a batch on the device for each read.

        Args:
            samples: The data set.
            reads: What to read. They are taken one by one, so there may be very many.
            workers: Number of processes that read ahead; a `Blockwise` data set reads ahead by itself.
            streams: The number of places in the order from which the reads come in turn.
        """
        for batch in self._on_host(samples, reads, workers, streams):
            yield to_device(batch, self._device)

    def close(self) -> None:
        """End the processes that read ahead, if there are any."""
        self._workers = None  # torch ends them with their loader

    def _on_host(
        self, samples: Samples, reads: Iterable[Read], workers: int, streams: int
    ) -> Iterator[Batch]:
        pin = self._pin
        if samples.blockwise is not None:
            stream = samples.blockwise.stream((indices for _, indices in reads), streams=streams)
            batches = map(as_tensors, stream)
            return self._ahead(batches) if pin else batches
        if workers:
            return self._workers_for(samples, workers).read(reads)
        if pin and samples.is_plain:
            return self._ahead(samples.read(list(indices)) for _, indices in reads)
        batches = map(_Batches(samples).__getitem__, reads)
        return map(pin, batches) if pin else batches

    def _ahead(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Let a thread read and pin some batches ahead."""
        assert self._pin is not None  # noqa: S101 - only then is there something to gain
        pin = self._pin

        def read() -> Iterator[Batch]:
            if self._device.type != "cpu":  # a new thread would pin for the first device, and set that up
                torch.get_device_module(self._device).set_device(self._device)
            yield from map(pin, batches)

        return read_ahead(read(), BATCHES_AHEAD)

    def _workers_for(self, samples: Samples, count: int) -> _Workers:
        sign = signature(samples.given)
        if self._workers is None or not self._workers.can_read(samples, count, sign):
            self._workers = None  # the old ones end before new ones begin
            self._workers = _Workers(samples, count, is_pinned=self._device.type != "cpu", sign=sign)
        return self._workers


def _ignore_sigterm(_worker: int) -> None:
    """Ignore SIGTERM: if all processes of a job get it, the rank saves, and needs its batches for that."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@dataclass(frozen=True, slots=True)
class Signature:
    """What tells whether a data set has changed.

    Attributes:
        digest: Of all but tensors and large read-only arrays.
        replaced: These. Their addresses would not do: new ones often lie where old ones lay.
    """

    digest: bytes
    replaced: tuple[weakref.ref[Any], ...]

    def is_of_same(self, other: Signature) -> bool:
        """Whether the other one is of the same data set, unchanged."""
        if self.digest != other.digest or len(self.replaced) != len(other.replaced):
            return False
        pairs = zip(self.replaced, other.replaced, strict=True)
        return all((mine := one()) is not None and mine is two() for one, two in pairs)


def signature(dataset: Any) -> Signature | None:
    """Return what tells whether a data set has changed, or None if it cannot be compared.

    Processes that read ahead have a copy. If the function changes its data set between two epochs
    (``data.set_epoch(epoch)``), they need a new one. A change is not seen in attributes of the class, in
    globals, and in tensors that are changed past torch (``tensor.data``, ``tensor.numpy()``).

    Returns:
        None if it cannot be pickled, or has more than `MOST_BYTES` besides tensors and read-only arrays.
    """
    digesting = _Digesting()
    signing = _Signing(digesting)
    try:
        signing.dump(dataset)
        return Signature(digesting.digest.digest(), tuple(weakref.ref(thing) for thing in signing.replaced))
    except Exception:  # noqa: BLE001 - whatever a data set raises, it cannot be compared
        return None


@dataclass(slots=True)
class _Digesting:
    """A file that keeps nothing of what is written."""

    digest: Any = field(default_factory=lambda: hashlib.blake2b(digest_size=16))
    bytes_left: int = MOST_BYTES

    def write(self, data: Any) -> None:
        self.bytes_left -= memoryview(data).nbytes
        if self.bytes_left < 0:
            raise ValueError("more than is compared by its contents")
        self.digest.update(data)


class _Signing(pickle.Pickler):
    """Pickles all but tensors and large arrays that nobody can change, which it keeps."""

    def __init__(self, file: _Digesting) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.replaced: list[Any] = []

    def persistent_id(self, obj: Any) -> Any:
        """Return what stands for a tensor or a large array; None for anything else."""
        if isinstance(obj, torch.Tensor):
            self.replaced.append(obj)
            return ("tensor", obj.data_ptr(), tuple(obj.shape), obj.stride(), str(obj.dtype), obj._version)
        if isinstance(obj, np.ndarray) and obj.nbytes >= LARGE_BYTES and not obj.dtype.hasobject:
            if _is_fixed(obj):
                self.replaced.append(obj)
                return ("array", obj.ctypes.data, obj.shape, obj.strides, str(obj.dtype))
            if obj.nbytes > MOST_BYTES:  # before it is copied
                raise ValueError("an array that may change, too large to be compared")
        return None


def _is_fixed(array: np.ndarray[Any, Any]) -> bool:
    """Whether neither an array nor one that it is a view of can be written to."""
    owner: Any = array
    while isinstance(owner, np.ndarray):
        if owner.flags.writeable:
            return False
        owner = owner.base
    return True
