from __future__ import annotations

import csv
import itertools
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from parsl_rasda.data.files import OPEN_FILES
from parsl_rasda.errors import DataError, InvalidFileError, InvalidSettingError
from parsl_rasda.runtime import local_trial
from parsl_rasda.study import load_study
from tests.unit.workflows.best_trial import best_of
from tests.workflow_folder import workflow_folder

with workflow_folder("am_meltpool") as HERE:
    from dataset import NOMINAL, SPLITS, Clips, clip_of, find_scan_lines, write_index
    from evaluate import evaluate
    from render import POWER_W, SPEED_MM_S, planck_ratio, render
    from simulate import X_M, Y_M, simulate
    from train import train

OBJECTS = (27, 28, 29, 30, 31)
LINES = 24


@pytest.fixture(scope="module")
def fields(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    directory = str(tmp_path_factory.mktemp("simulate"))
    return [simulate(speed, directory) for speed in (400, 600, 900, 1500)]


@pytest.fixture(scope="module")
def files(fields: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    directory = str(tmp_path_factory.mktemp("render"))
    return [render(fields, n, directory, layers=2, lines=LINES // 2, rotation_deg=0.0) for n in OBJECTS]


@pytest.fixture(scope="module")
def data(files: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_index(files, str(tmp_path_factory.mktemp("data")))


# ------------------------------------------------------------------------------------------ simulate, render


def test_both_methods_give_the_same_surface(fields: list[str], tmp_path: Path) -> None:
    transient = simulate(900, str(tmp_path), method="transient", spots_um=(25.0,))
    with h5py.File(fields[2]) as closed, h5py.File(transient) as numeric:
        steady = closed["rise_k_w"][int(np.abs(closed["spot_m"][:] - 25e-6).argmin())]
        assert numeric["rise_k_w"].shape == (1, len(X_M), len(Y_M))
        assert np.abs(numeric["rise_k_w"][0] - steady).max() < 0.03 * steady.max()
        assert numeric.attrs["method"] == "transient"


@pytest.mark.parametrize(
    ("setting", "key"),
    [({"method": "guess"}, "method"), ({"speed_mm_s": 0}, "speed_mm_s"), ({"spots_um": (0.0,)}, "spots_um")],
)
def test_a_melt_pool_that_cannot_be_is_refused(setting: dict[str, Any], key: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidSettingError, match=f"simulate.{key}"):
        simulate(**{"speed_mm_s": 900, "directory": str(tmp_path), **setting})


def test_radiance_follows_planck() -> None:
    # 1/T - 1/T0 of Wien's law, where exp(-c2 / lambda T) is small.
    ratio = float(planck_ratio(np.array(1600.0), 3200.0))
    assert ratio == pytest.approx(np.exp(-1.438776877e-2 / 850e-9 / 3200), rel=0.01)
    assert float(planck_ratio(np.array(3200.0), 3200.0)) == 1.0


def test_a_rendered_object_has_the_layout_of_raise_lpbf_and_says_that_it_is_synthetic(
    files: list[str],
) -> None:
    assert [Path(f).name for f in files] == [f"C{n:03d}.hdf5" for n in OBJECTS]
    for path, number in zip(files, OBJECTS, strict=True):
        with h5py.File(path) as file:
            assert file.attrs["synthetic"]
            assert "not a measurement" in file.attrs["description"]
            assert len(file) == 2
            for layer in file.values():
                frames = len(layer["frame"])
                assert layer["frame"].dtype == np.uint8
                assert layer["scan_line_index"].shape == (frames,)
                assert ("laser_params" in layer) == (number != 29)
                if number != 29:
                    speed, power = layer["laser_params"][:].T
                    assert SPEED_MM_S[0] <= speed.min() < speed.max() <= SPEED_MM_S[1]
                    assert POWER_W[0] <= power.min() < power.max() <= POWER_W[1]


def test_an_object_is_the_same_for_the_same_seed_only(
    fields: list[str], files: list[str], tmp_path: Path
) -> None:
    settings_ = {"layers": 2, "lines": LINES // 2, "rotation_deg": 0.0}
    again = render(fields, 27, str(tmp_path), **settings_)
    with h5py.File(files[0]) as first, h5py.File(again) as second, h5py.File(files[1]) as other:
        layer = next(iter(first))
        assert (first[layer]["frame"][:] == second[layer]["frame"][:]).all()
        assert first[layer]["laser_params"][0, 0] != other[layer]["laser_params"][0, 0]
    reseeded = render(fields, 27, str(tmp_path), **settings_, seed=1)
    with h5py.File(files[0]) as first, h5py.File(reseeded) as other:
        assert first[layer]["laser_params"][0, 0] != other[layer]["laser_params"][0, 0]


def test_more_power_lights_more_pixels(files: list[str]) -> None:
    powers, pixels = [], []
    for line in find_scan_lines(files):
        if line.is_labelled:
            with h5py.File(line.file) as file:
                frames = file[line.group]["frame"][line.start : line.stop]
            powers.append(line.power_w)
            pixels.append(float((frames > 25).sum() / len(frames)))
    assert np.corrcoef(powers, pixels)[0, 1] > 0.8


def test_fields_that_do_not_enclose_the_speeds_are_refused(fields: list[str], tmp_path: Path) -> None:
    with pytest.raises(InvalidSettingError, match=r"render\.fields"):
        render(fields[1:], 27, str(tmp_path))
    with pytest.raises(InvalidSettingError, match="at least 1"):
        render(fields, 27, str(tmp_path), layers=0)


# --------------------------------------------------------------------------------------------------- dataset


def test_splits_share_no_object_and_hold_every_line_once(data: dict[str, Any], files: list[str]) -> None:
    splits = {split: Clips(data["index"], split).lines for split in SPLITS}
    assert data["samples"] == {
        "train": 2 * LINES,
        "validation": LINES,
        "test": LINES,
        "unlabelled": LINES,
    }
    objects = {split: {line.object_name for line in lines} for split, lines in splits.items()}
    assert objects["unlabelled"] == {"C029"}
    assert sum(map(len, objects.values())) == len(OBJECTS) == len(set().union(*objects.values()))
    assert {line for lines in splits.values() for line in lines} == set(find_scan_lines(files))


def test_held_out_scan_lines_come_from_all_objects(files: list[str], tmp_path: Path) -> None:
    data = write_index(files, str(tmp_path), hold_out="scan_line", held_out_fraction=0.5)
    assert data["samples"] == {"train": 48, "validation": 24, "test": 24, "unlabelled": LINES}
    for split in ("train", "validation", "test"):
        assert len({line.object_name for line in Clips(data["index"], split).lines}) == len(OBJECTS) - 1


def test_the_error_of_predicting_the_mean_is_told(data: dict[str, Any]) -> None:
    mean = Clips(data["index"], "train").targets.mean(dim=0)
    for split in SPLITS[:-1]:
        error = (Clips(data["index"], split).targets - mean).square().mean()
        assert data["mean_mse"][split] == pytest.approx(float(error), rel=1e-6)


def test_a_clip_is_normalised_as_the_baseline_has_it(data: dict[str, Any]) -> None:
    dataset = Clips(data["index"], "test")
    clips, targets = dataset.read([3])
    line = dataset.lines[3]
    with h5py.File(line.file) as file:
        frames = file[line.group]["frame"][line.start : line.stop]
        speed, power = file[line.group]["laser_params"][line.line]
    grey = torch.from_numpy(clip_of(frames)).float()
    assert clips.shape == (1, 1, 16, 41, 41)
    assert torch.allclose(clips[0, 0], (grey / 255 - 0.45) / 0.225)
    assert targets[0].tolist() == pytest.approx([speed / NOMINAL[0], power / NOMINAL[1]])


@settings(max_examples=50, deadline=None)
@given(
    length=st.integers(1, 60),
    height=st.integers(20, 60),
    width=st.integers(20, 60),
    data=st.data(),
)
def test_a_clip_is_centred_on_the_brightest_pixel_even_at_the_border(
    length: int, height: int, width: int, data: st.DataObject
) -> None:
    row, column = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    frames = np.ones((length, height, width), np.uint8)
    frames[:, row, column] = 100 + np.arange(length)
    clip = clip_of(frames)
    assert clip.shape == (16, 41, 41)
    assert (clip[:, 20, 20] == 100 + np.linspace(0, length - 1, 16).astype(int)).all()
    inside = min(row, 20) + min(height - 1 - row, 20) + 1, min(column, 20) + min(width - 1 - column, 20) + 1
    assert (clip > 0).sum() == 16 * inside[0] * inside[1]


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(indices=st.lists(st.integers(0, 2 * LINES - 1), min_size=1, max_size=12))
def test_clips_are_read_in_the_order_asked_for(data: dict[str, Any], indices: list[int]) -> None:
    dataset = Clips(data["index"], "train")
    clips, targets = dataset.read(range(len(dataset)))
    some_clips, some_targets = dataset.read(indices)
    assert torch.equal(some_clips, clips[indices])
    assert torch.equal(some_targets, targets[indices])


def test_version_1_0_holds_the_same_lines_below_its_objects(
    files: list[str], data: dict[str, Any], tmp_path: Path
) -> None:
    root = tmp_path / "v1.0"
    root.mkdir()
    with h5py.File(root / "RAISE_LPBF_train.hdf5", "w") as whole:
        for path in files:
            with h5py.File(path) as file:
                for layer in file.values():
                    file.copy(layer, whole.require_group(Path(path).stem), layer.name.strip("/"))
    (tmp_path / "data").mkdir()
    nested = write_index(str(root), str(tmp_path / "data"))
    assert {k: nested[k] for k in ("samples", "mean_mse")} == {k: data[k] for k in ("samples", "mean_mse")}
    for split in SPLITS:
        flat_clips, nested_clips = (Clips(d["index"], split).read(range(5)) for d in (data, nested))
        assert torch.equal(flat_clips[0], nested_clips[0])
        assert torch.equal(flat_clips[1].nan_to_num(), nested_clips[1].nan_to_num())


def test_a_folder_is_read_like_a_list_of_its_files(files: list[str]) -> None:
    assert find_scan_lines(str(Path(files[0]).parent)) == find_scan_lines(files)


Damage = Callable[[h5py.File], None]


def _replace(layer: str, key: str, values: Any) -> Damage:
    def damage(file: h5py.File) -> None:
        del file[layer][key]
        file[layer][key] = values

    return damage


LAYER = "layer_0001"


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda f: f[LAYER].pop("frame"), f"/{LAYER}/frame: found nothing"),
        (lambda f: f[LAYER].pop("scan_line_index"), f"/{LAYER}/scan_line_index: found nothing"),
        (_replace(LAYER, "frame", np.zeros((4, 8), "u1")), r"uint8 of shape \(4, 8\)"),
        (_replace(LAYER, "frame", np.zeros((4, 8, 8))), "float64 of shape"),
        (_replace(LAYER, "scan_line_index", np.zeros(3, int)), r"int64 of shape \(3,\)"),
        (_replace(LAYER, "laser_params", np.ones((12, 3))), r"shape \(12, 3\)"),
        (_replace(LAYER, "laser_params", np.ones((4, 2))), "no speed and power of scan line 4"),
        (_replace(LAYER, "laser_params", np.full((12, 2), np.nan)), "no speed and power of scan line 0"),
        (lambda f: [f.pop(name) for name in list(f)], "found groups none"),
    ],
)
def test_a_foreign_file_is_named_with_what_is_wrong(
    damage: Damage, found: str, files: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "C028.hdf5"
    shutil.copy(files[1], path)
    with h5py.File(path, "a") as file:
        damage(file)
    with pytest.raises(InvalidFileError, match=found) as caught:
        find_scan_lines([files[0], str(path)])
    assert [mistake.file for mistake in caught.value.mistakes] == [str(path)]


def test_a_scan_line_in_two_pieces_is_refused(files: list[str], tmp_path: Path) -> None:
    path = tmp_path / "C028.hdf5"
    shutil.copy(files[1], path)
    with h5py.File(path, "a") as file:
        index = file[LAYER]["scan_line_index"]
        index[-1] = 0
    with pytest.raises(InvalidFileError, match="scan line 0 in several pieces"):
        find_scan_lines([str(path)])


def test_truncated_and_missing_files_are_all_named(files: list[str], tmp_path: Path) -> None:
    short, missing = tmp_path / "C028.hdf5", tmp_path / "C099.hdf5"
    short.write_bytes(Path(files[1]).read_bytes()[:5000])
    with pytest.raises(InvalidFileError) as caught:
        find_scan_lines([str(short), files[0], str(missing)])
    assert [mistake.file for mistake in caught.value.mistakes] == [str(short), str(missing)]


def test_a_file_of_another_name_is_refused(files: list[str], tmp_path: Path) -> None:
    other = shutil.copy(files[1], tmp_path / "C028.nc")
    with pytest.raises(InvalidFileError, match=r"found the name C028\.nc; allowed: \*\.hdf5, \*\.h5"):
        find_scan_lines([files[0], str(other)])


def test_a_file_that_vanishes_after_indexing_is_named(files: list[str], tmp_path: Path) -> None:
    copies = [Path(shutil.copy(path, tmp_path)) for path in files]
    data = write_index([str(path) for path in copies], str(tmp_path))
    clips = Clips(data["index"], "train")
    Path(clips.lines[0].file).unlink()
    with pytest.raises(DataError, match=f"{Path(clips.lines[0].file).name}: there is no such file"):
        clips.read([0])


@pytest.fixture(scope="module")
def many_objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Forty objects of 7 scan lines in 2 layers; no two lines have the same speed."""
    root = tmp_path_factory.mktemp("many")
    speeds = itertools.count(400)
    for number in range(40):
        with h5py.File(root / f"C{number:03d}.hdf5", "w") as file:
            for name, lines in (("layer_0001", 4), ("layer_0002", 3)):
                layer = file.create_group(name)
                laser = np.array([(next(speeds), 200.0) for _ in range(lines)])
                frames = np.repeat(laser[:, 0] % 256, 2).astype(np.uint8)[:, None, None]
                layer["frame"] = np.tile(frames, (1, 8, 8))
                layer["scan_line_index"] = np.repeat(np.arange(lines), 2)
                layer["laser_params"] = laser
    return write_index(str(root), str(root))


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [1, 2, 3, 5, 8, 16])
def test_every_clip_comes_once_an_epoch_at_any_width_and_from_few_files(
    replicas: int, many_objects: dict[str, Any]
) -> None:
    clips = Clips(many_objects["index"], "train")
    trial = local_trial({}, epochs=2, batch_size=3, replicas=replicas)
    model, _ = trial.prepare(nn.Linear(1, 2), torch.optim.SGD, lr=0.0)
    orders = []
    for _ in trial.epochs():
        seen = []
        for frames, targets in trial.batches(clips):
            speeds = (targets[:, 0] * NOMINAL[0]).round()
            brightest = (frames * 0.225 + 0.45).amax(dim=(1, 2, 3, 4)) * 255
            assert torch.equal(brightest.round(), speeds % 256), "a clip has the targets of its own line"
            assert len(OPEN_FILES) <= 32
            seen += speeds.int().tolist()
            trial.step(model(brightest[:, None] / 255).square().mean())
        assert sorted(seen) == sorted((clips.targets[:, 0] * NOMINAL[0]).round().int().tolist())
        orders.append(seen)
        trial.report(val_loss=0.0)
    assert orders[0] != orders[1]
    assert any(t.name == "rasda-read-ahead" for t in _threads_while_reading(clips))


def _threads_while_reading(clips: Clips) -> list[threading.Thread]:
    stream = clips.stream([[n] for n in range(len(clips))])
    next(stream)
    found = threading.enumerate()
    stream.close()
    return found


def test_neighbours_are_read_from_one_layer(many_objects: dict[str, Any]) -> None:
    clips = Clips(many_objects["index"], "train")
    for block in range(clips.layout.blocks):
        first, size = (int(n[0]) for n in clips.layout.extents(np.array([block])))
        lines = clips.lines[first : first + size]
        assert len({(line.file, line.group) for line in lines}) == 1


@pytest.mark.parametrize(
    ("setting", "key"),
    [
        ({"hold_out": "layer"}, "data.hold_out"),
        ({"held_out_fraction": 1.0}, "data.held_out_fraction"),
        ({"root": []}, "data.root"),
    ],
)
def test_a_split_that_cannot_be_is_refused(
    setting: dict[str, Any], key: str, files: list[str], tmp_path: Path
) -> None:
    with pytest.raises(InvalidSettingError, match=key):
        write_index(**{"root": files, "directory": str(tmp_path), **setting})


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettingError, match=r"data\.root"):
        write_index(str(tmp_path), str(tmp_path))


def test_the_name_of_a_split_that_does_not_exist_is_refused(data: dict[str, Any]) -> None:
    with pytest.raises(InvalidSettingError, match="one of train, validation, test, unlabelled"):
        Clips(data["index"], "holdout")


# ------------------------------------------------------------------------------------------- train, evaluate

CNN = {"model": "cnn", "width": 8, "lr": 3e-3, "weight_decay": 1e-3, "step": 8, "gamma": 0.5}
SWIN = {
    **CNN,
    "model": "swin",
    "patch_frames": 4,
    "patch_rows": 4,
    "patch_columns": 4,
    "embed": 12,
    "depth": 1,
    "mlp_ratio": 1,
}


@pytest.mark.slow
@pytest.mark.parametrize("config", [CNN, SWIN], ids=["cnn", "swin"])
def test_a_network_beats_the_mean_on_objects_it_never_saw(
    config: dict[str, Any], data: dict[str, Any], tmp_path: Path
) -> None:
    trial = local_trial(config, inputs={"data": data}, epochs=24, batch_size=4, directory=tmp_path)
    train(trial)
    last = trial.history[-1]
    result = evaluate(best_of(trial), data, str(tmp_path))
    assert json.loads(json.dumps(result)) == result
    assert result["val_best_mse"] == pytest.approx(last.metrics["val_loss"], rel=1e-4)
    assert result["test_mean_mse"] == data["mean_mse"]["test"]
    assert result["test_ratio"] == pytest.approx(result["test_best_mse"] / result["test_mean_mse"])
    assert result["val_ratio"] < 0.5
    assert result["test_ratio"] < 0.5
    squares = [(result[name]["rmse"] / n) ** 2 for name, n in zip(("speed", "power"), NOMINAL, strict=True)]
    assert sum(squares) / 2 == pytest.approx(result["test_best_mse"], rel=1e-4)
    assert result["power"]["r2"] > 0.5
    assert Path(str(result["picture"])).read_bytes().startswith(b"\x89PNG")
    with Path(str(result["predictions"])).open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == LINES
    assert {row["object"] for row in rows} == {"C029"}


def test_the_learning_rate_drops_by_gamma_at_each_step(data: dict[str, Any], tmp_path: Path) -> None:
    # With gamma 0 nothing is learnt after the first drop.
    frozen = {**CNN, "step": 1, "gamma": 0.0}
    trial = local_trial(frozen, inputs={"data": data}, epochs=3, batch_size=16, directory=tmp_path)
    train(trial)
    first, second, third = (report.metrics["val_loss"] for report in trial.history)
    assert second == third
    nominal = (Clips(data["index"], "validation").targets - 1).square().mean()
    assert first != pytest.approx(float(nominal), rel=1e-3)


@pytest.mark.parametrize("file", ["study.yaml", "raise_lpbf.yaml"])
def test_the_studies_are_valid_and_differ_in_where_data_come_from(file: str) -> None:
    study = load_study(HERE / file)
    stage = study.stages["data"]
    assert "root" in stage.arguments
    assert stage.needs == ({"root": "render"} if file == "study.yaml" else {})
    assert list(study.stages)[-3:] == ["data", "tune", "evaluate"]
