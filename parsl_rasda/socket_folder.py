"""A short folder for sockets: their paths have at most 107 bytes, and a batch system's TMPDIR may be longer.

It is the one place where we, and multiprocessing in our processes, keep sockets. Only this user may enter it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from parsl_rasda.errors import StorageError

LONGEST = 107  # bytes of the path of a socket
_OF_MULTIPROCESSING = 40  # bytes that it puts behind its temporary folder, and more than that
_PREFIX = "mp-"

_in_use: tuple[Path, int] | None = None  # of this process, and the lock that shows it


def socket_folder(environ: Mapping[str, str]) -> Path:
    """Return a short folder that only this user may enter.

    Raises:
        StorageError: If there is none.
    """
    named = environ.get("XDG_RUNTIME_DIR", "")
    bases = ["/tmp", *([named] if named else []), "/dev/shm", "/var/tmp"]  # noqa: S108 - checked below
    for base in bases:
        path = Path(base) / f"parsl-rasda-{os.getuid()}"
        if len(os.fsencode(path)) + _OF_MULTIPROCESSING > LONGEST:
            continue
        with suppress(OSError):
            path.mkdir(0o700, exist_ok=True)
            found = path.lstat()
            is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
            if is_ours and not found.st_mode & 0o077 and os.access(path, os.W_OK | os.X_OK):
                return path
    tried = f"tried {', '.join(bases)}; set TMPDIR to a short folder of this user's (worker_init)"
    raise StorageError(bases[0], "no folder for sockets could be made", tried)


def shorten_paths() -> None:
    """Let multiprocessing use a folder of this process in there, if its own paths would be too long."""
    global _in_use  # noqa: PLW0603 - as multiprocessing's own, one for each process
    if len(os.fsencode(tempfile.gettempdir())) + _OF_MULTIPROCESSING <= LONGEST or _in_use is not None:
        return
    from multiprocessing import process

    base = socket_folder(os.environ)
    with _alone(base):
        _remove_old(base)
        path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
        lock = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(lock, fcntl.LOCK_SH)
    _in_use = path, lock
    process.current_process()._config["tempdir"] = str(path)  # type: ignore[attr-defined] # where it looks first


def short_tmpdir(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variable with which programs that we start find a folder short enough for sockets.

    Nothing where theirs is; else it is that of this process, which goes with it.
    """
    if _in_use is None or len(os.fsencode(environ.get("TMPDIR", ""))) + _OF_MULTIPROCESSING <= LONGEST:
        return {}
    return {"TMPDIR": str(_in_use[0])}


def discard() -> None:
    """Remove what `shorten_paths` has made; whoever is killed leaves it to the next one."""
    if _in_use is not None:
        shutil.rmtree(_in_use[0], ignore_errors=True)


def _remove_old(base: Path) -> None:
    for path in base.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            lock = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    lock = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
