"""No name that somebody else has chosen leads out of its folder."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parsl_rasda.confined import confined
from parsl_rasda.data import open_shards
from parsl_rasda.errors import DamagedCheckpointError, DataError, InvalidSettingError
from parsl_rasda.runtime.checkpoints.seal import HEADER, check_files, sealed

OUTSIDE = ["../secret", "a/../../secret", "/etc/passwd", "", ".", "..", "a\0b"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_that_lead_out_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="leads out of folder"):
        confined(Path("folder"), name)


@given(st.text(st.sampled_from("./a\0~ "), max_size=12))
def test_what_is_not_refused_stays_in_the_folder(name: str) -> None:
    try:
        path = confined(Path("/top/folder"), name)
    except ValueError:
        return
    assert os.path.normpath(path).startswith("/top/folder/")


@pytest.mark.parametrize("name", [name for name in OUTSIDE if not name.startswith("/")])
def test_an_index_cannot_name_a_shard_outside_its_folder(tmp_path: Path, name: str) -> None:
    index = {
        "format": 1,
        "block": 16,
        "arrays": {"x": {"shape": [], "dtype": "uint8"}},
        "splits": {"train": [[name, 0, 4]]},
    }
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match="leads out of"):
        open_shards(tmp_path)


def test_a_header_cannot_name_a_file_outside_its_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hush")
    checkpoint = tmp_path / "epoch-000001"
    checkpoint.mkdir()
    (checkpoint / HEADER).write_text(_sealed_with("../secret", checkpoint, tmp_path))
    with pytest.raises(DamagedCheckpointError, match="leads out of"):
        check_files(checkpoint)


def _sealed_with(name: str, checkpoint: Path, above: Path) -> str:
    """Return a header whose seal is whole, and has a file that is above the checkpoint."""
    from google_crc32c import value

    header = sealed(above, {"epoch": 1}).partition("\n")[2].replace('"secret"', json.dumps(name))
    return f'{{"crc32c": "{value(header.encode()):08x}",\n{header}'


def test_a_zarr_group_cannot_name_an_array_outside_its_folder(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    theirs = zarr.create_array(str(tmp_path / "theirs.zarr"), shape=(4,), dtype="u1", chunks=(4,))
    theirs[:] = 7
    mine = tmp_path / "mine.zarr"
    zarr.create_group(str(mine))
    metadata = json.loads((mine / "zarr.json").read_text())
    array = json.loads((tmp_path / "theirs.zarr" / "zarr.json").read_text())
    metadata["consolidated_metadata"] = {
        "kind": "inline",
        "must_understand": False,
        "metadata": {"../theirs.zarr": array},
    }
    (mine / "zarr.json").write_text(json.dumps(metadata))
    with pytest.raises((DataError, InvalidSettingError)):
        open_shards(mine, arrays="../theirs.zarr")
