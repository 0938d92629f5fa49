"""What `doctor` calls on a site, beside its jobs. Imports neither torch nor Parsl."""

from __future__ import annotations

import json
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
