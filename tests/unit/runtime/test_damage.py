"""Whatever happens to the files of a checkpoint is noticed, and is damage: the trial has older ones."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parsl_rasda.errors import DamagedCheckpointError
from parsl_rasda.protocol import JobSpec
from parsl_rasda.runtime.attempt.attempt import Attempt
from parsl_rasda.runtime.attempt.launch_context import LaunchContext
from parsl_rasda.runtime.checkpoints import seal, shared
from parsl_rasda.runtime.checkpoints.checkpoint import (
    publish_checkpoint,
    read_header,
    read_tensors,
    write_checkpoint,
)
from parsl_rasda.runtime.checkpoints.seal import check_files, is_whole
from parsl_rasda.runtime.checkpoints.shared import CopyGoneError, fetch, store
from parsl_rasda.types import TrialId

TENSORS = {f"model.w{i}": torch.full((8, 8), float(i)) for i in range(3)} | {
    "optim.w0.step": torch.tensor(4.0)
}
HEADER = {"epoch": 3, "step": 0, "numbers": {"w0": {"x": 1e-7}}, "name": "\u00e9"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "epoch-000003"
    write_checkpoint(path, TENSORS, HEADER)
    return path


@pytest.fixture
def checkpoint(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / whole.name))


def files_of(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file())


Damage = Callable[[Path, st.DataObject], None]


def flip_a_bit(path: Path, data: st.DataObject) -> None:
    file = data.draw(st.sampled_from(files_of(path)))
    content = bytearray(file.read_bytes())
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


def cut_off(path: Path, data: st.DataObject) -> None:
    file = data.draw(st.sampled_from(files_of(path)))
    file.write_bytes(file.read_bytes()[: data.draw(st.integers(0, file.stat().st_size - 1))])


def make_longer(path: Path, data: st.DataObject) -> None:
    with data.draw(st.sampled_from(files_of(path))).open("ab") as file:
        file.write(data.draw(st.binary(min_size=1)))


def swap(path: Path, data: st.DataObject) -> None:
    one, two = data.draw(st.permutations(files_of(path)))[:2]
    kept = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(kept)


def remove(path: Path, data: st.DataObject) -> None:
    data.draw(st.sampled_from(files_of(path))).unlink()


def overwrite(path: Path, data: st.DataObject) -> None:
    file = data.draw(st.sampled_from(files_of(path)))
    content = data.draw(st.binary().filter(lambda found: found != file.read_bytes()))
    file.write_bytes(content)


def put_a_folder_in_place(path: Path, data: st.DataObject) -> None:
    file = data.draw(st.sampled_from(files_of(path)))
    file.unlink()
    file.mkdir()


DAMAGES: tuple[Damage, ...] = (
    *(flip_a_bit, cut_off, make_longer, swap, remove, overwrite, put_a_folder_in_place),
)


@given(data=st.data())
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_always_noticed(
    whole: Path, tmp_path_factory: pytest.TempPathFactory, damage: Damage, data: st.DataObject
) -> None:
    path = Path(shutil.copytree(whole, tmp_path_factory.mktemp("damaged") / whole.name))
    damage(path, data)
    for read in (read_tensors, check_files):
        with pytest.raises(DamagedCheckpointError):
            read(path)


def test_each_single_bit_of_the_header_counts(checkpoint: Path) -> None:
    header = checkpoint / "header.json"
    content = header.read_bytes()
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        header.write_bytes(flipped)
        with pytest.raises(DamagedCheckpointError):
            read_header(checkpoint)


def test_what_a_script_has_saved_is_sealed_too(tmp_path: Path) -> None:
    part = tmp_path / "part"
    (part / "deep").mkdir(parents=True)
    (part / "deep" / "weights").write_bytes(b"all of it")
    publish_checkpoint(part, tmp_path / "epoch-000001", {"epoch": 1})
    check_files(tmp_path / "epoch-000001")
    (tmp_path / "epoch-000001" / "deep" / "weights").write_bytes(b"All of it")
    with pytest.raises(DamagedCheckpointError, match="deep/weights is not what was written"):
        check_files(tmp_path / "epoch-000001")


def test_a_copy_that_is_damaged_at_its_url_is_gone(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "FIRST_PAUSE_S", 0.001)
    url = f"file://{tmp_path}/store/epoch-000003"
    store(checkpoint, url)
    flip_byte(tmp_path / "store" / "epoch-000003" / ".metadata")
    with pytest.raises(CopyGoneError, match=r"\.metadata is not what was written"):
        fetch(url, tmp_path / "fetched")
    assert not (tmp_path / "fetched").exists()


def test_a_checkpoint_that_is_damaged_here_is_fetched_where_it_is_whole(whole: Path, tmp_path: Path) -> None:
    here = Path(shutil.copytree(whole, tmp_path / "0000" / "attempt-1" / whole.name))
    url = f"file://{tmp_path}/store/attempt-1/{whole.name}"
    store(here, url)
    flip_byte(here / ".metadata")
    attempt = attempt_in(tmp_path / "0000" / "attempt-2")
    found = attempt.find_checkpoint(url)
    assert found == attempt.directory / "resumed"
    assert is_whole(found)


def test_one_that_is_whole_here_is_not_fetched(whole: Path, tmp_path: Path) -> None:
    here = Path(shutil.copytree(whole, tmp_path / "0000" / "attempt-1" / whole.name))
    attempt = attempt_in(tmp_path / "0000" / "attempt-2")
    assert attempt.find_checkpoint(f"file://{tmp_path}/store/attempt-1/{whole.name}") == here


def test_big_files_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seal, "_CHUNK_BYTES", 7)
    path = tmp_path / "epoch-000001"
    write_checkpoint(path, TENSORS, HEADER)
    monkeypatch.undo()
    assert is_whole(path)


def flip_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x10
    file.write_bytes(content)


def attempt_in(directory: Path) -> Attempt:
    directory.mkdir(parents=True)
    spec = JobSpec(
        study="s",
        trial=TrialId("0000"),
        attempt=2,
        config={},
        directory=str(directory),
        seed=0,
        metric="loss",
        mode="min",
        epoch=3,
        until=4,
        max_epochs=4,
        schedule=((0, 1),),
        world_size=1,
    )
    return Attempt(spec, LaunchContext(0, 1, 0, {}, "", one_node=True))
