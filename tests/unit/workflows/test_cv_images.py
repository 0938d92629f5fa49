from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from parsl_rasda.errors import InvalidSettingError
from tests.workflow_folder import workflow_folder

with workflow_folder("cv_resnet"):
    from digits import SPLITS, read_digits, write_digits
    from image_folder import ImageFolder
    from pixels import DEVIATION, MEAN, centre_box, random_box
    from prepare import index_images

CLASSES = ("ant", "bee", "cat")


def write_image(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (40, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Each class has a colour of its own, so that a label can be checked by looking."""
    for number, name in enumerate(CLASSES):
        colour = tuple(255 if channel == number else 0 for channel in range(3))
        for image in range(3):
            write_image(tmp_path / "root" / "train" / name / f"{image}.JPEG", colour)
        for image in range(4):
            write_image(tmp_path / "root" / "val" / name / f"{image}.png", colour)
    return tmp_path / "root"


def test_the_digits_are_dealt_out_once_and_the_held_back_ones_in_halves(tmp_path: Path) -> None:
    data = write_digits(3, str(tmp_path))
    assert json.loads(json.dumps(data)) == data
    assert data["samples"] == {"train": 1197, "validation": 300, "test": 300}
    splits = {split: read_digits(data["path"], split) for split in SPLITS}
    everything = torch.cat([images for images, _ in splits.values()])
    assert everything.shape == (1797, 1, 8, 8)
    assert float(everything.mean()) == pytest.approx(0, abs=1e-5)
    assert float(everything.std()) == pytest.approx(1, abs=1e-3)
    assert len(torch.unique(everything.flatten(1), dim=0)) == 1797
    for _, labels in splits.values():
        assert set(labels.tolist()) == set(range(10))


def test_the_same_seed_deals_the_same_digits(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    paths = [
        write_digits(seed, str(tmp_path / name))["path"] for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    first, again, other = (read_digits(str(path), "test") for path in paths)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("held_back", [0, 3, 1797, 1798])
def test_digits_that_leave_nothing_or_no_equal_halves_are_refused(held_back: int, tmp_path: Path) -> None:
    with pytest.raises(InvalidSettingError, match="held_back"):
        write_digits(0, str(tmp_path), held_back=held_back)


def test_a_folder_of_images_is_listed_with_its_validation_cut_in_half(root: Path, tmp_path: Path) -> None:
    data = index_images(str(root), str(tmp_path))
    assert data["samples"] == {"train": 9, "validation": 6, "test": 6}
    assert data["classes"] == list(CLASSES)
    folders = {split: ImageFolder(str(data["path"]), split, pixels=8) for split in SPLITS}
    files = {split: [folder.file_of(n) for n in range(len(folder))] for split, folder in folders.items()}
    assert sorted(files["validation"] + files["test"]) == sorted((root / "val").rglob("*.png"))
    assert files["train"] == sorted((root / "train").rglob("*.JPEG"))
    for split in ("validation", "test"):
        assert folders[split].read(range(6))[1].tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("split", SPLITS)
def test_images_come_with_their_class_and_normalised(split: str, root: Path, tmp_path: Path) -> None:
    data = index_images(str(root), str(tmp_path))
    folder = ImageFolder(str(data["path"]), split, pixels=16)
    indices = [len(folder) - 1, 0, 3]
    images, labels = folder.read(indices)
    assert images.shape == (3, 3, 16, 16)
    assert images.dtype == torch.float32
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
    colours = (images * deviation + mean).mean(dim=(2, 3))
    assert torch.equal(colours.argmax(dim=1), labels)
    assert torch.allclose(colours.max(dim=1).values, torch.ones(3), atol=0.02)  # JPEG


def test_training_images_are_cropped_and_flipped_at_random_and_others_are_not(
    root: Path, tmp_path: Path
) -> None:
    ramp = np.tile(np.arange(60, dtype=np.uint8) * 4, (50, 1))
    for file in (root / "train/ant/0.JPEG", root / "val/ant/0.png"):
        Image.fromarray(ramp).convert("RGB").save(file)
    path = str(index_images(str(root), str(tmp_path))["path"])
    training, validation = (ImageFolder(path, s, pixels=8) for s in ("train", "validation"))
    torch.manual_seed(0)
    drawn = [training.read([0])[0] for _ in range(12)]
    slopes = [float(image[0, 0, 0, -1] - image[0, 0, 0, 0]) for image in drawn]
    assert min(slopes) < 0 < max(slopes)
    assert len({round(abs(slope), 3) for slope in slopes}) > 6
    torch.manual_seed(0)
    assert torch.equal(training.read([0])[0], drawn[0])
    assert torch.equal(validation.read([0])[0], validation.read([0])[0])


@given(width=st.integers(1, 500), height=st.integers(1, 500), seed=st.integers(0, 2**31))
def test_every_box_lies_inside_its_image(width: int, height: int, seed: int) -> None:
    torch.manual_seed(seed)
    for left, upper, right, lower in (random_box(width, height), centre_box(width, height)):
        assert 0 <= left < right <= width
        assert 0 <= upper < lower <= height
    left, upper, right, lower = centre_box(width, height)
    assert right - left == lower - upper


def test_folders_that_are_no_image_folders_are_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidSettingError, match="folders train and val"):
        index_images(str(tmp_path / "nothing"), str(tmp_path))
    write_image(root / "val/dog/0.png", (1, 2, 3))
    with pytest.raises(InvalidSettingError, match="dog"):
        index_images(str(root), str(tmp_path))
    (root / "train/dog").mkdir()
    with pytest.raises(InvalidSettingError, match=r"dog.*with images"):
        index_images(str(root), str(tmp_path))


def test_names_of_any_letters_are_found_again(root: Path, tmp_path: Path) -> None:
    odd = root / "train" / "ant" / "Ameise – größer 蟻.png"
    write_image(odd, (9, 9, 9))
    folder = ImageFolder(str(index_images(str(root), str(tmp_path))["path"]), "train", pixels=8)
    assert odd in [folder.file_of(n) for n in range(len(folder))]
    assert folder.read(range(len(folder)))[1].tolist() == [0] * 4 + [1] * 3 + [2] * 3


def test_a_validation_folder_that_cannot_be_halved_is_refused(tmp_path: Path) -> None:
    for folder in ("train", "val"):
        write_image(tmp_path / folder / "ant" / "0.png", (1, 2, 3))
    with pytest.raises(InvalidSettingError, match="two images a class"):
        index_images(str(tmp_path), str(tmp_path))


def test_a_file_that_is_cut_short_is_named(root: Path, tmp_path: Path) -> None:
    path = str(index_images(str(root), str(tmp_path))["path"])
    broken = root / "val/ant/0.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(InvalidSettingError, match=r"val/ant/0\.png"):
        ImageFolder(path, "validation", pixels=8).read([0])
