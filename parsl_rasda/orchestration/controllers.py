"""Who controls a run directory: a claim for each controller that it ever had; the last one counts.

::

    controllers/000001.json  000002.json ...    host, boot, PID namespace, pid and start of a process

Whoever finds the last claim dead makes the next one by a hard link. Exactly one process can, on any file
system with links, NFS and Lustre among them, where locks (flock, fcntl) need not work between hosts. A
claim is never removed or replaced: of several that saw a dead one, a slow one could remove that of a
controller which lives. A controller that ends empties its own. A file ``000002.end`` asks the second one
to end.

The process is looked up where it can be seen: on the same boot of the same kernel, in the same PID
namespace. Elsewhere, on another host or in a container, the claim's lease counts: the controller touches it
every ten seconds, and one that has been silent for two minutes is dead. As clocks of hosts differ, the
present is asked of the file system, by touching a file there.

Versions before 0.2 had one file, `controller.json`, in the run directory; it is read as the claim before the
first.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from parsl_rasda.atomic_files import create_file
from parsl_rasda.errors import RunDirectoryError
from parsl_rasda.processes import identify

FOLDER = "controllers"
SILENCE_S = 120.0  # one that cannot be looked up and has been silent for so long is dead
RENEWAL_S = 10.0
_BEFORE_0_2 = "controller.json"

Identity = Mapping[str, str | int | None]


@dataclass(frozen=True, slots=True)
class Claim:
    """The claim of one controller.

    Attributes:
        number: 0 for one of a version before 0.2.
        identity: Empty if it has ended, or cannot be read.
    """

    file: Path
    number: int
    identity: Identity

    @property
    def is_mine(self) -> bool:
        """Whether it is of this process."""
        return self.identity == _own_identity()

    @property
    def holder(self) -> str | None:
        """Which controller it is of, in words; None if that is dead or has ended."""
        try:
            touched = self.file.stat().st_mtime
            pid, start, host = self.identity["pid"], self.identity["start"], self.identity["host"]
        except (OSError, KeyError):
            return None
        if _can_look_up(self.identity):
            is_alive = isinstance(pid, int) and _start_of(pid) == start
        else:
            is_alive = _now_of(self.file.parent) - touched < SILENCE_S
        return f"process {pid} on {host}" if is_alive else None

    @property
    def is_told_to_end(self) -> bool:
        """Whether somebody has asked this controller, and no later one, to end."""
        return self._request.exists()

    def tell_to_end(self) -> None:
        """Ask this controller to end; it finds the request wherever it runs."""
        create_file(self._request, "")

    @property
    def _request(self) -> Path:
        return self.file.with_suffix(".end")

    @contextlib.contextmanager
    def renewed(self) -> Iterator[None]:
        """Keep the lease while the block lasts, then say that it has ended."""
        over = threading.Event()

        def renew() -> None:
            while not over.wait(RENEWAL_S):
                with contextlib.suppress(OSError):
                    os.utime(self.file)  # by the clock of the file server, not by ours

        thread = threading.Thread(target=renew, name="rasda-lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            with contextlib.suppress(OSError):
                os.truncate(self.file, 0)  # works on a full disk, too


def last_claim(run: Path) -> Claim | None:
    """Return the last claim of a run directory, or None if it never had a controller."""
    numbers = [int(file.stem) for file in (run / FOLDER).glob("[0-9]*.json") if file.stem.isdecimal()]
    number = max(numbers, default=0)
    while number and _file_of(run, number + 1).exists():  # a file server may have given an old listing
        number += 1
    file = _file_of(run, number) if number else run / _BEFORE_0_2
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        found = None
    return Claim(file, number, found if isinstance(found, dict) else {})


def claim(run: Path) -> Claim:
    """Make this process the controller of a run directory.

    Raises:
        RunDirectoryError: If another controller is alive.
    """
    (run / FOLDER).mkdir(exist_ok=True)
    while True:
        last = last_claim(run)
        other = last.holder if last else None
        if other is not None:
            raise RunDirectoryError(str(run), f"is being run by {other}", "Wait for it, or end it first.")
        ours = _own_identity()
        number = last.number + 1 if last else 1
        if create_file(_file_of(run, number), json.dumps(ours)):
            return Claim(_file_of(run, number), number, ours)


def _file_of(run: Path, number: int) -> Path:
    return run / FOLDER / f"{number:06}.json"


def _own_identity() -> Identity:
    return _identity_of(os.getpid())


@cache
def _identity_of(pid: int) -> Identity:
    """Return the identity of this process, which is asked for with each write to the journal."""
    return {
        "host": platform.node(),
        "boot": _boot(),
        "pids": _pid_namespace(),
        "pid": pid,
        "start": _start_of(pid),
    }


def _can_look_up(identity: Identity) -> bool:
    """Whether the process would be among those that this one can see."""
    if "boot" not in identity:  # before 0.2
        return identity["host"] == platform.node()
    return None not in (ours := (_boot(), _pid_namespace())) and ours == (identity["boot"], identity["pids"])


def _boot() -> str | None:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return None


def _pid_namespace() -> str | None:
    with contextlib.suppress(OSError):
        return str(Path("/proc/self/ns/pid").readlink())
    return None


def _start_of(pid: int) -> str | None:
    """Return when a process started, or None if it is gone."""
    process = identify(pid)
    return None if process is None else str(process.start)


def _now_of(folder: Path) -> float:
    """Return the time of a file system; that of this host for those who may only read there."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".now.") as probe:
            os.utime(probe.name)
            return Path(probe.name).stat().st_mtime
    except OSError:
        return time.time()
