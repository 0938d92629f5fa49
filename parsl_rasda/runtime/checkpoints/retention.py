"""Which checkpoints nobody may still ask for: of an attempt, and of those before it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from parsl_rasda.protocol import KNOWN, EpochReport

KEPT = 2
FETCHED = "resumed"  # the directory of a checkpoint that came from another site


def known_epochs(directory: Path) -> int | None:
    """Return the epochs that the controller is known to have heard of, or None where it hears at once."""
    try:
        return int((directory / KNOWN).read_text())
    except (OSError, ValueError):
        return None


def superseded(places: Sequence[str], reports: Sequence[EpochReport], known: int | None) -> int:
    """Return how many of an attempt's checkpoints may go, counted from the oldest.

    The newest ones stay. So do all since the one by which a controller would go on that has heard no
    more than ``known`` epochs: an attempt that is cut off from it trains on, while another takes its place.

    Args:
        places: Of the checkpoints, oldest first.
        reports: What the attempt has reported.
        known: As `known_epochs`.
    """
    old = max(0, len(places) - KEPT)
    heard = [r for r in reports if known is None or r.epoch <= known]
    named = [r.checkpoint.path for r in heard if r.checkpoint and r.checkpoint.path in places]
    if named:  # it may be older than those kept: checkpoints are written while training goes on
        return min(old, places.index(named[-1]))
    return old if known is None else 0


def remove_superseded_attempts(directory: Path, resume_from: str | None) -> None:
    """Remove the checkpoints of attempts before the one whose checkpoint was ordered to go on from.

    The controller has noted that one as the trial's newest and goes back only where that cannot be read
    any more, as far as there is something left: a successor of this attempt, or of one that it has lost
    sight of, begins there or later. What is read afterwards
    (`best`, `export`, the next stage) is the trial's newest checkpoint too.

    Args:
        directory: Of this attempt, beside those of the others.
        resume_from: As ordered: the directory of a checkpoint, or its URL.
    """
    origin = _attempt(resume_from.rstrip("/").split("/")[-2]) if resume_from and "/" in resume_from else None
    if origin is None or _attempt(directory.name) is None:
        return
    for folder in directory.parent.glob("attempt-*"):
        number = _attempt(folder.name)
        if number is not None and number < origin:
            for checkpoint in (*folder.glob("epoch-*"), folder / FETCHED):
                shutil.rmtree(checkpoint, ignore_errors=True)


def _attempt(name: str) -> int | None:
    found = re.fullmatch(r"attempt-(\d+)", name)
    return int(found[1]) if found else None
