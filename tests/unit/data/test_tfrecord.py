"""Records framed as TensorFlow does are read whole, in any order; what is wrong is named with its place."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from google_crc32c import value as crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from parsl_rasda.data import open_shards
from parsl_rasda.data.tfrecord import TFRecord, indexed
from parsl_rasda.errors import DataError
from tests.unit.data.tensorflow_files import framed, write_records

RECORDS = [b"", b"a", b"records " * 40, bytes(range(256))] * 10
records = st.lists(st.binary(max_size=60), max_size=40)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_records(tmp_path / "train-00000-of-00001", RECORDS)


def read(path: Path | str) -> list[bytes]:
    shard = TFRecord().open(str(path))
    try:
        return shard.read("record", 0, shard.arrays()["record"][0][0]).tolist()
    finally:
        shard.close()


def test_checksums_are_those_of_the_format() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # RFC 3720, B.4 and the catalogue of CRCs
    assert framed(b"") == bytes.fromhex("0000000000000000 29039807 d8ea82a2")  # as TensorFlow writes it


@settings(deadline=None)
@given(content=records, has_idx=st.booleans(), data=st.data())
def test_what_was_framed_is_read_again(content: list[bytes], has_idx: bool, data: st.DataObject) -> None:
    begin = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(begin, len(content) + 2))
    with tempfile.TemporaryDirectory() as folder:
        path = write_records(Path(folder, "a.tfrecord"), content, idx=has_idx)
        shard = TFRecord().open(str(path))
        assert shard.read("record", begin, end).tolist() == content[begin:end]
        shard.close()


@settings(deadline=None, max_examples=50)
@given(content=records.filter(len), data=st.data())
def test_a_byte_that_is_another_is_found_and_named(content: list[bytes], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write_records(Path(folder, "a.tfrecord"), content, idx=data.draw(st.booleans()))
        whole = bytearray(path.read_bytes())
        place = data.draw(st.integers(0, len(whole) - 1))
        whole[place] ^= data.draw(st.integers(1, 255))
        path.write_bytes(whole)
        with pytest.raises(DataError, match=r"a\.tfrecord.* byte \d+") as caught:
            read(path)
        starts = [sum(len(r) + 16 for r in content[:n]) for n in range(len(content))]
        damaged = max(start for start in starts if start <= place)
        assert f"byte {damaged}" in str(caught.value)


@settings(deadline=None, max_examples=50)
@given(content=records.filter(len), data=st.data())
def test_a_file_that_is_cut_short_is_named_with_the_place(content: list[bytes], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write_records(Path(folder, "a.tfrecord"), content, idx=data.draw(st.booleans()))
        whole = path.read_bytes()
        starts = {sum(len(r) + 16 for r in content[:n]) for n in range(len(content))}
        length = data.draw(st.integers(0, len(whole) - 1).filter(lambda n: n not in starts))
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"a\.tfrecord.* byte \d+|ends at"):
            read(path)


@pytest.mark.parametrize(
    ("idx", "found"),
    [
        ("0 16\n16\n", r"\.idx: it is not an index of records"),
        ("first second\n", r"\.idx: it is not an index of records"),
        ("0 16\n17 17\n", r"\.idx: after byte 16 records are left out"),
        ("0 16\n", r"train-00000-of-00001: it ends at byte \d+, but at byte 16"),
    ],
)
def test_an_index_that_does_not_fit_is_named(file: Path, idx: str, found: str) -> None:
    Path(f"{file}.idx").write_text(idx, encoding="utf-8")
    with pytest.raises(DataError, match=found):
        read(file)


def test_an_index_that_joins_records_is_found_when_they_are_read(file: Path) -> None:
    size = file.stat().st_size
    Path(f"{file}.idx").write_text(f"0 33\n33 {size - 33}\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"the record at byte 0 has 0 bytes, not 17 as its index says"):
        read(file)


def test_a_file_without_an_index_is_scanned_once(file: Path, tmp_path: Path) -> None:
    (tmp_path / "prepared").mkdir()
    found, count = indexed(file, tmp_path / "prepared")
    assert (found.parent, count) == (tmp_path / "prepared", len(RECORDS))
    assert read(found) == RECORDS
    assert Path(f"{found}.idx").read_text(encoding="utf-8").splitlines()[:3] == ["0 16", "16 17", "33 336"]
    assert indexed(file, tmp_path / "prepared") == (found, count), "again is no harm"
    with_idx = write_records(tmp_path / "validation-00000-of-00001", RECORDS, idx=True)
    assert indexed(with_idx, tmp_path / "prepared") == (with_idx, len(RECORDS))


def test_a_foreign_and_a_missing_file_are_named(tmp_path: Path) -> None:
    foreign = tmp_path / "a.tfrecord"
    foreign.write_bytes(b"\x89HDF\r\n\x1a\n" * 20)
    with pytest.raises(DataError, match=r"a\.tfrecord: no record begins at byte 0.*Is it a TFRecord file"):
        read(foreign)
    with pytest.raises(DataError, match=r"b\.tfrecord: it cannot be opened: No such file"):
        read(tmp_path / "b.tfrecord")


def test_records_come_block_by_block_as_samples_of_other_formats_do(tmp_path: Path) -> None:
    content = [b"%d" % n for n in range(100)]
    for part in range(4):
        write_records(tmp_path / f"train-{part:05d}-of-00004", content[part * 25 :][:25], idx=part % 2 == 0)
    data = open_shards(tmp_path, arrays="record")
    order = data.order(3, 1)
    batches = list(data.stream(order[at : at + 7] for at in range(0, 100, 7)))
    assert all(isinstance(batch, list) for batch in batches)
    assert [int(record) for batch in batches for record in batch] == order[0:100]
    assert sorted(order[0:100]) == list(range(100))
    assert data.read([99, 0]) == [b"99", b"0"]
    assert data.place_of(60) == (str(tmp_path / "train-00002-of-00004"), 10)


def test_another_array_is_not_there(file: Path) -> None:
    shard = TFRecord().open(str(file))
    with pytest.raises(DataError, match="no array 'image', but record"):
        shard.read("image", 0, 1)
    shard.close()
