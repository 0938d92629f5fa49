"""Which checkpoints of an attempt, and of the attempts before it, are not needed any more."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from parsl_rasda.protocol import KNOWN, EpochReport

KEPT = 2
FETCHED = "resumed"  # the directory of a checkpoint that was fetched from another site


def known_epochs(directory: Path) -> int | None:
    """Return how many epochs the controller is known to have received; None if it receives them at once."""
    try:
        return int((directory / KNOWN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def superseded(places: Sequence[str], reports: Sequence[EpochReport], known: int | None) -> int:
    """Return how many of an attempt's checkpoints may be removed, counted from the oldest.

    The newest ones stay. An attempt that has lost its controller trains on, while another attempt takes its
    place. That other one resumes from the newest checkpoint named in the first ``known`` epochs; this
    checkpoint and all later ones stay, too.

    Args:
        places: Paths or URLs of the checkpoints, oldest first.
        reports: What the attempt has reported.
        known: The value of `known_epochs`.
    """
    old = max(0, len(places) - KEPT)
    received = [r for r in reports if known is None or r.epoch <= known]
    named = [r.checkpoint.path for r in received if r.checkpoint and r.checkpoint.path in places]
    if named:  # may be older than those kept, because checkpoints are written in the background
        return min(old, places.index(named[-1]))
    return old if known is None else 0


def remove_superseded_attempts(directory: Path, resume_from: str | None) -> None:
    """Remove the checkpoints of all attempts before the one that wrote ``resume_from``.

    The controller has recorded ``resume_from`` as the trial's newest checkpoint. Any successor of this
    attempt begins there or later; it begins earlier only if that checkpoint cannot be read and an older one
    is left. Whatever reads checkpoints afterwards (`best`, `export`, the next stage) reads the newest.

    Args:
        directory: The directory of this attempt, beside those of the others.
        resume_from: The job's ``resume_from``: the directory or URL of a checkpoint.
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
