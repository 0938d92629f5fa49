from __future__ import annotations

import json
import math
from pathlib import Path

import h5py
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parsl_rasda.data import open_shards
from parsl_rasda.errors import InvalidSettingError
from parsl_rasda.runtime import local_trial
from parsl_rasda.simulation.forecast import forecast
from parsl_rasda.simulation.rehearsal import VirtualSite
from parsl_rasda.study import load_study
from parsl_rasda.types import SiteName
from tests.unit.workflows.best_trial import best_of
from tests.workflow_folder import workflow_folder

with workflow_folder("cfd_defiltering") as FOLDER:
    from evaluate import evaluate
    from model import Defilter, mean_square_error, parameter_count
    from prepare import SPLITS, gaussian_filter, write_shards
    from simulate import simulate
    from train import train

SEEDS = (0, 1, 9)


@pytest.fixture(scope="module")
def fields(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    directory = tmp_path_factory.mktemp("simulate")
    return [simulate(s, 24, 40, 5e-3, str(directory), flows=4, interval=0.1) for s in SEEDS]


@pytest.fixture(scope="module")
def data(fields: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    directory = str(tmp_path_factory.mktemp("prepare"))
    return write_shards(fields, directory, filter_width=3.0, validation_fraction=0.25)


def test_a_simulation_is_the_same_for_the_same_seed_and_says_what_it_is(
    fields: list[str], tmp_path: Path
) -> None:
    again = simulate(0, 24, 40, 5e-3, str(tmp_path), flows=4, interval=0.1)
    with h5py.File(fields[0]) as first, h5py.File(again) as second, h5py.File(fields[1]) as other:
        assert first["velocity"].shape == (4, 10, 2, 24, 24)
        assert first["velocity"].dtype == "float32"
        assert (first["velocity"][:] == second["velocity"][:]).all()
        assert (first["velocity"][:] != other["velocity"][:]).any()
        assert first["time"].shape == (10,)
        assert {k: first.attrs[k] for k in ("seed", "grid", "viscosity")} == {
            "seed": 0,
            "grid": 24,
            "viscosity": 5e-3,
        }


def test_a_simulated_flow_loses_energy(fields: list[str]) -> None:
    with h5py.File(fields[0]) as file:
        energy = 0.5 * (file["velocity"][:] ** 2).sum(axis=2).mean(axis=(2, 3))
    assert ((energy[:, 1:] - energy[:, :-1]) < 0).all()
    assert (energy[:, 0] < 0.5).all()


@pytest.mark.parametrize(
    ("grid", "snapshots", "key"), [(24, 39, "simulate.snapshots"), (12, 40, "simulate.grid")]
)
def test_a_simulation_that_cannot_be_is_refused(grid: int, snapshots: int, key: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidSettingError, match=key):
        simulate(0, grid, snapshots, 5e-3, str(tmp_path), flows=4)


def test_the_filter_damps_a_wave_by_its_transfer_function() -> None:
    x = torch.arange(32, dtype=torch.float64) * 2 * math.pi / 32
    wave = torch.sin(3 * x)[None, :] * torch.cos(4 * x)[:, None]
    width = 8.0
    delta = width * 2 * math.pi / 32
    assert torch.allclose(gaussian_filter(wave, width), wave * math.exp(-25 * delta**2 / 24), atol=1e-12)
    assert torch.allclose(gaussian_filter(torch.ones(4, 2, 32, 32), width), torch.ones(4, 2, 32, 32))


def test_every_snapshot_lands_in_one_split_and_the_last_simulation_is_unseen(
    fields: list[str], data: dict[str, object]
) -> None:
    assert data["samples"] == {"train": 60, "validation": 20, "unseen": 40}
    truth = {
        s: open_shards(str(data["index"]), split=s).read(range(n))[1] for s, n in data["samples"].items()
    }
    with h5py.File(fields[-1]) as file:
        flow = torch.from_numpy(file["velocity"][:]).flatten(0, 1)
    scaled = truth["unseen"] * (flow[:, :1, :1, :1] / truth["unseen"][:, :1, :1, :1])
    assert torch.allclose(scaled, flow, rtol=1e-4, atol=1e-4)
    everything = torch.cat(list(truth.values())).flatten(1)
    assert len(torch.unique(everything, dim=0)) == 120


def test_filtered_snapshots_have_speed_one_and_the_error_of_doing_nothing_is_told(
    data: dict[str, object],
) -> None:
    for split in SPLITS:
        dataset = open_shards(str(data["index"]), split=split)
        filtered, truth = dataset.read(range(len(dataset)))
        speed = filtered.square().sum(dim=1).mean(dim=(1, 2)).sqrt()
        assert torch.allclose(speed, torch.ones_like(speed), atol=1e-5)
        error = float(mean_square_error(filtered, truth).mean())
        assert error == pytest.approx(data["filtered_mse"][split], rel=1e-5)
        assert error > 0


def test_shards_hold_fp32_in_chunks_of_one_block(data: dict[str, object]) -> None:
    index = Path(str(data["index"]))
    for rows in json.loads(index.read_text(encoding="utf-8"))["splits"].values():
        for name, start, stop in rows:
            with h5py.File(index.parent / name) as file:
                for values in (file["filtered"], file["truth"]):
                    assert values.dtype == "float32"
                    assert values.chunks[0] == 16
                    assert (start, stop) == (0, len(values))


def test_fields_that_leave_nothing_to_hold_out_or_to_validate_are_refused(
    fields: list[str], tmp_path: Path
) -> None:
    with pytest.raises(InvalidSettingError, match="the last is held out"):
        write_shards(fields[:1], str(tmp_path))
    for fraction in (0.0, 0.05, 0.95, 1.0):
        with pytest.raises(InvalidSettingError, match="validation_fraction"):
            write_shards(fields, str(tmp_path), validation_fraction=fraction)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(indices=st.lists(st.integers(0, 59), min_size=1, max_size=40))
def test_samples_are_read_in_the_order_asked_for(data: dict[str, object], indices: list[int]) -> None:
    dataset = open_shards(str(data["index"]), split="train")
    filtered, truth = dataset.read(range(len(dataset)))
    some_filtered, some_truth = dataset.read(indices)
    assert torch.equal(some_filtered, filtered[indices])
    assert torch.equal(some_truth, truth[indices])


def test_a_split_that_does_not_exist_is_refused(data: dict[str, object]) -> None:
    with pytest.raises(InvalidSettingError, match="one of train, validation, unseen"):
        open_shards(str(data["index"]), split="test")


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "tanh"])
def test_an_untrained_network_returns_its_input(activation: str) -> None:
    x = torch.randn(3, 2, 16, 16)
    assert torch.equal(Defilter(8, activation)(x), x)


def test_the_network_does_not_know_where_the_box_begins() -> None:
    model = Defilter(6, "gelu")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x = torch.randn(2, 2, 16, 16)
    moved = torch.roll(model(x), (5, -3), dims=(2, 3))
    assert torch.allclose(model(torch.roll(x, (5, -3), dims=(2, 3))), moved, atol=1e-5)


def test_the_networks_of_the_study_are_small() -> None:
    assert [parameter_count(Defilter(w, "relu")) for w in (6, 8, 12)] == [1514, 2418, 4826]


@pytest.fixture(scope="module")
def config() -> dict[str, object]:
    return {"lr": 0.01, "optimizer": "adamw", "weight_decay": 1e-4, "width": 6, "activation": "tanh"}


@pytest.mark.slow
def test_the_best_network_beats_the_filter_on_flows_it_never_saw(
    config: dict[str, object], data: dict[str, object], tmp_path: Path
) -> None:
    trial = local_trial(config, inputs={"data": data}, epochs=6, batch_size=4, directory=tmp_path)
    train(trial)
    last = trial.history[-1]
    result = evaluate(best_of(trial), data, str(tmp_path))
    assert json.loads(json.dumps(result)) == result
    assert result["best_val_mse"] == pytest.approx(last.metrics["val_loss"], rel=1e-6)
    assert result["filtered_val_mse"] == pytest.approx(data["filtered_mse"]["validation"], rel=1e-5)
    assert result["unseen_filtered_mse"] == pytest.approx(data["filtered_mse"]["unseen"], rel=1e-5)
    assert result["unseen_ratio"] == pytest.approx(result["unseen_model_mse"] / result["unseen_filtered_mse"])
    assert result["val_ratio"] < 0.5
    assert result["unseen_ratio"] < 0.5
    picture = Path(str(result["picture"])).read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 20_000


def test_stochastic_gradient_descent_learns_too(
    config: dict[str, object], data: dict[str, object], tmp_path: Path
) -> None:
    sgd = {**config, "optimizer": "sgd", "momentum": 0.5}
    trial = local_trial(sgd, inputs={"data": data}, epochs=2, batch_size=4, directory=tmp_path)
    train(trial)
    assert trial.history[-1].metrics["val_loss"] < 0.9 * data["filtered_mse"]["validation"]


def test_the_study_is_shaped_so_that_rasda_finds_the_best_of_asha_sooner_on_two_slots() -> None:
    study = load_study(FOLDER / "study.yaml")
    tune = study.tune_stages["tune"].tune
    assert (tune.scheduler.variant, tune.scheduler.batch) == ("synchronous", "constant")
    slots = {SiteName("here"): VirtualSite(nodes=1, gpus_per_node=2)}
    found = forecast("tune", tune, slots, seed=study.seed)
    (declared,) = (p for p in found.policies if p.is_declared)
    assert declared.speedup is not None
    assert declared.speedup > 1.25
    assert found.advice == ()
