"""Which run has a pilot behind an endpoint.

Two studies on one endpoint get the same pilot, and each would count all its GPUs as its own. So a run
leases the pilot before it uses it. The lease is a file on the pilot's lead node, where every task of
every run begins, whatever `work_dir` the runs have. Handshakes and jobs renew it, the run's last task
releases it, and it expires if nobody renews it for a while: a run that died does not hold a pilot, nor
does one that has no work for it. On a machine without a batch system all pilots have the same GPUs: there the
machine is leased, not one pilot of it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from parsl_rasda.atomic_files import replace_file

MACHINE = "machine"  # instead of a pilot's name

LEASE_S = 60.0
FOLDER = Path(tempfile.gettempdir()) / f"parsl-rasda-{os.getuid()}"


def acquire(block: str, mark: str, study: str) -> str:
    """Lease a pilot to a run, or renew its lease.

    Args:
        block: The pilot, or `MACHINE`; one without a name cannot be leased, and everybody has it.
        mark: Of the run, which has one controller after the other.
        study: The run's study, for messages.

    Returns:
        Which other run has it, for people; empty if it is ours.
    """
    if not block:
        return ""
    with _locked():
        file = _file_of(block)
        other, name, until = _holder(file)
        if other not in {mark, ""} and time.time() < until:
            what = "the GPUs or cores of this machine" if block == MACHINE else "this pilot"
            return f"another study ({name}, run {other}) uses {what}"
        replace_file(file, json.dumps([mark, study, time.time() + LEASE_S]), is_durable=False)
    return ""


def release(block: str, mark: str) -> None:
    """Give a pilot up, if the run has it."""
    if not block:
        return
    with _locked():
        file = _file_of(block)
        if _holder(file)[0] == mark:
            file.unlink()


@contextmanager
def _locked() -> Iterator[None]:
    """Let one process of this node at a time read leases and write them."""
    FOLDER.mkdir(0o700, exist_ok=True)
    found = FOLDER.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(f"{FOLDER} is not a folder that only this user may enter")
    with (FOLDER / "pilots.lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _file_of(block: str) -> Path:
    return FOLDER / f"pilot-{hashlib.blake2b(block.encode(), digest_size=8).hexdigest()}.json"


def _holder(file: Path) -> tuple[str, str, float]:
    """Return the mark of the run that has a pilot, its study, and until when [s]; empty if there is none."""
    try:
        mark, study, until = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "", "", 0.0
    return str(mark), str(study), float(until)
