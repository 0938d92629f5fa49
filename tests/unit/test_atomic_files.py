"""Files that are whole or not there."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from parsl_rasda.atomic_files import create_file, replace_file


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    replace_file(file, "old")
    replace_file(file, b"new")
    assert file.read_text() == "new"
    assert list(tmp_path.iterdir()) == [file]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    replace_file(file, "old")
    with pytest.raises(TypeError):
        replace_file(file, 7)  # type: ignore[arg-type]
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_of_many_writers_exactly_one_wins(tmp_path: Path) -> None:
    file = tmp_path / "lease"
    with ThreadPoolExecutor(16) as threads:
        won = list(threads.map(lambda n: (create_file(file, f"{n}" * 1000), n), range(64)))
    (winner,) = [n for is_first, n in won if is_first]
    assert file.read_text() == f"{winner}" * 1000
    assert list(tmp_path.iterdir()) == [file]
