from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from parsl_rasda.errors import InvalidSettingError
from parsl_rasda.runtime import local_trial
from parsl_rasda.study import load_study
from tests.workflow_folder import workflow_folder

with workflow_folder("cfd_autoencoder") as FOLDER:
    from evaluate import evaluate
    from fields import open_fields
    from tbl import actuation, cases, join, read_snapshot, snapshots, write_shards
    from train import train

PLANES, PIECE = 5, 12


def write_box(
    case: Path, time: int, shape: tuple[int, int, int] = (25, 7, 9), *, groups: str = "g0"
) -> dict[str, np.ndarray]:
    """Write one file in the layout of the real data, with other numbers in each component."""
    case.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(time)
    fields = {name: random.normal(n, n + 1, shape) for n, name in enumerate("uvw")}
    with h5py.File(case / f"boxOutput{time}.hdf5", "w") as file:
        for name, values in fields.items():
            file[f"{groups}/{name}"] = values
    return fields


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, groups in (("L1000_T40_A30", "g0"), ("L1000_T80_A60", "block_7/fields"), ("Reference", "g0")):
        for time in (0, 24, 48, 96, 240):
            write_box(tmp_path / "tbl" / name, time, groups=groups)
    return tmp_path / "tbl"


def prepared(root: Path, place: Path) -> dict[str, object]:
    parts = []
    for number, case in enumerate(cases(str(root))):
        folder = place / str(number)
        folder.mkdir(parents=True)
        parts.append(write_shards(case, str(folder), planes=PLANES, piece=PIECE))
    assert json.loads(json.dumps(parts)) == parts
    data = join(parts)
    assert json.loads(json.dumps(data)) == data
    return data


def test_cases_are_the_folders_that_hold_snapshots(root: Path) -> None:
    (root / "notes").mkdir()
    found = cases(str(root))
    assert [Path(case["folder"]).name for case in found] == ["L1000_T40_A30", "L1000_T80_A60", "Reference"]
    assert [case["number"] for case in found] == [0, 1, 2]
    assert [case["is_held_out"] for case in found] == [False, False, True]
    with pytest.raises(InvalidSettingError, match=r"boxOutput<t>\.hdf5"):
        cases(str(root / "notes"))


def test_the_name_of_a_case_tells_its_actuation() -> None:
    assert actuation("/data/L1000_T40_A30") == {"L": 1000.0, "T": 40.0, "A": 30.0}
    assert actuation("wavelength-3000_period=52.5") == {"wavelength": 3000.0, "period": 52.5}
    assert actuation("Reference") == {}


def test_snapshots_are_in_order_of_time_and_not_of_name(root: Path) -> None:
    case = root / "Reference"
    (case / "boxOutputMean.hdf5").touch()
    assert [time for time, _ in snapshots(str(case))] == [0, 24, 48, 96, 240]


@pytest.mark.parametrize("groups", ["g0", "g0/g1", "anything/at all"])
def test_a_snapshot_is_permuted_cut_and_stretched(groups: str, tmp_path: Path) -> None:
    fields = write_box(tmp_path, 24, groups=groups)
    samples = read_snapshot(tmp_path / "boxOutput24.hdf5", planes=PLANES, piece=PIECE)
    assert samples.shape == (2 * PLANES, 3, PIECE, 9)
    assert samples.dtype == np.float32
    for number, name in enumerate("uvw"):
        kept = fields[name].transpose(1, 0, 2)[:PLANES]
        stretched = 2 * (kept - kept.min()) / (kept.max() - kept.min()) - 1
        for piece in range(2):
            ours = samples[piece * PLANES : (piece + 1) * PLANES, number]
            assert np.allclose(ours, stretched[:, piece * PIECE : (piece + 1) * PIECE], atol=1e-5)


def test_the_last_snapshots_of_a_case_validate_and_the_last_case_is_unseen(
    root: Path, tmp_path: Path
) -> None:
    data = prepared(root, tmp_path / "out")
    assert data["shape"] == [3, PIECE, 9]
    assert data["samples"] == {"train": 2 * 4 * 10, "validation": 2 * 10, "unseen": 5 * 10}
    flows = {
        s: torch.cat(list(open_fields(data, s, "flow").blocks())).tolist() for s in ("validation", "unseen")
    }
    assert flows == {"validation": [0] * 10 + [1] * 10, "unseen": [2] * 50}
    assert data["labels"] == ["L1000_T40_A30", "L1000_T80_A60", "Reference"]
    last = read_snapshot(root / "L1000_T40_A30" / "boxOutput240.hdf5", planes=PLANES, piece=PIECE)
    ours = open_fields(data, "validation").read(range(10)).float()
    assert torch.allclose(ours, torch.from_numpy(last), atol=1e-3)
    attributes = json.loads(Path(data["indices"]["train"][0]).read_text(encoding="utf-8"))["attributes"]
    assert (attributes["L"], attributes["T"], attributes["A"]) == (1000.0, 40.0, 30.0)


def test_the_autoencoder_trains_and_is_evaluated_on_boundary_layers(root: Path, tmp_path: Path) -> None:
    data = prepared(root, tmp_path / "out")
    config = {"lr": 1e-3, "optimizer": "adamw", "weight_decay": 0.0, "activation": "relu"}
    config |= {"width": 4, "depth": 2, "latent": 1}
    trial = local_trial(config, inputs={"data": data}, epochs=1, batch_size=16, directory=tmp_path / "trial")
    train(trial)
    last = trial.history[-1]
    best = {"trial": "t0", "metric": 0.0, "epoch": 1, "config": config, "checkpoint": last.checkpoint.path}
    result = evaluate(best, data, str(tmp_path))
    assert result["latent_size"] == 3 * 3
    assert result["val_mse"] == pytest.approx(last.metrics["val_loss"], rel=1e-5)
    assert set(result["unseen_by_label"]) == {"Reference"}


def test_a_file_of_another_layout_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "boxOutput0.hdf5"
    with h5py.File(file, "w") as box:
        box["g0/u"] = np.zeros((25, 7, 9))
    with pytest.raises(InvalidSettingError, match=r"boxOutput0\.hdf5: groups.*u,v,w"):
        read_snapshot(file, planes=PLANES, piece=PIECE)
    write_box(tmp_path, 0)
    with h5py.File(file, "a") as box:
        del box["g0/w"]
        box["g0/w"] = np.zeros((25, 7, 8))
    with pytest.raises(InvalidSettingError, match=r"boxOutput0\.hdf5: shapes"):
        read_snapshot(file, planes=PLANES, piece=PIECE)


def test_a_file_that_is_cut_short_is_refused_by_name(tmp_path: Path) -> None:
    write_box(tmp_path, 0)
    file = tmp_path / "boxOutput0.hdf5"
    file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(InvalidSettingError, match=r"boxOutput0\.hdf5.*a whole HDF5 file"):
        read_snapshot(file, planes=PLANES, piece=PIECE)


@pytest.mark.parametrize(("planes", "piece"), [(8, PIECE), (PLANES, 26)])
def test_a_snapshot_that_is_too_small_is_refused(planes: int, piece: int, tmp_path: Path) -> None:
    write_box(tmp_path, 0)
    with pytest.raises(InvalidSettingError, match=f"N1 of at least {piece} and {planes} planes"):
        read_snapshot(tmp_path / "boxOutput0.hdf5", planes=planes, piece=piece)


def test_samples_of_two_shapes_are_refused(root: Path, tmp_path: Path) -> None:
    write_box(root / "Reference", 264, (25, 7, 10))
    with pytest.raises(InvalidSettingError, match=r"boxOutput264\.hdf5: shape of a sample"):
        prepared(root, tmp_path / "out")
    parts = [{"folder": f"c{n}", "shape": [3, 12, n]} for n in (9, 10)]
    with pytest.raises(InvalidSettingError, match=r"c10: shape of a sample.*as in c9"):
        join(parts)


def test_cases_that_leave_nothing_to_train_on_are_refused(root: Path, tmp_path: Path) -> None:
    for held_out in (0, 3):
        with pytest.raises(InvalidSettingError, match="held_out"):
            cases(str(root), held_out=held_out)
    case = cases(str(root))[0]
    with pytest.raises(InvalidSettingError, match="validation_fraction"):
        write_shards(case, str(tmp_path), validation_fraction=1.0)
    write_box(tmp_path / "short", 0)
    with pytest.raises(InvalidSettingError, match=r"short: snapshots.*2 or more"):
        write_shards({**case, "folder": str(tmp_path / "short")}, str(tmp_path))


def test_the_study_of_the_real_data_can_be_read() -> None:
    study = load_study(FOLDER / "actuated_tbl.yaml", overrides=["stages.cases.with.root=/data/tbl"])
    assert study.stages["cases"].with_ == {"root": "/data/tbl", "held_out": 1}
    assert study.stages["prepare"].with_ == {"planes": 89, "piece": 250, "validation_fraction": 0.125}
