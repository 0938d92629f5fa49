"""A local site whose ranks are stand-ins, and a look at what processes there are."""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from parsl_rasda.agent import orphan_reaper
from parsl_rasda.study.parsl_site import ParslSiteSpec

STAND_IN = Path(__file__).parent / "stand_in_rank.py"
DEADLINE_S = 60.0


def local_site(**fields: Any) -> ParslSiteSpec:
    """Four logical slots on this machine, hydra from the virtual environment."""
    declared = {
        "name": "local",
        "provider": {"type": "LocalProvider"},
        "gpus_per_node": 4,
        "accelerator": "none",
        "mpi_launcher": "hydra",
        "python": str(STAND_IN),
        "heartbeat_threshold": 10,
    }
    return ParslSiteSpec.model_validate(declared | fields)


def mark_of(run_dir: Path) -> str:
    """The mark of a run directory's last run."""
    mark: str = json.loads((run_dir / orphan_reaper.RECORD).read_text())["mark"]
    return mark


def processes_of(mark: str) -> list[int]:
    """Pids of everything that a run has started and that still lives."""
    return [process.pid for process in orphan_reaper.marked(orphan_reaper.RUN_VARIABLE, mark)]


def eventually(is_so: Callable[[], Any], what: str = "", deadline_s: float = DEADLINE_S) -> Any:
    """Return the first truth; fail when there is none in time.

    Args:
        is_so: Asked again and again.
        what: What is waited for, in words; the source of `is_so` by default.
        deadline_s: How long [s].
    """
    found = within(deadline_s, is_so)
    assert found, f"not within {deadline_s:g} s: {what or _source_of(is_so)}"
    return found


def within(patience_s: float, is_so: Callable[[], Any]) -> Any:
    """Return the first truth, or what is false still when time is up: the only loop that waits in tests."""
    give_up = time.monotonic() + patience_s
    while not (found := is_so()) and time.monotonic() < give_up:
        time.sleep(0.01)
    return found


def _source_of(is_so: Callable[[], Any]) -> str:
    try:
        return inspect.getsource(is_so).strip()
    except (OSError, TypeError):  # a method of a built-in class
        return repr(is_so)
