"""ImageNet's TFRecords, small and written here: what `image_folder` makes of files, from records."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from parsl_rasda.errors import DataError, InvalidSettingError
from parsl_rasda.runtime import local_trial
from tests.unit.data.tensorflow_files import Feature, example, write_records
from tests.unit.workflows.best_trial import best_of
from tests.workflow_folder import workflow_folder

with workflow_folder("cv_resnet"):
    from digits import SPLITS
    from evaluate import evaluate
    from image_records import ImageRecords
    from pixels import DEVIATION, MEAN
    from prepare import index_images
    from train import train

CLASSES, TRAINING, HELD_BACK = 3, 41, 18


def record_of(number: int, **changes: Feature) -> bytes:
    """An image of its class's colour, as ImageNet's records have it; its height tells its number."""
    label = number % CLASSES
    colour = tuple(255 if channel == label else 0 for channel in range(3))
    image = BytesIO()
    Image.new("RGB", (40, 30 + number), colour).save(image, "JPEG")
    return example(
        {
            "image/height": 30 + number,
            "image/colorspace": b"RGB",
            "image/class/label": label + 1,
            "image/object/bbox/xmin": [0.25, 0.5],
            "image/class/text": b"a class",
            "image/encoded": image.getvalue(),
            **{name.replace("_", "/"): value for name, value in changes.items()},
        }
    )


def write(root: Path, kind: str, samples: int, files: int) -> None:
    for part in range(files):
        name = root / f"{kind}-{part:05d}-of-{files:05d}"
        write_records(name, [record_of(n) for n in range(part, samples, files)], idx=part != 1)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    write(root, "train", TRAINING, 4)
    write(root, "validation", HELD_BACK, 2)
    return root


@pytest.fixture
def data(root: Path, tmp_path: Path) -> dict[str, Any]:
    return index_images(str(root), str(tmp_path), classes=CLASSES)


def split_of(data: dict[str, Any], split: str) -> ImageRecords:
    return ImageRecords(data["path"], split, pixels=16, classes=CLASSES)


def test_records_are_listed_with_their_validation_cut_in_half(data: dict[str, Any]) -> None:
    assert json.loads(json.dumps(data)) == data
    assert data["samples"] == {"train": TRAINING, "validation": 10, "test": 8}
    assert (data["classes"], data["channels"]) == (["1", "2", "3"], 3)
    splits = json.loads(Path(data["path"]).read_text(encoding="utf-8"))["splits"]
    halves = [{(file, n) for file, a, b in splits[s] for n in range(a, b)} for s in SPLITS[1:]]
    assert len(halves[0] | halves[1]) == HELD_BACK
    assert not halves[0] & halves[1]


@pytest.mark.parametrize("split", SPLITS)
def test_images_come_with_their_class_and_normalised(split: str, data: dict[str, Any]) -> None:
    records = split_of(data, split)
    images, labels = records.read([len(records) - 1, 0, 3])
    assert images.shape == (3, 3, 16, 16)
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
    colours = (images * deviation + mean).mean(dim=(2, 3))
    assert torch.equal(colours.argmax(dim=1), labels)
    assert torch.allclose(colours.max(dim=1).values, torch.ones(3), atol=0.02)  # JPEG


@pytest.mark.slow
@pytest.mark.parametrize("readers", [0, 2])
def test_a_network_learns_from_records_and_is_evaluated(
    readers: int, data: dict[str, Any], tmp_path: Path
) -> None:
    config = {
        "network": "small", "activation": "relu", "optimizer": "adam", "lr": 1e-2, "weight_decay": 0.0,
        "pixels": 16, "readers": readers,
    }  # fmt: skip
    trial = local_trial(config, inputs={"data": data}, epochs=4, batch_size=4, directory=tmp_path)
    train(trial)
    found = evaluate(best_of(trial, "val_error"), data, str(tmp_path))
    assert found["val_error"] < 0.4
    assert found["test_samples"] == 8


def test_an_epoch_reads_neighbours_together_and_each_once(data: dict[str, Any]) -> None:
    order = split_of(data, "train").order(0, 0)
    assert sorted(order[0:TRAINING]) == list(range(TRAINING))
    assert order[0:TRAINING] != list(range(TRAINING))


def test_files_that_are_missing_are_named(root: Path, tmp_path: Path) -> None:
    (root / "train-00002-of-00004").unlink()
    with pytest.raises(InvalidSettingError, match="1 files missing: train-00002-of-00004"):
        index_images(str(root), str(tmp_path))
    for file in root.glob("validation-*"):
        file.unlink()
    write(root, "train", TRAINING, 4)
    with pytest.raises(InvalidSettingError, match=r"validation-\*-of-\* in 0 sets"):
        index_images(str(root), str(tmp_path))


def test_records_that_cannot_be_halved_are_refused(root: Path, tmp_path: Path) -> None:
    write(root, "validation", 2, 2)
    with pytest.raises(InvalidSettingError, match="to train, to validate and to test"):
        index_images(str(root), str(tmp_path))


def test_a_file_that_is_cut_short_is_named_when_it_is_listed(root: Path, tmp_path: Path) -> None:
    broken = root / "train-00001-of-00004"  # the one without an index
    broken.write_bytes(broken.read_bytes()[:-3])
    with pytest.raises(
        DataError, match=r"train-00001-of-00004: it is cut short at byte \d+: its record at byte \d+"
    ):
        index_images(str(root), str(tmp_path))


@pytest.mark.parametrize(
    ("record", "found"),
    [
        (b"no example", "parsing"),
        (example({"x": [1.0]}), r"features \['x'\], image/class/label None"),
        (record_of(0, image_class_label=4), r"image/class/label \[4\]"),
        (record_of(0, image_class_label=0), r"image/class/label \[0\]"),
        (record_of(0, image_encoded=b"no image"), "cannot identify image"),
    ],
)
def test_a_record_of_something_else_is_named(record: bytes, found: str, root: Path, tmp_path: Path) -> None:
    content = [record_of(n) for n in range(4)]
    write_records(root / "validation-00001-of-00002", [content[0], record, *content[2:]], idx=True)
    data = index_images(str(root), str(tmp_path), classes=CLASSES)
    records = split_of(data, "validation")
    with pytest.raises(DataError, match=f"validation-00001-of-00002: record 1 is no image.*{found}"):
        records.read(range(len(records)))
