"""ImageNet and its like as ``train/<class>/*`` and ``val/<class>/*`` image files.

The folder ``val`` is cut in half, class by class: one half validates and decides, the other is the test that
is only reported.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from parsl_rasda.errors import InvalidSettingError
from parsl_rasda.vocabulary import JSON
from workflows.cv_resnet.pixels import cropped, normalised

SUFFIXES = {".jpeg", ".jpg", ".png", ".bmp", ".webp"}


def index_folder(root: str, directory: str) -> dict[str, JSON]:
    """List the images below ``root`` and return where the list is. No image is opened.

    Args:
        root: Has the folders ``train`` and ``val``, each with one folder a class.
        directory: Where the list goes; it exists.

    Returns:
        ``kind``, ``path``, ``classes`` (names), ``channels`` and ``samples`` (per split).

    Raises:
        InvalidSettingError: If a folder is missing, a class is empty, or ``val`` has classes of its own.
    """
    base = Path(root).resolve()
    training = _classes(base / "train")
    held_back = _classes(base / "val")
    if unknown := sorted(set(held_back) ^ set(training)):
        raise InvalidSettingError(f"{base}: classes", unknown[:5], "the same classes in train and val")
    splits: dict[str, list[JSON]] = {"train": [], "validation": [], "test": []}
    for label, name in enumerate(training):
        splits["train"] += [[file, label] for file in training[name]]
        splits["validation"] += [[file, label] for file in held_back[name][::2]]
        splits["test"] += [[file, label] for file in held_back[name][1::2]]
    if not splits["test"]:
        raise InvalidSettingError(str(base / "val"), "one image a class", "two images a class or more")
    path = Path(directory) / "images.json"
    path.write_text(json.dumps({"root": str(base), "splits": splits}))
    return {
        "kind": "image_folder",
        "path": str(path),
        "classes": list(training),
        "channels": 3,
        "samples": {split: len(rows) for split, rows in splits.items()},
    }


class ImageFolder:
    """The images of one split, opened when asked for."""

    def __init__(self, path: str, split: str, *, pixels: int) -> None:
        """Read the list, no images.

        Args:
            path: What `index_folder` returned under ``path``.
            split: ``train``, ``validation`` or ``test``; images of ``train`` are cropped at random.
            pixels: Height and width of what is read.
        """
        index = json.loads(Path(path).read_text())
        self._root, self._rows = Path(index["root"]), index["splits"][split]
        self._pixels, self._is_training = pixels, split == "train"

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return images ``(len(indices), 3, pixels, pixels)``, normalised by channel, and their classes.

        Raises:
            InvalidSettingError: If a file is no image, or is cut short.
        """
        rows = [self._rows[index] for index in indices]
        images = [self._image(self._root / file) for file, _ in rows]
        return normalised(images), torch.tensor([label for _, label in rows])

    def _image(self, file: Path) -> NDArray[np.uint8]:
        try:
            return cropped(file, self._pixels, at_random=self._is_training)
        except OSError as error:
            raise InvalidSettingError(str(file), str(error), "a whole image file") from error


def _classes(folder: Path) -> dict[str, list[str]]:
    """Return class -> image files, relative to the root, all in order of their names."""
    if not folder.is_dir():
        raise InvalidSettingError("root", str(folder), "a folder with the folders train and val")
    classes = {
        each.name: [
            f"{folder.name}/{each.name}/{file.name}"
            for file in sorted(each.iterdir())
            if file.suffix.lower() in SUFFIXES
        ]
        for each in sorted(folder.iterdir())
        if each.is_dir()
    }
    empty = [name for name, files in classes.items() if not files]
    if empty or not classes:
        raise InvalidSettingError(str(folder), empty[:5] or "no folders", "one folder a class, with images")
    return classes
