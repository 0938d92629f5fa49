"""Scikit-learn's handwritten digits: 1,797 images of 8 x 8 pixels, on every machine that has scikit-learn.

Source:
    Alpaydin & Kaynak 1998, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository,
    doi 10.24432/C50P49.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from parsl_rasda.errors import InvalidSettingError
from parsl_rasda.types import JSON

SPLITS = ("train", "validation", "test")


def write_digits(seed: int, directory: str, *, held_back: int = 600) -> dict[str, JSON]:
    """Write the digits as one file and return where it is.

    Of the images held back one half validates and decides, the other is the test that is only reported.

    Args:
        seed: Of the order in which the images are dealt out.
        directory: Where the file goes; it exists.
        held_back: Images that are not trained on, an even number.

    Returns:
        ``kind``, ``path``, ``classes`` (names), ``channels`` and ``samples`` (per split).

    Raises:
        InvalidSettingError: If nothing is left to train on, or the halves are not equal.
    """
    digits = load_digits()
    images, labels = digits.images.astype(np.float32), digits.target.astype(np.int64)
    if held_back % 2 or not 0 < held_back < len(labels):
        raise InvalidSettingError("held_back", held_back, f"an even number between 0 and {len(labels)}")
    scaled = (images - images.mean()) / images.std()
    order = np.random.default_rng(seed).permutation(len(labels))
    half = held_back // 2
    dealt = dict(zip(SPLITS, np.split(order, [len(order) - 2 * half, len(order) - half]), strict=True))
    path = Path(directory) / "digits.npz"
    arrays = {f"{split}_images": scaled[chosen, None] for split, chosen in dealt.items()}
    arrays |= {f"{split}_labels": labels[chosen] for split, chosen in dealt.items()}
    np.savez(path, allow_pickle=False, **arrays)
    return {
        "kind": "digits",
        "path": str(path),
        "classes": [str(name) for name in digits.target_names],
        "channels": 1,
        "samples": {split: len(chosen) for split, chosen in dealt.items()},
    }


def read_digits(path: str, split: str) -> tuple[Tensor, Tensor]:
    """Return the images ``(samples, 1, 8, 8)`` of a split, of mean 0 and variance 1, and their classes."""
    with np.load(path, allow_pickle=False) as file:
        return torch.from_numpy(file[f"{split}_images"]), torch.from_numpy(file[f"{split}_labels"])
