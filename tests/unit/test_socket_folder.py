"""Sockets of ours, and of multiprocessing in our processes, have short paths whatever TMPDIR says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from parsl_rasda.socket_folder import LONGEST, socket_folder

REPOSITORY = Path(__file__).parents[2]
PROGRAM = """
import multiprocessing, sys
from multiprocessing import util
from parsl_rasda import socket_folder

def answer(queue): queue.put(util.get_temp_dir())

if __name__ == "__main__":
    socket_folder.shorten_paths()
    queue = multiprocessing.get_context(sys.argv[1]).Manager().Queue()
    child = multiprocessing.get_context(sys.argv[1]).Process(target=answer, args=(queue,))
    child.start()
    print(queue.get(timeout=60))
    child.join()
    if sys.argv[2] == "leave":
        socket_folder.discard()
"""


def temporary_folder(tmpdir: Path, method: str, end: str = "leave") -> Path:
    tmpdir.mkdir(parents=True, exist_ok=True)
    program = tmpdir / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, str(program), method, end],
        env={**os.environ, "TMPDIR": str(tmpdir), "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
        encoding="utf-8",
    )
    return Path(done.stdout.strip())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_a_long_tmpdir_is_not_used_for_sockets(tmp_path, method) -> None:
    folder = temporary_folder(tmp_path / ("x" * 120), method)
    assert len(os.fsencode(folder)) + 20 < LONGEST
    assert folder.parent == socket_folder(os.environ)
    assert not folder.exists(), "removed at the end"


@pytest.mark.slow
def test_what_a_killed_process_has_left_is_removed_by_the_next_one(tmp_path) -> None:
    left = temporary_folder(tmp_path / ("x" * 120), "fork", "stay")
    assert left.exists()
    temporary_folder(tmp_path / ("x" * 120), "fork")
    assert not left.exists()


def test_a_short_tmpdir_stays_as_it_is(tmp_path_factory) -> None:
    short = tmp_path_factory.mktemp("t")
    assert temporary_folder(short, "fork").parent == short


def test_the_folder_of_sockets_is_this_users_alone() -> None:
    found = socket_folder(os.environ)
    assert found.stat().st_mode & 0o077 == 0
    assert found.stat().st_uid == os.getuid()
    assert socket_folder({**os.environ, "TMPDIR": "/x" * 100}) == found


@pytest.mark.parametrize(("length", "is_short"), [(120, False), (1, True)])
def test_programs_that_we_start_get_a_short_tmpdir_where_theirs_is_too_long(
    tmp_path_factory, length, is_short
) -> None:
    tmpdir = tmp_path_factory.mktemp("t") / ("x" * length)
    tmpdir.mkdir()
    program = """
import os
from parsl_rasda import socket_folder
socket_folder.shorten_paths()
print(socket_folder.short_tmpdir(os.environ).get("TMPDIR", "theirs"))
socket_folder.discard()
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "TMPDIR": str(tmpdir), "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
        encoding="utf-8",
    )
    found = done.stdout.strip()
    assert (found == "theirs") is is_short
    assert is_short or Path(found).parent == socket_folder(os.environ)
