"""One image file's pixels: decoded by Pillow, cropped, normalised.

Training crops at random (Szegedy et al. 2015, arXiv:1409.4842) and flips; everything else sees the centre.
The random numbers are torch's, which a trial seeds for every micro-batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's channels, in [0, 1]
AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)  # of a random crop: part of the image, width over height
ATTEMPTS = 10  # to find such a crop inside the image
MARGIN = 256 / 224  # shorter side over crop, outside training

Box: TypeAlias = tuple[int, int, int, int]  # left, upper, right, lower


def cropped(file: Path | IO[bytes], pixels: int, *, at_random: bool) -> NDArray[np.uint8]:
    """Return a part of an image, of shape ``(pixels, pixels, 3)``.

    Raises:
        OSError: If it is no image, or is cut short.
    """
    with Image.open(file) as image:
        # JPEG is decoded at the smallest scale that still has the pixels; other formats ignore this.
        image.draft("RGB", (2 * pixels, 2 * pixels))
        box = random_box(*image.size) if at_random else centre_box(*image.size)
        small = image.convert("RGB").resize((pixels, pixels), Image.Resampling.BILINEAR, box=box)
    found = np.asarray(small)
    return found[:, ::-1] if at_random and torch.rand(()) < 0.5 else found


def normalised(images: Sequence[NDArray[np.uint8]]) -> Tensor:
    """Return images as ``(images, 3, height, width)``, of mean 0 and deviation 1 in each channel."""
    channels_first = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
    return (channels_first - mean) / deviation


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
