"""Where the checkpoints of a trial lie on a disk, and how they are removed.

A folder is a checkpoint as long as its header is there. The header goes first, so whatever ends a removal
leaves nothing behind that could be taken for one.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection
from pathlib import Path

_ATTEMPT = re.compile(r"attempt-(\d+)")
HEADER = "header.json"
FETCHED = "resumed"  # the directory of a checkpoint that was fetched from another site


def number_of(name: str) -> int | None:
    """Return the number of an attempt by the name of its folder, or None if it is no such name."""
    found = _ATTEMPT.fullmatch(name)
    return int(found[1]) if found else None


def remove_checkpoint(path: Path) -> OSError | None:
    """Remove a checkpoint; return why it is still there, or None: what is left only takes up space."""
    try:
        (path / HEADER).unlink(missing_ok=True)
        shutil.rmtree(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        return error
    return None


def remove_attempt(folder: Path, kept: Collection[str] = ()) -> OSError | None:
    """Remove the checkpoints of an attempt, but not its orders, reports and log; return the first error.

    Args:
        folder: Of the attempt.
        kept: Paths of checkpoints that stay.
    """
    found = [path for path in folder.glob("epoch-*") if str(path) not in kept]
    errors = [remove_checkpoint(path) for path in (*found, folder / FETCHED)]
    return next((error for error in errors if error is not None), None)


def remove_attempts(folder: Path, last: int) -> OSError | None:
    """Remove the checkpoints of a trial's attempts up to the last one; return the first error.

    Later ones are of a trial that was started afresh.
    """
    attempts = [path for path in folder.glob("attempt-*") if (number_of(path.name) or last + 1) <= last]
    errors = [remove_attempt(attempt) for attempt in attempts]
    return next((error for error in errors if error is not None), None)
