"""ImageNet and its like: ``train/<class>/*`` and ``val/<class>/*`` image files, read by Pillow.

The folder ``val`` is cut in half, class by class: one half validates and decides, the other is the test that
is only reported. Training crops at random (Szegedy et al. 2015, arXiv:1409.4842) and flips; everything else
sees the centre. The random numbers are torch's, which a trial seeds for every micro-batch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from parsl_rasda.errors import InvalidSettingError
from parsl_rasda.vocabulary import JSON

SUFFIXES = {".jpeg", ".jpg", ".png", ".bmp", ".webp"}
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's channels, in [0, 1]
AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)  # of a random crop: part of the image, width over height
ATTEMPTS = 10  # to find such a crop inside the image
MARGIN = 256 / 224  # shorter side over crop, outside training

Box = tuple[int, int, int, int]  # left, upper, right, lower


def index_images(root: str, directory: str) -> dict[str, JSON]:
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
            path: What `index_images` returned under ``path``.
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
        images = np.stack([self._image(self._root / file) for file, _ in rows])
        channels_first = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        mean, deviation = (torch.tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
        return (channels_first - mean) / deviation, torch.tensor([label for _, label in rows])

    def _image(self, file: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        try:
            with Image.open(file) as image:
                # JPEG is decoded at the smallest scale that still has the pixels; other formats ignore this.
                image.draft("RGB", (2 * self._pixels, 2 * self._pixels))
                box = random_box(*image.size) if self._is_training else centre_box(*image.size)
                size = (self._pixels, self._pixels)
                small = image.convert("RGB").resize(size, Image.Resampling.BILINEAR, box=box)
        except OSError as error:
            raise InvalidSettingError(str(file), str(error), "a whole image file") from error
        pixels = np.asarray(small)
        if self._is_training and torch.rand(()) < 0.5:
            pixels = pixels[:, ::-1]
        return pixels


def random_box(width: int, height: int) -> Box:
    """Return a random part of an image: `AREA` of it, of an `ASPECT`; the centre if none fits."""
    for _ in range(ATTEMPTS):
        area = width * height * float(torch.empty(()).uniform_(*AREA))
        aspect = math.exp(float(torch.empty(()).uniform_(math.log(ASPECT[0]), math.log(ASPECT[1]))))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left = int(torch.randint(width - w + 1, ()))
            upper = int(torch.randint(height - h + 1, ()))
            return left, upper, left + w, upper + h
    return centre_box(width, height)


def centre_box(width: int, height: int) -> Box:
    """Return the square in the middle whose side is the shorter one of the image over `MARGIN`."""
    side = max(1, round(min(width, height) / MARGIN))
    left, upper = (width - side) // 2, (height - side) // 2
    return left, upper, left + side, upper + side


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
