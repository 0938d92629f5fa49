"""Files that are whole or not there: written beside their place, synced, then put into it.

What need not survive a crash of the machine, such as a heartbeat, is not synced: ``is_durable=False``.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def replace_file(
    path: Path, content: str | bytes, *, is_durable: bool = True, mode: int | None = None
) -> None:
    """Write a file so that a death leaves the old one or the new one, never half of it.

    Args:
        path: The file.
        content: All of it; a string becomes UTF-8.
        is_durable: Whether it must survive a crash of the machine.
        mode: Its rights, if not those that the umask gives.

    Raises:
        OSError: If the file system refuses; the old file stands.
    """
    with _beside(path, content, is_durable=is_durable, mode=mode) as part:
        part.replace(path)
    if is_durable:
        sync_folder(path.parent)


def create_file(path: Path, content: str | bytes) -> bool:
    """Write a file unless there is one: the first writer wins, on whatever host.

    Returns:
        Whether it was this call that wrote it.

    Raises:
        OSError: If the file system refuses.
    """
    with _beside(path, content, is_durable=True) as part:
        try:
            os.link(part, path)
        except FileExistsError:
            return False
    sync_folder(path.parent)
    return True


def sync_folder(folder: Path) -> None:
    """Make sure that the names in a folder survive a crash of the machine."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _beside(path: Path, content: str | bytes, *, is_durable: bool, mode: int | None = None) -> Iterator[Path]:
    """Give a file of a name that nobody else has or can foresee; what is left of it goes."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    data = content.encode() if isinstance(content, str) else content
    try:
        with part.open("xb") as file:
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            file.write(data)
            if is_durable:
                file.flush()
                os.fsync(file.fileno())
        yield part
    finally:
        with suppress(FileNotFoundError):
            part.unlink()
