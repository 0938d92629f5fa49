"""Which run has a pilot behind an endpoint.

Two studies on one endpoint get the same pilot, and each would count all its GPUs as its own. So a run
claims the pilot before it uses it. The claim is a file on the pilot's lead node, where every task of
every run begins, whatever `work_dir` the runs have. Handshakes and jobs renew it, the run's last word
releases it, and it lapses where nobody has renewed it for a while: a pilot is not held by a run that died,
nor by one that has no work for it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LEASE_S = 60.0
FOLDER = Path(tempfile.gettempdir()) / f"parsl-rasda-{os.getuid()}"


def take(block: str, mark: str, study: str) -> str:
    """Claim a pilot for a run, or renew its claim.

    Args:
        block: The pilot; without a name it cannot be claimed, and everybody has it.
        mark: Of the run, which has one controller after the other.
        study: Its name, for the words.

    Returns:
        Which other run has it, in words; empty if it is ours.
    """
    if not block:
        return ""
    with _alone():
        file = _file_of(block)
        other, name, until = _holder(file)
        if other not in {mark, ""} and time.time() < until:
            return f"another study ({name}, run {other}) uses this pilot"
        beside = file.with_suffix(".new")
        beside.write_text(json.dumps([mark, study, time.time() + LEASE_S]))
        beside.replace(file)
    return ""


def release(block: str, mark: str) -> None:
    """Give a pilot up, if the run has it."""
    if not block:
        return
    with _alone():
        file = _file_of(block)
        if _holder(file)[0] == mark:
            file.unlink()


@contextmanager
def _alone() -> Iterator[None]:
    """One process of this node at a time looks at claims and writes them."""
    FOLDER.mkdir(0o700, exist_ok=True)
    if FOLDER.lstat().st_uid != os.getuid():
        raise PermissionError(f"{FOLDER} belongs to somebody else")
    with (FOLDER / "pilots.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _file_of(block: str) -> Path:
    return FOLDER / f"pilot-{hashlib.blake2b(block.encode(), digest_size=8).hexdigest()}.json"


def _holder(file: Path) -> tuple[str, str, float]:
    """Return the mark of the run that has a pilot, its study, and until when [s]; empty if there is none."""
    try:
        mark, study, until = json.loads(file.read_text())
    except (OSError, ValueError):
        return "", "", 0.0
    return str(mark), str(study), float(until)
