"""What `doctor` calls on a site, beside its jobs. Imports neither torch nor Parsl."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from parsl_rasda.agent import node_probe


def clock() -> float:
    """Return the time there [Unix time, s]."""
    return time.time()


def describe_allocation(accelerator: str, container: Sequence[str] = ()) -> dict[str, Any]:
    """Return what the pilot consists of, as its first node sees it; see `node_probe`."""
    return node_probe.describe_allocation(accelerator, container)


def rank_files(attempt: str) -> list[dict[str, Any]]:
    """Return what the ranks of `runtime.site_probe` have left in the directory of their attempt."""
    return [
        json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(Path(attempt).glob("scratch/rank-*.json"))
    ]


def storage(folder: str) -> dict[str, Any]:
    """Return what is free where a folder is, and the folder for temporary files there.

    ``bytes`` and ``files`` are free for users, None where the file system counts no files, and 0 without the
    folder; quotas are not in them.
    """
    temporary = tempfile.gettempdir()
    try:
        found = os.statvfs(folder)
    except OSError as error:
        return {"bytes": 0, "files": None, "error": os.strerror(error.errno or 0), "temporary": temporary}
    return {
        "bytes": found.f_bavail * found.f_frsize,
        "files": found.f_favail if found.f_files else None,
        "error": "",
        "temporary": temporary,
    }
