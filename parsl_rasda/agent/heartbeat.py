"""What every task on a Globus Compute site leaves on its disk: who has claimed it, and a heartbeat."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from parsl_rasda.atomic_files import replace_file

CLAIM, HEARTBEAT = "claim", "heartbeat"
HEARTBEAT_S = 1.0
LEAVE_S = 8.0  # for what was told to leave, to save and to end

Message = dict[str, Any]


class Heartbeat:
    """Shows, while the block lasts, that the task lives which watches over a directory."""

    def __init__(self, directory: Path) -> None:
        """Prepare; the first heartbeat is written on entry."""
        self._directory = directory
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="rasda-heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._write()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(HEARTBEAT_S):
            self._write()

    def _write(self) -> None:
        path, now = self._directory / HEARTBEAT, str(time.time())
        try:
            replace_file(path, now, is_durable=False)
        except OSError:  # on a full disk there is room for the old file only
            with suppress(OSError), path.open("r+", encoding="utf-8") as file:
                file.write(now)


def silence_of(directory: Path) -> float:
    """Return how old the heartbeat is [s]; without one, how old the claim is."""
    try:
        return time.time() - float((directory / HEARTBEAT).read_text(encoding="utf-8"))
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
        return path.read_text(encoding="utf-8")
    except OSError:
        return None
