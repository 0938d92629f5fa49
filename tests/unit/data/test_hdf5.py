"""What is read beside HDF5 is what HDF5 reads, whatever the layout of the dataset."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parsl_rasda.data.hdf5 import Hdf5, Hdf5Shard
from parsl_rasda.errors import DataError

LAYOUTS: dict[str, dict[str, Any]] = {
    "blocks": {"chunks": (8, 3)},
    "contiguous": {},
    "chunks of half a sample": {"chunks": (8, 2)},
    "compressed": {"chunks": (8, 3), "compression": "gzip"},
    "checked": {"chunks": (8, 3), "fletcher32": True},
}
DTYPES = ["u1", "<f2", ">i4", "<f8", "?"]


@settings(max_examples=60, deadline=None)
@given(
    layout=st.sampled_from(list(LAYOUTS)),
    dtype=st.sampled_from(DTYPES),
    samples=st.integers(1, 40),
    data=st.data(),
)
def test_any_slice_is_what_hdf5_reads(layout: str, dtype: str, samples: int, data: st.DataObject) -> None:
    begin = data.draw(st.integers(0, samples))
    end = data.draw(st.integers(begin, samples + 3))
    values = np.arange(samples * 3).reshape(samples, 3).astype(dtype)
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/a.h5"
        with h5py.File(path, "w") as file:
            options = LAYOUTS[layout] if samples >= 8 else {}
            file.create_dataset("x", data=values, **options)
        shard = Hdf5().open(path)
        shard.announce("x", begin, end)
        found = shard.read("x", begin, end)
        shard.close()
    assert found.dtype == values.dtype
    assert found.shape == values[begin:end].shape
    assert (found == values[begin:end]).all()


def open_with(path: Path, layout: str) -> Hdf5Shard:
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=np.arange(96, dtype="f4").reshape(32, 3), **LAYOUTS[layout])
    return Hdf5().open(str(path))


@pytest.mark.parametrize(("layout", "is_plain"), [(name, n < 2) for n, name in enumerate(LAYOUTS)])
def test_what_lies_as_in_memory_is_read_at_its_place(tmp_path: Path, layout: str, is_plain: bool) -> None:
    shard = open_with(tmp_path / "a.h5", layout)
    before = shard.read("x", 8, 16)
    content = (tmp_path / "a.h5").read_bytes()
    place = content.find(before.tobytes())
    with (tmp_path / "a.h5").open("r+b") as file:  # HDF5 has its own copy of nothing but the places
        file.seek(max(place, 0))
        file.write(b"\0" * (before.nbytes if is_plain else 0))
    assert (shard.read("x", 8, 16) == (0 if is_plain else before)).all()
    shard.close()


def test_chunks_that_were_never_written_have_the_value_that_hdf5_gives_them(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        dataset = file.create_dataset("x", shape=(32, 3), dtype="f4", chunks=(8, 3), fillvalue=7.0)
        dataset[:8] = 1.0
    shard = Hdf5().open(str(tmp_path / "a.h5"))
    assert (shard.read("x", 0, 8) == 1.0).all()
    assert (shard.read("x", 8, 16) == 7.0).all()
    shard.close()


def test_a_file_that_is_cut_short_while_it_is_open_is_named_with_the_place(tmp_path: Path) -> None:
    shard = open_with(tmp_path / "a.h5", "contiguous")
    os.truncate(tmp_path / "a.h5", 2048 + 200)
    with pytest.raises(DataError, match=r"a\.h5: it is cut short: 96 bytes at \d+ are not all there"):
        shard.read("x", 24, 32)
    shard.close()


def _linked(file: h5py.File, elsewhere: Path) -> None:
    file["x"] = h5py.ExternalLink(str(elsewhere / "theirs.h5"), "x")


def _linked_by_steps(file: h5py.File, elsewhere: Path) -> None:
    file["x"] = h5py.ExternalLink(f"../{elsewhere.name}/theirs.h5", "x")


def _virtual(file: h5py.File, elsewhere: Path) -> None:
    layout = h5py.VirtualLayout((4,), "u1")
    layout[:] = h5py.VirtualSource(str(elsewhere / "theirs.h5"), "x", (4,))
    file.create_virtual_dataset("x", layout)


def _virtual_by_way_of_another(file: h5py.File, elsewhere: Path) -> None:
    with h5py.File(Path(file.filename).parent / "between.h5", "w") as between:
        _virtual(between, elsewhere)
    layout = h5py.VirtualLayout((4,), "u1")
    layout[:] = h5py.VirtualSource("between.h5", "x", (4,))
    file.create_virtual_dataset("x", layout)


def _bytes(file: h5py.File, elsewhere: Path) -> None:
    file.create_dataset("x", (4,), "u1", external=[(str(elsewhere / "secret"), 0, 4)])


@pytest.mark.parametrize("lead", [_linked, _linked_by_steps, _virtual, _virtual_by_way_of_another, _bytes])
def test_no_array_is_read_from_outside_its_folder(tmp_path: Path, lead: Callable[..., None]) -> None:
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "data"
    elsewhere.mkdir()
    folder.mkdir()
    (elsewhere / "secret").write_bytes(b"hush")
    with h5py.File(elsewhere / "theirs.h5", "w") as file:
        file["x"] = np.frombuffer(b"hush", "u1")
    with h5py.File(folder / "mine.h5", "w") as file:
        lead(file, elsewhere)
    shard = Hdf5().open(str(folder / "mine.h5"))
    with pytest.raises(DataError, match="its array 'x' is in another file"):
        shard.read("x", 0, 4)
    shard.close()


def test_parts_in_the_same_folder_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with h5py.File(tmp_path / "part.h5", "w") as file:
        file["x"] = np.frombuffer(b"here", "u1")
    with h5py.File(tmp_path / "whole.h5", "w") as file:
        layout = h5py.VirtualLayout((4,), "u1")
        layout[:] = h5py.VirtualSource("part.h5", "x", (4,))
        file.create_virtual_dataset("x", layout)
        file["y"] = h5py.ExternalLink("part.h5", "x")
    monkeypatch.chdir(tmp_path)
    for path in (str(tmp_path / "whole.h5"), "whole.h5"):
        shard = Hdf5().open(path)
        assert [shard.read(name, 0, 4).tobytes() for name in "xy"] == [b"here", b"here"]
        shard.close()
