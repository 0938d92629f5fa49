"""Modules of a workflow's folder, imported as its stages import them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

WORKFLOWS = Path(__file__).parents[1] / "workflows"


@contextmanager
def workflow_folder(name: str) -> Iterator[Path]:
    """Put a workflow's folder first on the path while the body imports from it; yield the folder.

    Each folder has a `train`, and most have a `model`: modules of other folders, or of an earlier import,
    are out of the way meanwhile, and what the body has imported is forgotten afterwards.
    """
    folder = WORKFLOWS / name
    siblings = {file.stem for file in WORKFLOWS.glob("*/*.py")}
    before = _taken(siblings)
    sys.path.insert(0, str(folder))
    try:
        yield folder
    finally:
        sys.path.remove(str(folder))
        _taken(siblings)
        sys.modules.update(before)


def _taken(names: set[str]) -> dict[str, object]:
    return {name: sys.modules.pop(name) for name in names & sys.modules.keys()}
