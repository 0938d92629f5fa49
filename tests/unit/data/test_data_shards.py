"""What is written is read, in any order, from few files at a time, in any process; damage is named."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import pickle
import resource
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parsl_rasda.data import Shards, ShardWriter, open_shards
from parsl_rasda.data.files import MOST_OPEN, OPEN_FILES
from parsl_rasda.errors import DataError, InvalidSettingError

FORMATS = ["hdf5", "zarr"]
SAMPLES = 215


@pytest.fixture(autouse=True)
def nothing_open():
    OPEN_FILES.close()
    yield
    OPEN_FILES.close()


def write(folder: Path, *, samples=SAMPLES, form="hdf5", split="train", **options) -> ShardWriter:
    """Write samples whose every number tells which sample they are of."""
    numbers = np.arange(samples)
    with ShardWriter(folder, format=form, samples_per_shard=100, **options) as shards:
        for part in np.array_split(numbers, 6):
            field = part[:, None, None] + np.zeros((1, 3, 2), np.float32)
            shards.write(split, field=field, number=part)
    return shards


@pytest.fixture(scope="module", params=FORMATS)
def shards(request, tmp_path_factory) -> Shards:
    return open_shards(write(tmp_path_factory.mktemp("shards"), form=request.param).index)


def numbers_of(batches) -> list[int]:
    return [int(number) for _, numbers in batches for number in numbers]


def open_data_files(folder: Path) -> int:
    found = 0
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a thread that reads ahead has closed it meanwhile
            found += str(folder) in str(link.readlink())
    return found


# -------------------------------------------------------------------------------------- as it should be


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(indices=st.lists(st.integers(0, SAMPLES - 1), max_size=40))
def test_any_samples_are_read_in_the_order_asked_for(shards, indices) -> None:
    field, numbers = shards.read(indices)
    assert numbers.tolist() == indices
    assert field.shape == (len(indices), 3, 2)
    assert (field == numbers[:, None, None]).all()


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(batch=st.integers(1, 50), streams=st.integers(1, 5), seed=st.integers(0, 99))
def test_an_epoch_is_every_sample_once_whatever_the_batch_and_the_streams(
    shards, batch, streams, seed
) -> None:
    order = shards.order(seed, 0)
    each = -(-SAMPLES // streams)
    reads = [
        order[s * each + at : min(s * each + at + batch, (s + 1) * each)]
        for at in range(0, each, batch)
        for s in range(streams)
    ]
    assert numbers_of(shards.stream(reads, streams=streams)) == [i for read in reads for i in read]
    assert sorted(i for read in reads for i in read) == list(range(SAMPLES))


def test_blocks_are_all_samples_in_order(shards) -> None:
    batches = list(shards.blocks())
    assert numbers_of(batches) == list(range(SAMPLES))
    assert max(len(numbers) for _, numbers in batches) == 16


def test_a_pickled_data_set_reads_the_same(shards) -> None:
    shards.read([1])
    assert pickle.loads(pickle.dumps(shards)).read([3, 200])[1].tolist() == [3, 200]


def test_each_block_is_read_once_an_epoch_and_as_a_slice(tmp_path, monkeypatch) -> None:
    data = open_shards(write(tmp_path).index)
    read = []
    plain = Shards.read_block
    monkeypatch.setattr(Shards, "read_block", lambda self, number: read.append(number) or plain(self, number))
    order = data.order(0, 0)
    numbers_of(data.stream(order[at : at + 7] for at in range(0, SAMPLES, 7)))
    assert sorted(read) == list(range(15))  # 7 + 7 + 1: shards of 100, 100 and 15 samples


@pytest.mark.parametrize("form", FORMATS)
def test_types_are_converted_and_attributes_kept(tmp_path, form) -> None:
    with ShardWriter(tmp_path, format=form, dtypes={"x": "float16"}, attributes={"nu": 0.5}) as shards:
        shards.write("a", x=np.full((20, 4), 0.1, np.float32), y=np.arange(20, dtype=np.uint8))
        shards.write("b", x=np.ones((3, 4)), y=np.arange(3, dtype=np.uint8))
    assert shards.samples == {"a": 20, "b": 3}
    x, y = open_shards(tmp_path, split="a", arrays=("x", "y")).read([7])
    assert (x.dtype, y.dtype, y.tolist()) == (torch.float16, torch.uint8, [7])
    alone = open_shards(shards.index, split="b", arrays="x")
    assert alone.read([0, 2]).shape == (2, 4)
    assert json.loads(shards.index.read_text())["attributes"] == {"nu": 0.5}


def test_hdf5_shards_are_chunked_by_blocks_and_carry_the_attributes(tmp_path) -> None:
    write(tmp_path, attributes={"viscosity": 2e-3})
    with h5py.File(tmp_path / "train-00000.h5") as file:
        assert file["field"].chunks == (16, 3, 2)
        assert file["number"].chunks == (16,)
        assert file.attrs["viscosity"] == 2e-3


def test_shards_that_something_else_wrote_are_found_and_joined(tmp_path) -> None:
    for name, first in (("b.h5", 30), ("a.hdf5", 0)):
        with h5py.File(tmp_path / name, "w") as file:
            numbers = np.arange(first, first + 30, dtype=">i4")  # as other machines write them
            file.create_dataset("deep/x", data=numbers, chunks=(8,))
            file["names"] = ["a", "b"]
            file.create_dataset("time", data=np.arange(7))
    data = open_shards(tmp_path, arrays="deep/x")
    assert data.read(range(60)).tolist() == list(range(60))
    assert [len(block) for block in data.blocks()] == [8, 8, 8, 6] * 2
    twice = open_shards([tmp_path / "b.h5", tmp_path], arrays="deep/x")
    assert twice.read([0, 30]).tolist() == [30, 0]


def test_a_shard_may_be_opened_by_the_user_while_it_is_read(tmp_path) -> None:
    data = open_shards(write(tmp_path).index)
    data.read([0])
    with h5py.File(tmp_path / "train-00000.h5") as file:
        assert data.read([1])[1].item() == file["number"][1]


# ------------------------------------------------------------------------------------- files and threads


def test_at_most_32_files_are_open_however_many_there_are(tmp_path) -> None:
    with ShardWriter(tmp_path, samples_per_shard=2) as shards:
        shards.write("train", number=np.arange(100))
    data = [open_shards(shards.index, arrays="number", window=60) for _ in range(2)]
    most = 0
    reads = [[data[0].order(0, 0)[at : at + 3] for at in range(0, 100, 3)], [[i] for i in range(100)]]
    seen = [[], []]
    for batches in zip(*(d.stream(r) for d, r in zip(data, reads, strict=True)), strict=False):
        most = max(most, open_data_files(tmp_path))
        for numbers, batch in zip(seen, batches, strict=True):
            numbers.extend(batch.tolist())
    assert most == MOST_OPEN == 32
    assert sorted(seen[0]) == list(range(100))
    OPEN_FILES.close()
    assert open_data_files(tmp_path) == 0


def test_a_fork_in_the_middle_of_reading_reads_for_itself(tmp_path) -> None:
    data = open_shards(write(tmp_path).index)
    stream = data.stream([[i] for i in range(SAMPLES)])
    assert next(stream)[1].item() == 0
    children = multiprocessing.get_context("fork")
    for _ in range(5):
        answers = children.SimpleQueue()
        child = children.Process(target=_read_in_child, args=(data, tmp_path, answers))
        child.start()
        next(stream)
        before, numbers = answers.get()
        child.join(10)
        assert child.exitcode == 0
        assert before == 0, "a child begins without the files of its parent"
        assert numbers == list(range(SAMPLES - 1, -1, -1))
    assert numbers_of(stream) == list(range(6, SAMPLES))


def _read_in_child(data, folder, answers) -> None:
    before = open_data_files(folder)
    answers.put((before, numbers_of(data.stream([[i] for i in range(SAMPLES - 1, -1, -1)]))))


@pytest.mark.parametrize("form", FORMATS)
def test_no_thread_and_no_memory_stays_behind_a_stream_that_is_left(tmp_path, form) -> None:
    data = open_shards(write(tmp_path, form=form).index)
    for _ in data.stream([[i] for i in range(SAMPLES)]):
        break
    assert not [t for t in threading.enumerate() if t.name == "rasda-read-ahead"]


def test_reading_more_takes_no_more_memory(tmp_path) -> None:
    with ShardWriter(tmp_path, samples_per_shard=64) as shards:
        for _ in range(16):
            shards.write("train", x=np.zeros((64, 32 * 1024), np.float32))  # 8 MB a shard, 128 MB in all
    data = open_shards(shards.index, arrays="x")
    order = data.order(0, 0)
    for batch in data.stream(order[at : at + 16] for at in range(0, 256, 16)):
        del batch
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for batch in data.stream(order[at : at + 16] for at in range(0, 1024, 16)):
        del batch
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 40 * 1024


# ----------------------------------------------------------------------------------------- what is wrong


def damage(path: Path, how: str) -> None:
    file = path if path.is_file() else path / "field" / "c" / "0" / "0" / "0"
    whole = file.read_bytes()
    if how == "truncated":
        file.write_bytes(whole[: len(whole) // 2])
    elif how == "foreign":
        file.write_bytes(b"something else altogether " * 20)
    else:
        file.unlink()


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("how", ["truncated", "foreign", "missing"])
def test_a_damaged_file_is_named(tmp_path, form, how) -> None:
    data = open_shards(write(tmp_path, form=form).index)
    name = f"train-00001.{'h5' if form == 'hdf5' else 'zarr'}"
    damage(tmp_path / name, how)
    assert data.read([0])[1].item() == 0, "the others are as good as before"
    with pytest.raises(DataError, match=name):
        data.read([150])
    with pytest.raises(DataError, match=name):
        numbers_of(data.blocks())


@pytest.mark.parametrize("form", FORMATS)
def test_a_shard_that_is_not_what_the_index_says_is_named(tmp_path, form) -> None:
    index = write(tmp_path, form=form).index
    text = json.loads(index.read_text())
    text["splits"]["train"][0][2] = 120
    text["arrays"]["other"] = {"shape": [], "dtype": "float32"}
    index.write_text(json.dumps(text))
    with pytest.raises(DataError, match=r"train-00000.*samples 96 to 112 .*not float64 \(16, 3, 2\)"):
        open_shards(index, arrays="field").read([100])
    with pytest.raises(DataError, match=r"train-00000.*no array 'other'"):
        open_shards(index, arrays="other").read([0])


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("", "not an index"),
        ("[1]", "not an index"),
        ('{"format": 9}', "format 9"),
        ('{"format": 1}', "splits"),
    ],
)
def test_a_file_that_is_no_index_is_named(tmp_path, content, found) -> None:
    (tmp_path / "index.json").write_text(content)
    with pytest.raises(DataError, match=rf"index\.json.*{found}"):
        open_shards(tmp_path)


def test_what_is_not_there_is_named(tmp_path) -> None:
    for path in (tmp_path, tmp_path / "no.h5", tmp_path / "no.zarr", tmp_path / "no.json"):
        with pytest.raises(DataError, match=str(path)):
            open_shards(path)
    with pytest.raises(InvalidSettingError, match=r"a name like \*\.h5, \*\.hdf5, \*\.zarr, \*\.tfrecord"):
        open_shards(tmp_path / "data.csv")


def test_splits_arrays_and_samples_that_are_not_there_are_refused(tmp_path) -> None:
    index = write(tmp_path).index
    with pytest.raises(InvalidSettingError, match="one of train"):
        open_shards(index, split="test")
    with pytest.raises(InvalidSettingError, match="field, number"):
        open_shards(index, arrays=("field", "pressure"))
    with pytest.raises(IndexError, match="215 to 215 of 215"):
        open_shards(index).read([SAMPLES])
    with pytest.raises(InvalidSettingError, match="window"):
        open_shards(index, window=0)


def test_shards_that_differ_cannot_be_joined(tmp_path) -> None:
    for name, values in (("a.h5", np.zeros((4, 2))), ("b.h5", np.zeros((4, 3)))):
        with h5py.File(tmp_path / name, "w") as file:
            file["x"] = values
    with pytest.raises(DataError, match=r"b\.h5: its arrays are .*not .*a\.h5"):
        open_shards(tmp_path)
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["y"] = np.zeros(5)
    with pytest.raises(DataError, match=r"a\.h5: its arrays differ .*'x': 4, 'y': 5"):
        open_shards(tmp_path / "a.h5")


@pytest.mark.parametrize(
    ("arrays", "found"),
    [
        ({"x": np.zeros((3, 2)), "n": np.zeros(4)}, "equal numbers"),
        ({"x": np.full((2, 2), 1e6)}, "1000000.0.*float16 can hold"),
        ({"frame": np.zeros((2, 2))}, "float64.*uint8 can hold"),
        ({"text": np.array(["a", "b"])}, "can hold"),
    ],
)
def test_samples_that_cannot_be_stored_are_refused(tmp_path, arrays, found) -> None:
    with pytest.raises(InvalidSettingError, match=found), ShardWriter(
        tmp_path, dtypes={"x": "float16", "frame": "uint8"}
    ) as shards:  # fmt: skip
        shards.write("train", **arrays)
    assert not (tmp_path / "index.json").exists()


def test_samples_must_stay_alike(tmp_path) -> None:
    shards = ShardWriter(tmp_path)
    shards.write("train", x=np.zeros((2, 3)))
    with pytest.raises(InvalidSettingError, match="the same arrays as before"):
        shards.write("train", x=np.zeros((2, 4)))


def test_a_writer_that_fails_leaves_no_index_and_no_part_of_a_shard(tmp_path) -> None:
    with contextlib.suppress(RuntimeError), ShardWriter(tmp_path, samples_per_shard=10) as shards:
        shards.write("train", x=np.zeros((25, 3)))
        raise RuntimeError
    assert sorted(p.name for p in tmp_path.iterdir()) == ["train-00000.h5", "train-00001.h5"]
