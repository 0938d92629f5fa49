"""Tell which tests passed only when they were tried again; too many of them fail the run.

Usage: python second_try.py FOLDER...

Each folder is a cache of pytest in which `first_try.json` holds what had failed when everything was run once,
and `v/cache/lastfailed` what failed still when that was run again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

FIRST_TRY = "first_try.json"
LAST_FAILED = "v/cache/lastfailed"
ALLOWED = 3


def passed_at_the_second_try(cache: Path) -> list[str]:
    """Return the tests of a run that failed once and then passed, in order; none if none failed."""
    return sorted(_names(cache / FIRST_TRY) - _names(cache / LAST_FAILED))


def _names(file: Path) -> set[str]:
    return set(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else set()


def main(folders: Sequence[str]) -> int:
    """Print the tests of all caches; return 1 if they are more than `ALLOWED`."""
    found = [name for folder in folders for name in passed_at_the_second_try(Path(folder))]
    if found:
        print(f"Passed only at the second try: {len(found)}, of which {ALLOWED} are allowed.")
        print("\n".join(f"  {name}" for name in found))
    return int(len(found) > ALLOWED)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
