"""Which checkpoints of an attempt nobody may still ask for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from parsl_rasda.handoff import KNOWN, EpochReport

KEPT = 2


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
    if known is None:
        return old
    named = [r.checkpoint for r in reports if r.epoch <= known and r.checkpoint in places]
    return min(old, places.index(str(named[-1]))) if named else 0
