"""That the folder of a pool's sockets goes with the pool, or at the latest when the next one begins."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from backend_tools import eventually

POOL = """
import multiprocessing, sys
from parsl_rasda.agent import pool_folder

if __name__ == "__main__":
    pool_folder.use()
    manager = multiprocessing.get_context("forkserver").Manager()
    assert manager.dict().copy() == {}
    print("up", flush=True)
    sys.stdin.read()
"""


def start(folder: Path) -> subprocess.Popen[str]:
    """Start a pool, which has sockets in the folder."""
    environment = {"PYTHONPATH": str(Path(__file__).parents[3]), "PATH": os.defpath, "TMPDIR": str(folder)}
    (folder.parent / "pool.py").write_text(POOL)  # what is forked imports it
    pool = subprocess.Popen(
        (sys.executable, folder.parent / "pool.py"),
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert pool.stdout is not None
    assert pool.stdout.readline() == "up\n"
    return pool


def kill(pool: subprocess.Popen[str]) -> None:
    pool.kill()
    with pool:
        pass


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as short:  # paths of sockets have 108 bytes
        (Path(short) / "t").mkdir()
        yield Path(short) / "t"
        for process in psutil.process_iter():  # the manager of a pool that was killed lives on
            with suppress(psutil.Error):
                if process.environ().get("TMPDIR") == str(Path(short) / "t"):
                    process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, None])
def test_however_a_pool_ends_it_leaves_no_folder(folder: Path, number: signal.Signals | None) -> None:
    with start(folder) as pool:
        (found,) = folder.iterdir()
        assert found.stat().st_mode & 0o777 == 0o700
        if number is signal.SIGTERM:
            os.killpg(pool.pid, number)
        elif number is not None:
            pool.send_signal(number)
        else:
            pool.communicate("")
    eventually(lambda: not list(folder.iterdir()))


def test_what_a_pool_and_its_remover_leave_the_next_pool_removes_and_no_more(folder: Path) -> None:
    living, dead = start(folder), start(folder)
    (of_living, of_dead) = sorted(folder.iterdir(), key=lambda f: f.stat().st_mtime_ns)
    doomed = [dead.pid, *(child.pid for child in psutil.Process(dead.pid).children(recursive=True))]
    for pid in doomed:
        os.kill(pid, signal.SIGSTOP)
    for pid in doomed:
        os.kill(pid, signal.SIGKILL)
    kill(dead)
    assert of_dead.exists()
    third = start(folder)
    assert of_living.exists()
    assert not of_dead.exists()
    kill(third)
    kill(living)
    eventually(lambda: not list(folder.iterdir()))
