"""ImageNet and its like as ``train/<class>/*`` and ``val/<class>/*`` image files.

The folder ``val`` is cut in half, class by class: one half validates and decides, the other is the test that
is only reported. The list of files is kept as three arrays a split, their names in one piece: 1.28 million
texts would take five times as much memory, again in each process that reads.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from parsl_rasda.errors import InvalidSettingError
from parsl_rasda.types import JSON
from pixels import cropped, normalised

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
    splits = {
        "train": training,
        "validation": {name: files[::2] for name, files in held_back.items()},
        "test": {name: files[1::2] for name, files in held_back.items()},
    }
    samples = {split: sum(map(len, classes.values())) for split, classes in splits.items()}
    if not samples["test"]:
        raise InvalidSettingError(str(base / "val"), "one image a class", "two images a class or more")
    path = Path(directory) / "images.npz"
    arrays = {f"{split}_{k}": v for split, classes in splits.items() for k, v in _listed(classes).items()}
    np.savez(path, allow_pickle=False, root=np.array(str(base)), **arrays)
    return {
        "kind": "image_folder",
        "path": str(path),
        "classes": list(training),
        "channels": 3,
        "samples": dict(samples),
    }


def _listed(classes: Mapping[str, list[str]]) -> dict[str, ArrayLike]:
    """Return the names of all files in one piece, where each ends, and its label."""
    names = [os.fsencode(file) for files in classes.values() for file in files]
    return {
        "names": np.frombuffer(b"".join(names), np.uint8),
        "ends": np.cumsum([len(name) for name in names], dtype=np.int64),
        "labels": np.repeat(np.arange(len(classes)), [len(files) for files in classes.values()]),
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
        with np.load(path, allow_pickle=False) as index:
            self._root = Path(str(index["root"]))
            self._names, self._ends = index[f"{split}_names"], index[f"{split}_ends"]
            self._labels = index[f"{split}_labels"]
        self._pixels, self._is_training = pixels, split == "train"

    def __len__(self) -> int:
        return len(self._labels)

    def file_of(self, index: int) -> Path:
        """Return the file of an image."""
        begin = self._ends[index - 1] if index else 0
        return self._root / os.fsdecode(self._names[begin : self._ends[index]].tobytes())

    def read(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return images ``(len(indices), 3, pixels, pixels)``, normalised by channel, and their classes.

        Raises:
            InvalidSettingError: If a file is no image, or is cut short.
        """
        images = [self._image(self.file_of(index)) for index in indices]
        return normalised(images), torch.from_numpy(self._labels[list(indices)])

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
