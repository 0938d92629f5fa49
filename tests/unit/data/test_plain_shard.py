"""What is read without Zarr is what Zarr reads; other layouts are left to it."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from parsl_rasda.data.plain_shard import PlainShard
from parsl_rasda.data.zarr3 import Zarr3
from parsl_rasda.errors import DataError

WRITERS_OWN = {"chunks": (16, 3), "shards": (48, 3), "compressors": None}


def array_in(folder: Path, **layout: Any) -> Any:
    group = zarr.create_group(folder / "a.zarr", overwrite=True)
    array = group.create_array("x", shape=(35, 3), dtype="f4", **layout)
    array[:] = np.arange(105).reshape(35, 3)
    return array


@settings(max_examples=30, deadline=None)
@given(
    samples=st.integers(1, 70),
    part=st.lists(st.integers(1, 4), max_size=2).map(tuple),
    dtype=st.sampled_from(["u1", "i2", "f2", "f4", "i8"]),
    block=st.integers(1, 20),
    data=st.data(),
)
def test_any_slice_of_what_was_written_is_read_again(
    samples: int, part: tuple[int, ...], dtype: str, block: int, data: st.DataObject
) -> None:
    values = np.arange(samples * math.prod(part)).astype(dtype).reshape(samples, *part)
    begin = data.draw(st.integers(0, samples))
    end = data.draw(st.integers(begin, samples + 3))
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/a.zarr"
        Zarr3().write(path, {"x": values}, block, {})
        assert PlainShard.of(Path(path, "x"), zarr.open_group(path, mode="r")["x"]) is not None
        found = Zarr3().open(path).read("x", begin, end)
    assert found.dtype == values.dtype
    assert (found == values[begin:end]).all()
    assert found.shape == values[begin:end].shape


@pytest.mark.parametrize(
    "layout",
    [
        {"chunks": (16, 3)},
        WRITERS_OWN | {"compressors": "auto"},
        WRITERS_OWN | {"shards": (16, 3)},
        WRITERS_OWN | {"chunks": (16, 1)},
        WRITERS_OWN | {"serializer": zarr.codecs.BytesCodec(endian="big")},
    ],
)
def test_other_layouts_are_read_by_zarr(layout: dict[str, Any], tmp_path: Path) -> None:
    array = array_in(tmp_path, **layout)
    assert PlainShard.of(tmp_path / "a.zarr" / "x", array) is None
    shard = Zarr3().open(str(tmp_path / "a.zarr"))
    assert (shard.read("x", 16, 32) == array[16:32]).all()


def test_arrays_of_zarr_2_are_read_by_zarr(tmp_path: Path) -> None:
    group = zarr.create_group(tmp_path / "a.zarr", zarr_format=2)
    group.create_array("x", shape=(35, 3), dtype="f4", chunks=(16, 3))[:] = 7
    assert (Zarr3().open(str(tmp_path / "a.zarr")).read("x", 0, 35) == 7).all()


@pytest.mark.parametrize(("at", "found"), [(-1, "no index at byte"), (-30, "no index at byte")])
def test_an_index_that_is_not_as_it_was_written_is_named(tmp_path: Path, at: int, found: str) -> None:
    array_in(tmp_path, **WRITERS_OWN)
    file = tmp_path / "a.zarr/x/c/0/0"
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=f"x/c/0/0.*{found}"):
        Zarr3().open(str(tmp_path / "a.zarr"))


def test_chunks_that_were_never_written_are_missed(tmp_path: Path) -> None:
    group = zarr.create_group(tmp_path / "a.zarr")
    array = group.create_array("x", shape=(35, 3), dtype="f4", **WRITERS_OWN)
    array[:16] = 1
    with pytest.raises(DataError, match=r"x/c/0/0.*chunks are missing"):
        Zarr3().open(str(tmp_path / "a.zarr"))


def test_a_file_that_is_cut_short_while_it_is_read_is_named_with_the_place(tmp_path: Path) -> None:
    array_in(tmp_path, **WRITERS_OWN)
    shard = Zarr3().open(str(tmp_path / "a.zarr"))
    (tmp_path / "a.zarr/x/c/0/0").write_bytes(bytes(200))
    with pytest.raises(DataError, match="x/c/0/0: it is damaged at byte 192"):
        shard.read("x", 16, 32)
