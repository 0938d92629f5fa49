"""The `prepare` stage for ImageNet and its like: image files, or TFRecords."""

from __future__ import annotations

from pathlib import Path

from image_folder import index_folder
from image_records import has_records, index_records
from parsl_rasda.types import JSON

IMAGENET = 1000  # classes


def index_images(root: str, directory: str, *, classes: int = IMAGENET) -> dict[str, JSON]:
    """List the images below ``root`` and return where the list is. No image is opened.

    Args:
        root: Has the folders ``train`` and ``val``, each with one folder a class, or TFRecords
            ``train-*-of-*`` and ``validation-*-of-*``.
        directory: Where the list goes; it exists.
        classes: Number of classes of TFRecords, which do not tell it; folders do.

    Returns:
        ``kind``, ``path``, ``classes`` (names), ``channels`` and ``samples`` (per split).

    Raises:
        DataError: If a file of records is cut short, or none.
        InvalidSettingError: If files or folders are missing, or of no use.
    """
    if has_records(Path(root)):
        return index_records(root, directory, classes=classes)
    return index_folder(root, directory)
