from __future__ import annotations

import contextlib
import enum
import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from parsl_rasda.errors import CheckpointError, DamagedCheckpointError
from parsl_rasda.runtime import load_model, local_trial
from parsl_rasda.runtime.checkpoints.checkpoint import read_header, read_tensors, write_checkpoint
from parsl_rasda.runtime.checkpoints.shared import store

TENSORS = {
    "model.weight": torch.arange(6.0).reshape(2, 3),
    "model.count": torch.tensor(3),
    "optim.weight.step": torch.tensor(4.0),
    "model.half": torch.ones(2, dtype=torch.bfloat16).t(),
}


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    path = tmp_path / "epoch-000001"
    write_checkpoint(path, TENSORS, {"epoch": 1})
    return path


def as_of_the_version_before(path: Path) -> Path:
    """Give a checkpoint a header without a seal: what its files hold is then looked at, whatever it is."""
    (path / "header.json").write_text(json.dumps({"epoch": 1, "format": 1}, indent=1))
    return path


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_what_was_written_is_read(checkpoint) -> None:
    tensors = read_tensors(checkpoint)
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert read_tensors(checkpoint, "optim.").keys() == {"optim.weight.step"}
    assert read_header(checkpoint) == {"epoch": 1, "format": 2}


def test_a_checkpoint_of_the_version_before_is_read(checkpoint) -> None:
    tensors = read_tensors(as_of_the_version_before(checkpoint))
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert read_header(checkpoint) == {"epoch": 1, "format": 1}


def test_a_checkpoint_without_tensors_is_only_a_header(tmp_path) -> None:
    write_checkpoint(tmp_path / "epoch-000001", {}, {"epoch": 1})
    assert [p.name for p in (tmp_path / "epoch-000001").iterdir()] == ["header.json"]


def test_hostile_metadata_runs_nothing(checkpoint, tmp_path) -> None:
    as_of_the_version_before(checkpoint)
    marker = tmp_path / "owned"
    (checkpoint / ".metadata").write_bytes(pickle.dumps(Hostile(marker)))
    with pytest.raises(CheckpointError, match=r"its metadata names posix\.system"):
        read_tensors(checkpoint)
    assert not marker.exists()


class OldPickler(pickle.Pickler):
    """Writes a member of an enumeration as Python 3.11.2 does."""

    def reducer_override(self, obj):
        return (getattr, (type(obj), obj.name)) if isinstance(obj, enum.Enum) else NotImplemented


def test_a_checkpoint_of_an_older_python_is_read(checkpoint) -> None:
    as_of_the_version_before(checkpoint)
    expected = read_tensors(checkpoint)
    with (checkpoint / ".metadata").open("rb+") as file:
        metadata = pickle.load(file)
        file.seek(0)
        OldPickler(file).dump(metadata)
        file.truncate()
    assert b"getattr" in (checkpoint / ".metadata").read_bytes()
    found = read_tensors(checkpoint)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


class Reaching:
    def __reduce__(self):
        return getattr, (Path, "mro")


def test_nothing_but_a_member_of_an_enumeration_can_be_had_by_its_name(checkpoint) -> None:
    as_of_the_version_before(checkpoint)
    (checkpoint / ".metadata").write_bytes(pickle.dumps(Reaching()))
    with pytest.raises(CheckpointError, match="names mro of"):
        read_tensors(checkpoint)


def test_a_hostile_object_among_the_tensors_runs_nothing(tmp_path) -> None:
    import torch.distributed.checkpoint as dcp

    marker, path = tmp_path / "owned", tmp_path / "epoch-000001"
    with pytest.warns(UserWarning, match="torch.distributed is disabled"):
        dcp.save({"model.weight": torch.zeros(1), "extra": Hostile(marker)}, checkpoint_id=path, no_dist=True)
    (path / "header.json").write_text(json.dumps({"format": 1}))
    with pytest.raises(CheckpointError):
        read_tensors(path)
    assert not marker.exists()


def test_hostile_tensor_data_runs_nothing(checkpoint, tmp_path) -> None:
    as_of_the_version_before(checkpoint)
    marker = tmp_path / "owned"
    for file in checkpoint.glob("*.distcp"):
        file.write_bytes(pickle.dumps(Hostile(marker)).ljust(file.stat().st_size, b"."))
    with pytest.raises(CheckpointError):
        read_tensors(checkpoint)
    assert not marker.exists()


def test_a_checkpoint_cannot_point_outside_itself(checkpoint) -> None:
    as_of_the_version_before(checkpoint)
    metadata = pickle.loads((checkpoint / ".metadata").read_bytes())
    for info in metadata.storage_data.values():
        info.relative_path = "../../secret"
    (checkpoint / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match="outside itself"):
        read_tensors(checkpoint)


@given(st.data())
def test_damaged_metadata_is_an_error_of_ours(tmp_path_factory, data) -> None:
    path = tmp_path_factory.mktemp("damaged") / "epoch-000001"
    write_checkpoint(path, {"model.weight": torch.zeros(2)}, {})
    as_of_the_version_before(path)
    content = bytearray((path / ".metadata").read_bytes())
    places = st.integers(0, 2**16)  # the file is longer or shorter with its path
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(places) % len(content)] = data.draw(st.integers(0, 255))
    (path / ".metadata").write_bytes(content[: 1 + data.draw(places) % len(content)])
    with contextlib.suppress(DamagedCheckpointError):
        read_tensors(path)


def test_an_unfinished_checkpoint_is_not_there(tmp_path) -> None:
    class Unwritable:
        """Stands for a full disk."""

    with pytest.raises(TypeError):
        write_checkpoint(tmp_path / "epoch-000001", {}, {"bad": Unwritable()})
    assert not (tmp_path / "epoch-000001").exists()
    write_checkpoint(tmp_path / "epoch-000001", {}, {"good": 1})
    assert [p.name for p in tmp_path.iterdir()] == ["epoch-000001"]


@pytest.mark.parametrize("header", ["", "[]", "1", '{"format": 2}', '{"format": 3}', "not json"])
def test_a_directory_without_a_header_of_ours_is_no_checkpoint(tmp_path, header) -> None:
    if header:
        (tmp_path / "header.json").write_text(header)
    with pytest.raises(DamagedCheckpointError):
        read_header(tmp_path)


def trained(directory) -> nn.Module:
    trial = local_trial({}, directory=directory, batch_size=2)
    model, _ = trial.prepare(nn.Linear(2, 1), torch.optim.AdamW, lr=0.1)
    for _ in trial.epochs():
        for (x,) in trial.batches((torch.randn(8, 2),)):
            trial.step(model(x).square().mean())
        trial.report(val_loss=0.0)
    return model


def test_weights_can_be_loaded_for_a_later_stage(tmp_path) -> None:
    model, url = trained(tmp_path), f"file://{tmp_path}/store/epoch-000001"
    store(tmp_path / "epoch-000001", url)
    for place in (tmp_path / "epoch-000001", url):
        other = nn.Linear(2, 1)
        assert load_model(place, other)["epoch"] == 1
        assert torch.equal(model.weight, other.weight)


def test_weights_of_another_model_are_refused(tmp_path) -> None:
    trained(tmp_path)
    with pytest.raises(CheckpointError, match="it belongs to another model"):
        load_model(tmp_path / "epoch-000001", nn.Linear(3, 1))


def test_scripts_of_before_find_the_format_under_its_old_name() -> None:
    from parsl_rasda.runtime import checkpoint as before
    from parsl_rasda.runtime.checkpoints import checkpoint

    assert before.read_tensors is checkpoint.read_tensors
    assert before.write_checkpoint is checkpoint.write_checkpoint
