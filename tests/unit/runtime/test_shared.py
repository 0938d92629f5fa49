"""Checkpoints that all sites reach: copied whole, the newest first, never heard of too early."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem

from parsl_rasda.protocol import Checkpoint
from parsl_rasda.runtime.checkpoints import shared
from parsl_rasda.runtime.checkpoints.checkpoint import HEADER
from parsl_rasda.runtime.checkpoints.shared import SharedCheckpoints, StoreError, fetch, store


def checkpoint(folder: Path, epoch: int) -> Path:
    path = folder / f"epoch-{epoch:06d}"
    (path / "deep").mkdir(parents=True)
    (path / HEADER).write_text(f'{{"epoch": {epoch}}}')
    (path / ".metadata").write_text("tensors")
    (path / "deep" / "weights").write_bytes(bytes(epoch))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/store/study-1/0000/attempt-1"


def test_what_is_fetched_is_what_was_stored(tmp_path: Path, url: str) -> None:
    path = checkpoint(tmp_path / "a", 3)
    store(path, f"{url}/{path.name}")
    fetch(f"{url}/{path.name}", tmp_path / "b")
    assert contents(tmp_path / "b") == contents(path)


def test_a_copy_without_a_header_is_none(tmp_path: Path, url: str) -> None:
    path = checkpoint(tmp_path / "a", 3)
    (path / HEADER).unlink()
    store(path, f"{url}/{path.name}")
    with pytest.raises(StoreError, match=r"no header\.json there"):
        fetch(f"{url}/{path.name}", tmp_path / "b")
    assert not (tmp_path / "b").exists()


class Gate:
    """Holds every copy of a file until it is told, and notes their order."""

    def __init__(self) -> None:
        self.copied: list[str] = []
        self.fails = 0
        self.entered, self.open = threading.Event(), threading.Event()

    def install(self, patch: Callable[..., None]) -> None:
        put = LocalFileSystem.put_file

        def put_file(system: LocalFileSystem, source: str, target: str) -> None:
            self.entered.set()
            assert self.open.wait(20.0)
            if self.fails:
                self.fails -= 1
                raise OSError("the store is busy")
            self.copied.append(target)
            put(system, source, target)

        patch(LocalFileSystem, "put_file", put_file)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    gate = Gate()
    gate.install(monkeypatch.setattr)
    monkeypatch.setattr(shared, "FIRST_PAUSE_S", 0.001)
    return gate


def test_training_goes_on_meanwhile_and_only_whole_copies_are_told_of(
    tmp_path: Path, url: str, gate: Gate
) -> None:
    shares, paths = SharedCheckpoints(url), [checkpoint(tmp_path / "a", epoch) for epoch in (1, 2, 3)]
    shares.add(paths[0], 1)
    assert gate.entered.wait(20.0)
    shares.add(paths[1], 2)
    shares.add(paths[2], 3)
    assert shares.newest is None
    assert [shares.needs(path) for path in paths] == [True, False, True], "the second was overtaken"
    with pytest.raises(StoreError, match="not done within 0 s"):
        shares.finish(0.0)
    gate.open.set()
    shares.finish()
    assert shares.newest == Checkpoint(f"{url}/epoch-000003", 3)
    assert not any("epoch-000002" in target for target in gate.copied)
    headers = [index for index, target in enumerate(gate.copied) if target.endswith(HEADER)]
    assert headers == [2, 5], "last of each"
    assert not any(shares.needs(path) for path in paths)


def test_old_copies_go_but_the_one_before(tmp_path: Path, url: str) -> None:
    shares = SharedCheckpoints(url)
    for epoch in (1, 2, 3):
        shares.add(checkpoint(tmp_path / "a", epoch), epoch)
        shares.finish()
    kept = sorted(path.name for path in (tmp_path / "store").glob("*/*/*/*"))
    assert kept == ["epoch-000002", "epoch-000003"]


def test_copies_that_may_still_be_asked_for_stay(tmp_path: Path, url: str) -> None:
    shares = SharedCheckpoints(url, superseded=lambda places: places.index(f"{url}/epoch-000001"))
    for epoch in (1, 2, 3, 4):
        shares.add(checkpoint(tmp_path / "a", epoch), epoch)
        shares.finish()
    fetch(f"{url}/epoch-000001", tmp_path / "b")


def test_a_store_that_fails_for_a_moment_is_asked_again(tmp_path: Path, url: str, gate: Gate) -> None:
    gate.fails = 2
    gate.open.set()
    shares = SharedCheckpoints(url)
    shares.add(checkpoint(tmp_path / "a", 1), 1)
    shares.finish()
    assert shares.newest == Checkpoint(f"{url}/epoch-000001", 1)


def test_a_store_that_stays_away_is_named(tmp_path: Path, url: str, gate: Gate) -> None:
    gate.fails = 1000
    gate.open.set()
    shares = SharedCheckpoints(url)
    shares.add(checkpoint(tmp_path / "a", 1), 1)
    with pytest.raises(StoreError, match="epoch-000001 could not be copied: OSError: the store is busy"):
        shares.finish()
    assert shares.newest is None


@pytest.mark.parametrize("name", ["../outside", "a/../../outside", "/etc/outside"])
def test_no_name_in_a_store_leads_out_of_the_folder_of_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    class Store:
        def find(self, root: str) -> list[str]:
            return [f"{root}/header.json", name if name.startswith("/") else f"{root}/{name}"]

        def get_file(self, source: str, target: str) -> None:
            Path(target).write_text(source, encoding="utf-8")

    monkeypatch.setattr(shared, "_file_system", lambda url: (Store(), "bucket/copy"))
    with pytest.raises(StoreError, match="leads out of"):
        fetch("s3://bucket/copy", tmp_path / "in" / "copy")
    assert not list(tmp_path.rglob("outside"))
    assert not (tmp_path / "in" / "copy").exists()
