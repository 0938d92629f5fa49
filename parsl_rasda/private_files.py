"""What a run writes is its user's alone, unless a group is asked for.

A group is asked for by a directory that was made for it beforehand and that nobody else may enter::

    mkdir -m 2770 DIR && chgrp GROUP DIR        # or 2750, for reading only

Everything below it has the rights that DIR gives the group. Any other directory is closed, mode 0700.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_OTHERS = 0o007
_ONLY_MINE = 0o077


def umask_below(folder: Path) -> int:
    """Return the umask of what is written below a folder: group rights only if the folder asks for them."""
    try:
        mode = folder.stat().st_mode
    except OSError:
        return _ONLY_MINE
    is_shared = bool(mode & stat.S_ISGID) and not mode & _OTHERS
    return 0o777 & ~(mode & 0o770 | 0o700) if is_shared else _ONLY_MINE


def close_folder(folder: Path) -> None:
    """Make a folder if it is missing, and let nobody else in but a group that is asked for."""
    folder.mkdir(0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid == os.geteuid() and found.st_mode & umask_below(folder):
        folder.chmod(stat.S_IMODE(found.st_mode) & ~umask_below(folder))


def make_private(folder: Path) -> None:
    """Make a folder and those above it that are missing, with what rights this process gives its files."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    for each in reversed(missing):
        each.mkdir(0o777 & ~_strict(current_umask()), exist_ok=True)


@contextmanager
def private_files(folder: Path | None = None) -> Iterator[None]:
    """Let this process write private files while the block lasts.

    Threads share a umask, so a thread of somebody else's program leaves it alone.

    Args:
        folder: A run directory, which may ask for a group; without it, a group's rights stay if the umask of
            this process keeps others out already.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = os.umask(_ONLY_MINE)
    os.umask(_strict(before) if folder is None else umask_below(folder))
    try:
        yield
    finally:
        os.umask(before)


def current_umask() -> int:
    """Return the umask of this process."""
    found = os.umask(_ONLY_MINE)  # there is no call that only asks
    os.umask(found)
    return found


def _strict(umask: int) -> int:
    return umask if umask & _OTHERS == _OTHERS else _ONLY_MINE
