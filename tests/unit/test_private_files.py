"""What a run writes is its user's alone, unless a group is asked for."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from parsl_rasda.atomic_files import replace_file
from parsl_rasda.orchestration.run_directory import RunDirectory
from parsl_rasda.private_files import close_folder, current_umask, make_private, private_files, umask_below


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(autouse=True)
def open_umask() -> object:
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.parametrize(
    ("mode", "umask"),
    [(0o700, 0o077), (0o755, 0o077), (0o2755, 0o077), (0o770, 0o077), (0o2770, 0o007), (0o2750, 0o027)],
)
def test_only_a_folder_with_a_group_and_no_others_asks_for_the_group(
    tmp_path: Path, mode: int, umask: int
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(mode)
    assert umask_below(tmp_path / "run") == umask


def test_a_run_directory_is_closed_when_it_begins(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "runs" / "x").controlled():
        assert _mode(tmp_path / "runs" / "x") == 0o700


def test_a_run_directory_of_an_earlier_version_is_closed_when_it_goes_on(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x").chmod(0o755)
    (tmp_path / "x" / "origin.json").write_text("{}")
    with RunDirectory(tmp_path / "x").controlled():
        assert _mode(tmp_path / "x") == 0o700


def test_a_run_directory_that_was_made_for_a_group_stays_open_to_it(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x").chmod(0o2770)
    with RunDirectory(tmp_path / "x").controlled(), private_files(tmp_path / "x"):
        replace_file(tmp_path / "x" / "file", "")
        make_private(tmp_path / "x" / "trials" / "t1")
        assert _mode(tmp_path / "x") & 0o777 == 0o770
        assert _mode(tmp_path / "x" / "file") == 0o660
        assert _mode(tmp_path / "x" / "trials" / "t1") & 0o777 == 0o770


def test_a_folder_with_other_things_in_it_keeps_its_rights_and_ours_are_private(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("")
    tmp_path.chmod(0o755)
    with RunDirectory(tmp_path).controlled(), private_files(tmp_path):
        assert _mode(tmp_path) == 0o755
        replace_file(tmp_path / "file", "")
        assert _mode(tmp_path / "file") == 0o600


def test_folders_of_attempts_are_private_whatever_the_umask_of_a_worker(tmp_path: Path) -> None:
    make_private(tmp_path / "a" / "b")
    assert (_mode(tmp_path / "a"), _mode(tmp_path / "a" / "b")) == (0o700, 0o700)


def test_the_umask_is_only_borrowed(tmp_path: Path) -> None:
    with private_files():
        assert current_umask() == 0o077
        close_folder(tmp_path / "x")
    assert current_umask() == 0o022


def test_nobody_can_foresee_the_name_of_a_file_in_the_making(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []
    real = os.fsync
    monkeypatch.setattr(
        "parsl_rasda.atomic_files.os.fsync",
        lambda f: (names.extend(p.name for p in tmp_path.iterdir()), real(f))[1],
    )
    for _ in range(2):
        replace_file(tmp_path / "file", "x")
    parts = [name for name in names if name.endswith(".part")]
    assert len(set(parts)) == 2
