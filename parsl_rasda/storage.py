"""Errors of a file system that are the site's, not a trial's: which, where, and how much space is left."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from parsl_rasda.errors import StorageError

_CODES = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE)
# Libraries tell of them in words only: HDF5, the shared memory of torch, a script's last line.
_WORDS = tuple(os.strerror(code) for code in _CODES)
# ... or do not say which it was: torch.save, ndarray.tofile, SQLite.
_VAGUE = re.compile(
    r"PytorchStreamWriter failed|basic_ios::clear: iostream error|\d+ requested and \d+ written"
    r"|database or disk is full|disk I/O error"
)
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_STEP = 1024


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Turn an error of the file system that has a path into a `StorageError`; other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno not in _CODES:
            raise
        raise _of(error, path) from error


def storage_error(error: BaseException, path: Path) -> StorageError | None:
    """Return the error of a file system that an exception comes from, or None.

    Args:
        error: The exception; those that led to it are looked at, too.
        path: Where it happened, if the exception does not say.
    """
    seen: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in seen:
        if isinstance(at, StorageError):
            return at
        if isinstance(at, OSError) and at.errno in _CODES:
            return _of(at, path)
        text = _text_of(at)
        words = next((words for words in _WORDS if words in text), "")
        if words or _VAGUE.search(text):
            return StorageError(str(path), words or text.partition("\n")[0], space_left(path))
        seen.append(at)
        at = at.__cause__ or (None if at.__suppress_context__ else at.__context__)
    return None


def unwritable(folder: Path) -> StorageError | None:
    """Return why nothing can be written in a folder at present, if that is the file system's fault."""
    try:
        with storing(folder), tempfile.NamedTemporaryFile(dir=folder, prefix=".probe.") as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
    except StorageError as error:
        return error
    except OSError:
        return None
    return None


def space_left(path: Path) -> str:
    """Return how much of a file system is left at a path, for people."""
    for place in (path, *path.parents):
        try:
            found = os.statvfs(place)
        except OSError:
            continue
        free, total = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
        files = f" and {found.f_favail} files" if found.f_files else ""
        return f"{_shown(free)} of {_shown(total)}{files} left"
    return "how much space is left cannot be told"


def _of(error: OSError, path: Path) -> StorageError:
    at = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else path
    return StorageError(str(at), os.strerror(error.errno or 0), space_left(at))


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - a user's class may raise anything
        return ""


def _shown(number: float) -> str:
    unit = 0
    while number >= _STEP and unit < len(_UNITS) - 1:
        number, unit = number / _STEP, unit + 1
    return f"{number:.3g} {_UNITS[unit]}"
