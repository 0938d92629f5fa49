"""``python -m parsl_rasda.runtime.checkpoints.comparison A B``: whether two checkpoints have the same bits.

Prints JSON: the names of the tensors that differ, or null if there are none to compare, or a sentence if a
checkpoint cannot be read.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from parsl_rasda.errors import CheckpointError, StorageError
from parsl_rasda.runtime.checkpoints.checkpoint import read_tensors

if TYPE_CHECKING:
    from torch import Tensor


def differing(one: Path, other: Path) -> list[str] | None:
    """Return the names of the tensors that differ in a bit, or are in one alone; None without any tensors.

    Raises:
        CheckpointError: If one of them cannot be read.
    """
    if not any((path / ".metadata").exists() for path in (one, other)):
        return None
    left, right = read_tensors(one), read_tensors(other)
    return sorted(
        name
        for name in {*left, *right}
        if name not in left or name not in right or not _are_same(left[name], right[name])
    )


def _are_same(one: Tensor, other: Tensor) -> bool:
    """Return whether all bits are the same, those of what is not a number, too."""
    import torch

    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    bits = [t.contiguous().reshape(-1).view(torch.uint8) for t in (one, other)]
    return torch.equal(*bits)


def main(paths: Sequence[str]) -> None:
    """Compare two checkpoints, and print what is found."""
    one, other = map(Path, paths)
    found: list[str] | str | None
    try:
        found = differing(one, other)
    except (CheckpointError, StorageError) as error:
        found = str(error)
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
