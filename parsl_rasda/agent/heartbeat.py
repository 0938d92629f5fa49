"""What every task on a Globus Compute site leaves on its disk: claims, heartbeats, files that are whole."""

from __future__ import annotations

import os
import platform
import threading
import time
from pathlib import Path
from typing import Any, Self

CLAIM, HEARTBEAT = "claim", "heartbeat"
HEARTBEAT_S = 1.0
GONE_S = 8.0  # for what was told to leave, to save and to go

Message = dict[str, Any]


class Heartbeat:
    """Shows that the task which watches over a directory lives, while the block lasts."""

    def __init__(self, directory: Path) -> None:
        """Prepare; the first beat is on entry."""
        self._directory = directory
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="rasda-heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._beat()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(HEARTBEAT_S):
            self._beat()

    def _beat(self) -> None:
        beside = self._directory / f"{HEARTBEAT}.new"
        beside.write_text(str(time.time()))
        beside.replace(self._directory / HEARTBEAT)


def silence_of(directory: Path) -> float:
    """Return how old the heartbeat is [s]; without one, how old the claim is."""
    try:
        return time.time() - float((directory / HEARTBEAT).read_text())
    except (OSError, ValueError):
        return _age_s(directory / CLAIM)


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0


def read(path: Path) -> str | None:
    """Return what a file holds, or None if there is none."""
    try:
        return path.read_text()
    except OSError:
        return None


def create(path: Path, text: str) -> bool:
    """Write a file whole; returns whether there was none."""
    beside = path.with_name(f"{path.name}.{platform.node()}.{os.getpid()}.{threading.get_ident()}")
    beside.write_text(text)
    try:
        os.link(beside, path)
    except FileExistsError:
        return False
    finally:
        beside.unlink()
    return True


def write(path: Path, text: str) -> None:
    """Write a file whole, unless there is one."""
    create(path, text)
