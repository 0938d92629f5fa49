"""Training from shards: what a trial makes of a data set that has an order of its own."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from torch import nn

from parsl_rasda.data import ShardWriter, open_shards
from parsl_rasda.errors import DataError
from parsl_rasda.runtime import local_trial

SAMPLES = 203


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    numbers = np.arange(SAMPLES)
    with ShardWriter(tmp_path_factory.mktemp("shards"), samples_per_shard=50) as shards:
        shards.write("train", x=(numbers[:, None] / 256).astype("float32"), number=numbers)
    return shards.index


class Decoded:
    """Samples that take time after they are read, so that processes are to read them, in a given order."""

    def __init__(self, index) -> None:
        self._shards = open_shards(index)

    def __len__(self) -> int:
        return len(self._shards)

    def order(self, seed, epoch):
        return self._shards.order(seed, epoch)

    def read(self, indices):
        return self._shards.read(indices)


def epochs_of(index, *, data_of=open_shards, workers=0, **options):
    """Train and return the samples of each micro-batch, by epoch."""
    trial = local_trial({}, **{"epochs": 3, "batch_size": 4, **options})
    model, _ = trial.prepare(nn.Linear(1, 1), torch.optim.SGD, lr=0.1)
    seen = []
    for _ in trial.epochs():
        seen.append([])
        for x, numbers in trial.batches(data_of(index), workers=workers):
            assert torch.equal(x[:, 0], numbers / 256)
            seen[-1].append(numbers.tolist())
            trial.step(model(x).square().mean())
        evaluated = [n for _, numbers in trial.shard(open_shards(index)) for n in numbers.tolist()]
        assert sorted(evaluated) == list(range(SAMPLES))
        trial.report(val_loss=0.0)
    return seen


@pytest.mark.parametrize("replicas", [1, 3, 8, 16])
def test_every_sample_once_an_epoch_in_another_order_each_time(index, replicas) -> None:
    epochs = epochs_of(index, replicas=replicas)
    for batches in epochs:
        assert sorted(n for batch in batches for n in batch) == list(range(SAMPLES))
        assert max(len(batch) for batch in batches) <= 4
    assert epochs == epochs_of(index, replicas=replicas)
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_set_has_a_say_in_the_order_whoever_reads_it(index, workers) -> None:
    decoded = epochs_of(index, data_of=Decoded, workers=workers, replicas=2, epochs=2)
    assert decoded == epochs_of(index, replicas=2, epochs=2)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loop_that_is_left_leaves_no_thread_behind(index, workers) -> None:
    trial = local_trial({}, batch_size=4)
    trial.prepare(nn.Linear(1, 1), torch.optim.SGD, lr=0.1)
    next(trial.epochs())
    for _ in trial.batches(open_shards(index), workers=workers):
        assert [t for t in threading.enumerate() if t.name == "rasda-read-ahead"]
        break
    assert not [t for t in threading.enumerate() if t.name == "rasda-read-ahead"]


def test_a_damaged_shard_ends_the_training_with_its_name(index, tmp_path) -> None:
    for file in index.parent.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "train-00002.h5").write_bytes(b"half a file")
    with pytest.raises(DataError, match=r"train-00002\.h5: not a whole HDF5 file"):
        epochs_of(tmp_path / "index.json")
