"""What a sample is here: a field whose components fill [-1, 1], kept as fp16, and the number of its flow.

Both kinds of `prepare` stage write shards with the arrays ``field`` (components, height, width) and ``flow``
(an index into ``labels``) and return the same plain JSON::

    {"indices": {"train": [file, ...], "validation": [...], "unseen": [...]}, "labels": ["turbulence", ...],
     "samples": {"train": 640, ...}, "shape": [2, 64, 64]}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parsl_rasda.data import Shards, open_shards

SPLITS = ("train", "validation", "unseen")
DTYPES = {"field": "float16", "flow": "int16"}  # 5e-4 of [-1, 1] is far below any error of reconstruction

Array = NDArray[np.float32]


def scaled(snapshot: Array, axes: tuple[int, ...]) -> Array:
    """Return a snapshot with each component stretched to [-1, 1]; one that is constant becomes 0.

    Args:
        snapshot: Any shape.
        axes: Over which the smallest and largest value are taken: all but those of components.
    """
    low = snapshot.min(axis=axes, keepdims=True)
    span = snapshot.max(axis=axes, keepdims=True) - low
    is_flat = span == 0
    stretched: Array = 2 * (snapshot - low) / np.where(is_flat, 1, span) - 1
    return np.where(is_flat, np.float32(0), stretched)


def open_fields(data: Mapping[str, Any], split: str, array: str = "field") -> Shards:
    """Return the samples of a split, read when asked for.

    Args:
        data: What a `prepare` stage returned.
        split: One of `SPLITS`.
        array: ``field`` or ``flow``.
    """
    return open_shards(data["indices"][split], arrays=array, split=split)
