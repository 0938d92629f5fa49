"""ImageNet as TFRecords: ``train-*-of-01024`` and ``validation-*-of-00128``, labels from 1, no TensorFlow.

Records were shuffled before they were written, so each validation file is cut in half: one half validates
and decides, the other is the test that is only reported. Where records begin is read from the ``.idx``
files, or found by one scan.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from parsl_rasda.data import open_shards
from parsl_rasda.data.example import features_of
from parsl_rasda.data.index import ArrayType, Row, save
from parsl_rasda.data.order import BlockOrder
from parsl_rasda.data.tfrecord import RECORD, indexed
from parsl_rasda.errors import DataError, InvalidSettingError
from parsl_rasda.types import JSON
from pixels import cropped, normalised

IMAGE, LABEL = "image/encoded", "image/class/label"
SCANS_AT_ONCE = 16  # each waits for its file most of the time
_NAME = re.compile(r"(train|validation)-(\d{5})-of-(\d{5})")


def has_records(root: Path) -> bool:
    """Return whether a folder has TFRecords for training."""
    return any(_NAME.fullmatch(file.name) for file in root.glob("train-*-of-*"))


def index_records(root: str, directory: str, *, classes: int) -> dict[str, JSON]:
    """List the records below ``root`` and return where the list is. No image is read.

    Args:
        root: Has the files.
        directory: Where the list goes; it exists.
        classes: Their number, which the files do not tell.

    Returns:
        ``kind``, ``path``, ``classes`` (their labels), ``channels`` and ``samples`` (per split).

    Raises:
        DataError: If a file is cut short, or none of TFRecords.
        InvalidSettingError: If files are missing, or there is nothing to validate and test with.
    """
    files = _files(Path(root).resolve())
    with ThreadPoolExecutor(SCANS_AT_ONCE) as pool:
        found = {
            split: list(pool.map(partial(indexed, directory=Path(directory)), paths))
            for split, paths in files.items()
        }
    rows = {
        "train": [Row(str(file), 0, count) for file, count in found["train"]],
        "validation": [Row(str(file), 0, count - count // 2) for file, count in found["validation"]],
        "test": [Row(str(file), count - count // 2, count) for file, count in found["validation"]],
    }
    samples = {split: sum(row.stop - row.start for row in each) for split, each in rows.items()}
    if not all(samples.values()):
        raise InvalidSettingError(root, samples, "images to train, to validate and to test with")
    path = Path(directory) / "records.json"
    save(path, {RECORD: ArrayType((), "object")}, rows, {"root": root})
    return {
        "kind": "records",
        "path": str(path),
        "classes": [str(label) for label in range(1, classes + 1)],
        "channels": 3,
        "samples": dict(samples),
    }


class ImageRecords:
    """The images of one split, read block by block: neighbours in an `order` lie together in a file."""

    def __init__(self, path: str, split: str, *, pixels: int, classes: int) -> None:
        """Read the list, no images.

        Args:
            path: What `index_records` returned under ``path``.
            split: ``train``, ``validation`` or ``test``; images of ``train`` are cropped at random.
            pixels: Height and width of what is read.
            classes: Labels are 1 to this.
        """
        self._records = open_shards(path, arrays=RECORD, split=split)
        self._pixels, self._classes, self._is_training = pixels, classes, split == "train"

    def __len__(self) -> int:
        return len(self._records)

    def order(self, seed: int, epoch: int) -> BlockOrder:
        """Return the order of an epoch: a function of seed and epoch, every image once."""
        return self._records.order(seed, epoch)

    def read(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return images ``(len(indices), 3, pixels, pixels)``, normalised by channel, and their classes.

        Raises:
            DataError: If a file is damaged, or a record is no image with a label.
        """
        samples = [
            self._sample(index, record)
            for index, record in zip(indices, self._records.read(indices), strict=True)
        ]
        return normalised([image for image, _ in samples]), torch.tensor([label for _, label in samples])

    def _sample(self, index: int, record: bytes) -> tuple[NDArray[np.uint8], int]:
        try:
            match features_of(record):
                case {"image/encoded": [bytes(image)], "image/class/label": [int(label)]} if (
                    1 <= label <= self._classes
                ):
                    return cropped(BytesIO(image), self._pixels, at_random=self._is_training), label - 1
                case features:
                    labels = features.get(LABEL)
                    raise ValueError(f"features {sorted(features)[:9]}, {LABEL} {labels}")  # noqa: TRY301
        except (OSError, ValueError) as error:
            file, number = self._records.place_of(index)
            wanted = f"{IMAGE} and {LABEL} from 1 to {self._classes}"
            raise DataError(file, f"record {number} is no image with {wanted}: {error}") from error


def _files(root: Path) -> dict[str, list[Path]]:
    """Return the files of each kind, in order, none missing."""
    found: dict[str, dict[int, Path]] = defaultdict(dict)
    totals: dict[str, set[int]] = defaultdict(set)
    for file in sorted(root.iterdir()):
        if name := _NAME.fullmatch(file.name):
            found[name[1]][int(name[2])] = file
            totals[name[1]].add(int(name[3]))
    for kind in ("train", "validation"):
        if len(totals[kind]) != 1:
            what = f"{kind}-*-of-* in {len(totals[kind])} sets"
            raise InvalidSettingError(str(root), what, "train-*-of-N and validation-*-of-M, all of them")
        total = totals[kind].pop()
        missing = [f"{kind}-{n:05d}-of-{total:05d}" for n in range(total) if n not in found[kind]]
        if missing:
            what = f"{len(missing)} files missing: {', '.join(missing[:3])}"
            raise InvalidSettingError(str(root), what, f"all {total} files of {kind}")
    return {kind: list(found[kind].values()) for kind in ("train", "validation")}
