"""The folder of a worker pool's sockets, which goes when the pool does, however that ends.

`multiprocessing` makes such folders for itself and forgets them when a process is killed, as pilots are.
Here a small process outlives the pool for a moment to remove its folder; what is left when that one is killed
too, the next pool of this user on the node removes.
"""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing.util
import os
import shutil
import signal
import tempfile
from pathlib import Path

_LOCK = "rasda-pool"  # held as long as the pool lives, which all containers see that share the folder


def use() -> None:
    """Give this process, and all that `multiprocessing` starts for it, a folder that will be removed.

    To be called before there are threads.
    """
    _remove_dead()
    folder = Path(multiprocessing.util.get_temp_dir())
    held = os.open(folder / "new", os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(held, fcntl.LOCK_EX)
    (folder / "new").rename(folder / _LOCK)  # nobody finds it unlocked
    _start_remover(folder, held)


def _start_remover(folder: Path, held: int) -> None:
    ends, alive = os.pipe()  # closed by the end of the pool; nobody whom it starts inherits it
    if os.fork():
        os.close(ends)
        return
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # they end the pool, and that ends this process
    os.close(alive)
    os.close(held)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(null, standard)
    os.read(ends, 1)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


def _remove_dead() -> None:
    for lock in Path(tempfile.gettempdir()).glob(f"pymp-*/{_LOCK}"):
        with contextlib.suppress(OSError):
            if lock.lstat().st_uid == os.getuid() and _is_dead(lock):
                shutil.rmtree(lock.parent, ignore_errors=True)


def _is_dead(lock: Path) -> bool:
    handle = os.open(lock, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return True
