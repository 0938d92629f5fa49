"""Data sets are known by their type, and batches may have any structure."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
from collections import OrderedDict, UserDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from parsl_rasda.errors import TrainingError
from parsl_rasda.runtime import local_trial
from parsl_rasda.runtime.engine.batches import collate, to_device
from parsl_rasda.runtime.engine.datasets import Readable, Samples
from parsl_rasda.runtime.engine.reading import MOST_BYTES, Reader, signature

CPU, META = torch.device("cpu"), torch.device("meta")


class Named(NamedTuple):
    x: Tensor
    name: str


@dataclass(frozen=True, slots=True)
class Record:
    x: Tensor
    tag: str


class Plain(Dataset):
    """Samples 0 to 7; everything else here is a trap."""

    shape = (8, 2)
    dtype = torch.float32
    order = 3

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Any:
        return float(index)

    def read(self, path: str) -> str:
        raise AssertionError("a method of the user's own")

    def stream(self) -> None:
        raise AssertionError("a method of the user's own")


class Indexed:
    """No Dataset, but indexed as one; `read` is its own."""

    shape = (8,)

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> float:
        return float(index)

    def read(self) -> None:
        raise AssertionError("a method of the user's own")


class AtOnce(Plain):
    def __getitem__(self, index: int) -> Any:
        raise AssertionError("read at once")

    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [{"x": float(i)} for i in indices]


class Declared(Readable):
    """A Readable that is indexed, too: it says what it is."""

    order = "of a polynomial"

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("many at once")

    def read(self, indices: list[int]) -> Any:
        return Named(np.asarray(indices, dtype=np.float64), "all")  # type: ignore[arg-type]


class Augmented(TensorDataset):
    def __getitem__(self, index: int) -> Any:
        return (self.tensors[0][index] + 100,)


@pytest.mark.parametrize("data", [Plain(), Indexed(), Subset(Plain(), range(8)), list(map(float, range(8)))])
def test_a_map_style_data_set_is_one_whatever_else_it_has(data) -> None:
    samples = Samples(data)
    assert len(samples) == 8
    assert samples.read([3, 1]).tolist() == [3.0, 1.0]
    assert samples.ordered is None


def test_samples_are_fetched_at_once_if_they_can_be() -> None:
    assert Samples(AtOnce()).read([2, 5])["x"].tolist() == [2.0, 5.0]


def test_a_data_set_that_says_that_it_is_readable_is() -> None:
    samples = Samples(Declared())
    found = samples.read([4])
    assert isinstance(found, Named)
    assert found.x.tolist() == [4.0]
    assert samples.ordered is None


def test_a_tensor_data_set_with_samples_of_its_own_is_asked_for_them() -> None:
    x = torch.arange(4.0)
    assert Samples(Augmented(x)).read([1])[0].tolist() == [101.0]
    assert Samples(TensorDataset(x)).read([1])[0].tolist() == [1.0]


def test_columns_give_batches_of_their_own_structure() -> None:
    x, y = torch.arange(4.0), np.arange(4)
    assert Samples({"x": x, "y": y}).read([2])["y"].tolist() == [2]
    assert Samples((x, y)).read([2, 3])[0].tolist() == [2.0, 3.0]
    assert Samples(x).read([1]).tolist() == [1.0]


class Endless(IterableDataset):
    def __iter__(self):
        return iter(range(8))


class NoLength(Dataset):
    def __getitem__(self, index: int) -> int:
        return index


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (Endless(), "IterableDataset"),
        (NoLength(), "NoLength"),
        (DataLoader(Plain()), "give its data set"),
        ("train.csv", "str"),
        ({"a": 1}, "dict"),
        ({1, 2}, "set"),
        ((torch.zeros(3), np.array(["a", "b", "c"])), "Some columns"),
        ([torch.zeros(3), torch.zeros(3)], "samples, or columns"),
    ],
)
def test_what_replicas_cannot_share_is_refused_in_words(data, words) -> None:
    with pytest.raises(TrainingError, match=words):
        Samples(data)


@pytest.mark.parametrize("data", [Plain(), Declared(), (torch.zeros(3), torch.ones(3)), {"x": torch.ones(3)}])
def test_samples_can_be_pickled_if_their_data_set_can(data) -> None:
    assert len(pickle.loads(pickle.dumps(Samples(data)))) == len(Samples(data))


# ------------------------------------------------------------------------------------------ batches


def test_samples_of_any_structure_are_collated_as_torch_does() -> None:
    samples = [
        {"n": Named(torch.tensor(i), "abc"[i]), "r": Record(torch.tensor([i]), "x"), "l": [i, (i, "s")]}
        for i in range(3)
    ]
    batch = collate(samples)
    assert isinstance(batch["n"], Named)
    assert list(batch["n"].name) == ["a", "b", "c"]
    assert isinstance(batch["r"], Record)
    assert batch["r"].x.tolist() == [[0], [1], [2]]
    assert list(batch["r"].tag) == ["x"] * 3
    assert batch["l"][0].tolist() == [0, 1, 2]


class Movable:
    def __init__(self, x: Tensor) -> None:
        self.x = x

    def to(self, device: torch.device) -> Movable:
        return Movable(self.x.to(device))


def test_all_tensors_of_a_batch_move_and_its_structure_stays() -> None:
    one = torch.zeros(2)
    batch = {
        "dict": OrderedDict(a=one),
        "user": UserDict(a=one),
        "named": Named(one, "n"),
        "record": Record(one, "r"),
        "tuple": (one, [one, "text", b"bytes", None, 3]),
        "movable": Movable(one),
        "packed": pack_sequence([one]),
    }
    moved = to_device(batch, META)
    assert isinstance(moved["dict"], OrderedDict)
    assert isinstance(moved["user"], UserDict)
    assert isinstance(moved["packed"], PackedSequence)
    assert moved["packed"].batch_sizes.device == CPU
    found = (
        moved["dict"]["a"],
        moved["user"]["a"],
        moved["named"].x,
        moved["record"].x,
        moved["tuple"][0],
        moved["tuple"][1][0],
        moved["movable"].x,
        moved["packed"].data,
    )
    assert {tensor.device for tensor in found} == {META}
    assert moved["tuple"][1][1:] == ["text", b"bytes", None, 3]
    assert batch["dict"]["a"].device == batch["user"]["a"].device == batch["record"].x.device == CPU


class Waves(Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Named:
        return Named(torch.full((3,), float(index)), str(index))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_processes_that_read_ahead_may_be_started_by_any_method(method) -> None:
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method(method, force=True)
    try:
        trial = local_trial({}, batch_size=4)
        model, _ = trial.prepare(nn.Linear(3, 1), torch.optim.SGD, lr=0.0)
        names = []
        for _ in trial.epochs():
            for batch in trial.batches(Waves(), workers=1):
                names += batch.name
                trial.step(model(batch.x).mean())
            trial.report(val_loss=0.0)
    finally:
        multiprocessing.set_start_method(before, force=True)
    assert sorted(names) == [str(i) for i in range(8)]


# ------------------------------------------------------------------------------------- how they are read


class Numbers(Dataset):
    """Samples that say which process has read them."""

    def __init__(self) -> None:
        self.large = np.zeros(2**20)
        self.shift, self.inner = 0, {"scale": torch.ones(1)}

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[float, int]:
        return index * float(self.inner["scale"]) + self.shift, os.getpid()


class _Unpicklable(Numbers):
    def __init__(self) -> None:
        super().__init__()
        self.transform = lambda x: x


def epoch_of(reader, data, **options):
    """Read an epoch; returns the values, and the processes that read them."""
    reads = [(0, [0, 1]), (1, [2, 3]), (2, [4, 5])]
    batches = list(reader.read(Samples(data), reads, **options))
    return torch.cat([values for values, _ in batches]).tolist(), {
        int(pid) for _, ids in batches for pid in ids
    }


def test_processes_that_read_ahead_live_on_until_the_data_set_changes() -> None:
    reader, data = Reader(CPU), Numbers()
    values, first = epoch_of(reader, data, workers=1)
    assert values == [0, 1, 2, 3, 4, 5]
    assert len(first) == 1
    assert os.getpid() not in first
    assert epoch_of(reader, data, workers=1)[1] == first
    data.shift = 10
    values, second = epoch_of(reader, data, workers=1)
    assert (values[0], second & first) == (10, set())
    data.inner["scale"] *= 2
    values, third = epoch_of(reader, data, workers=1)
    assert (values[1], third & second) == (12, set())
    assert epoch_of(reader, Numbers(), workers=1)[1] != third
    children = len(multiprocessing.active_children())
    reader.close()
    assert len(multiprocessing.active_children()) < children


def test_processes_end_with_the_epoch_where_the_data_set_cannot_be_compared() -> None:
    reader, data = Reader(CPU), _Unpicklable()
    assert epoch_of(reader, data, workers=1)[1] != epoch_of(reader, data, workers=1)[1]


class Filled(Dataset):
    """Samples of a tensor or an array that is another one, or has other contents, in each epoch."""

    x: Any

    def __init__(self, change) -> None:
        self.change = change

    def set_epoch(self, epoch: int) -> None:
        self.change(self, epoch)

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[float, int]:
        return float(self.x[index]), os.getpid()


def new_tensor(data, epoch, size=1000) -> None:
    data.x = None  # so that the next one lies where this one lay
    data.x = torch.full((size,), float(epoch))


def new_large_tensor(data, epoch) -> None:
    new_tensor(data, epoch, 10**6)


def new_array(data, epoch) -> None:
    data.x = None
    data.x = np.full(10**6, float(epoch))


def new_fixed_array(data, epoch) -> None:
    new_array(data, epoch)
    data.x.flags.writeable = False


def same_array(data, epoch, size=10**6) -> None:
    data.x = getattr(data, "x", None) if epoch else np.zeros(size)
    data.x[:] = epoch


def same_vast_array(data, epoch) -> None:
    same_array(data, epoch, 10**7)


@pytest.mark.parametrize(
    "change", [new_tensor, new_large_tensor, new_array, new_fixed_array, same_array, same_vast_array]
)
def test_processes_that_read_ahead_see_what_took_the_place_of_freed_memory_or_changed_in_place(
    change,
) -> None:
    reader, data = Reader(CPU), Filled(change)
    found = []
    for epoch in range(4):
        data.set_epoch(epoch)
        found += epoch_of(reader, data, workers=1)[0][:1]
    reader.close()
    assert found == [0, 1, 2, 3]


def test_a_large_array_is_known_by_itself_only_if_nobody_can_write_to_it() -> None:
    owner = np.zeros(2 * MOST_BYTES, np.uint8)
    view = owner.view()
    view.flags.writeable = False
    assert signature([view]) is None
    owner.flags.writeable = False
    first = signature([view])
    assert first is not None
    assert (again := signature([view])) is not None
    assert first.is_of_same(again)
    assert (other := signature([owner.view()])) is not None
    assert not other.is_of_same(first)


class _Shards:
    """A `Blockwise` data set."""

    def __len__(self) -> int:
        return 8

    def order(self, seed, epoch):
        return list(range(8))

    def stream(self, reads, *, streams):
        for indices in reads:
            yield np.array(indices, dtype=np.float32)


@pytest.mark.parametrize(
    ("data", "reader"),
    [
        (torch.arange(8.0), "rasda-read-ahead"),
        ({"x": torch.arange(8.0)}, "rasda-read-ahead"),
        (_Shards(), "rasda-read-ahead"),
        (Plain(), "MainThread"),
    ],
)
def test_batches_for_an_accelerator_are_pinned_and_plain_ones_read_ahead(data, reader) -> None:
    """As on a GPU, with a stand-in for pinned memory that notes who has put the batch there."""
    pinned, threads = [], set()

    def pin(batch):
        threads.add(threading.current_thread().name)
        pinned.append(batch)
        return batch

    before = torch.random.get_rng_state()
    reads = [(i, [2 * i, 2 * i + 1]) for i in range(4)]
    batches = list(Reader(CPU, pin).read(Samples(data), reads))
    flat = torch.cat([batch["x"] if isinstance(batch, dict) else batch for batch in batches])
    assert flat.tolist() == list(range(8))
    assert (len(pinned), threads) == (4, {reader})
    if reader != "MainThread":
        assert torch.equal(before, torch.random.get_rng_state())
