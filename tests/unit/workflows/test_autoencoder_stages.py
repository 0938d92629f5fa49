from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from parsl_rasda.errors import InvalidSettingError
from parsl_rasda.runtime import local_trial
from parsl_rasda.study import load_study
from tests.unit.workflows.best_trial import best_of
from tests.workflow_folder import workflow_folder

with workflow_folder("cfd_autoencoder") as FOLDER:
    from evaluate import evaluate, principal_components
    from fields import SPLITS, open_fields, scaled
    from model import ACTIVATIONS, Autoencoder, parameter_count, sample_errors
    from prepare import LABELS, write_shards
    from simulate import simulate
    from simulate_cavity import simulate_cavity
    from train import train

GRID = 24


@pytest.fixture(scope="module")
def turbulence(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    directory = str(tmp_path_factory.mktemp("turbulence"))
    return [simulate(seed, GRID, 160, 5e-3, directory, flows=32, interval=0.3) for seed in (0, 1, 9)]


@pytest.fixture(scope="module")
def cavities(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    directory = str(tmp_path_factory.mktemp("cavities"))
    return [simulate_cavity(re, GRID, 20, directory) for re in (50, 120, 80, 100)]


@pytest.fixture(scope="module")
def data(
    turbulence: list[str], cavities: list[str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, object]:
    return write_shards(turbulence, cavities, str(tmp_path_factory.mktemp("prepare")))


def all_of(data: dict[str, object], split: str) -> torch.Tensor:
    return torch.cat(list(open_fields(data, split).blocks()))


def labels_of(data: dict[str, object], split: str) -> list[str]:
    flows = torch.cat(list(open_fields(data, split, "flow").blocks()))
    return [LABELS[flow] for flow in flows.tolist()]


def test_every_snapshot_lands_in_one_split_and_the_last_flows_are_unseen(data: dict[str, object]) -> None:
    assert data["samples"] == {"train": 280, "validation": 100, "unseen": 180}
    assert data["shape"] == [2, GRID, GRID]
    everything = torch.cat([all_of(data, split) for split in SPLITS])
    assert len(torch.unique(everything.flatten(1), dim=0)) == 560
    assert {split: labels_of(data, split).count("cavity") for split in SPLITS} == {
        "train": 40,
        "validation": 20,
        "unseen": 20,
    }


def test_samples_are_the_snapshots_stretched_by_component(
    data: dict[str, object], cavities: list[str]
) -> None:
    of_cavity = [n for n, label in enumerate(labels_of(data, "unseen")) if label == "cavity"]
    ours = open_fields(data, "unseen").read(of_cavity)
    assert ours.dtype == torch.float16
    ours = ours.float()
    assert torch.equal(ours.amax(dim=(2, 3)), torch.ones(20, 2))
    assert torch.equal(ours.amin(dim=(2, 3)), -torch.ones(20, 2))
    with h5py.File(cavities[-1]) as file:
        v = torch.from_numpy(file["velocity"][0, :, 1])
    low, high = v.amin(dim=(1, 2), keepdim=True), v.amax(dim=(1, 2), keepdim=True)
    assert torch.allclose(ours[:, 1], 2 * (v - low) / (high - low) - 1, atol=1e-3)  # kept in fp16


def test_a_constant_component_becomes_zero() -> None:
    snapshot = np.stack((np.full((4, 4), 7.0), np.arange(16.0).reshape(4, 4))).astype(np.float32)
    stretched = scaled(snapshot, axes=(1, 2))
    assert not stretched[0].any()
    assert stretched[1, 0, 0] == -1
    assert stretched[1, 3, 3] == 1


def test_flows_that_leave_nothing_to_hold_out_or_to_train_on_are_refused(
    turbulence: list[str], cavities: list[str], tmp_path: Path
) -> None:
    place = str(tmp_path)
    with pytest.raises(InvalidSettingError, match=r"prepare\.turbulence.*the last is held out"):
        write_shards(turbulence[:1], cavities, place)
    with pytest.raises(InvalidSettingError, match=r"prepare\.cavities.*the last is held out"):
        write_shards(turbulence, cavities[:2], place)
    for fraction in (0.0, 0.95, 1.0):
        with pytest.raises(InvalidSettingError, match="validation_fraction"):
            write_shards(turbulence, cavities, place, validation_fraction=fraction)


def test_flows_on_two_grids_are_refused(turbulence: list[str], cavities: list[str], tmp_path: Path) -> None:
    other = simulate_cavity(50, 16, 2, str(tmp_path))
    with pytest.raises(InvalidSettingError, match=r"sample of .*cavity-re50"):
        write_shards(turbulence, [*cavities, other], str(tmp_path))


@settings(max_examples=25, deadline=None)
@given(
    components=st.integers(1, 3),
    depth=st.integers(1, 3),
    latent=st.integers(1, 4),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
)
def test_a_field_of_any_size_comes_back_in_its_size(
    components: int, depth: int, latent: int, height: int, width: int, activation: str
) -> None:
    model = Autoencoder(components, width=4, depth=depth, latent=latent, activation=activation)
    field = torch.randn(2, components, height, width)
    assert model(field).shape == field.shape
    cells = -(-height // 2**depth) * -(-width // 2**depth)
    assert model.encode(field).shape[1:].numel() == latent * cells
    assert model.latent_size(field.shape[1:]) == latent * cells


def test_nothing_but_the_latent_numbers_reaches_the_decoder() -> None:
    model = Autoencoder(2, width=4, depth=2, latent=1, activation="gelu")
    field = torch.randn(1, 2, 8, 8)
    assert torch.equal(model.decoder(model.encode(field)), model(field))


def test_principal_components_lose_what_their_singular_values_say() -> None:
    samples = torch.randn(30, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    flat = samples.flatten(1)
    lost = torch.linalg.svdvals(flat - flat.mean(dim=0))[5:].square().sum() / samples.numel()
    error = sample_errors(principal_components(samples, 5), [samples]).mean()
    assert float(error) == pytest.approx(float(lost), rel=1e-4)
    assert float(sample_errors(principal_components(samples, 64), [samples]).max()) < 1e-10


@pytest.mark.slow
def test_the_autoencoder_beats_pca_of_its_size_on_flows_it_never_saw(
    data: dict[str, object], tmp_path: Path
) -> None:
    config = {"lr": 4e-3, "optimizer": "adam", "weight_decay": 0.0, "activation": "gelu"}
    config |= {"width": 12, "depth": 2, "latent": 2}
    trial = local_trial(config, inputs={"data": data}, epochs=12, batch_size=8, directory=tmp_path)
    train(trial)
    last = trial.history[-1]
    result = evaluate(best_of(trial), data, str(tmp_path))
    assert json.loads(json.dumps(result)) == result
    assert result["latent_size"] == 2 * 6 * 6
    assert result["compression"] == 2 * GRID * GRID / 72
    assert result["val_mse"] == pytest.approx(last.metrics["val_loss"], rel=1e-5)
    assert result["unseen_ratio"] == pytest.approx(result["unseen_mse"] / result["unseen_pca_mse"])
    assert result["unseen_ratio"] < 0.9
    by_label = result["unseen_by_label"]
    mean = (160 * by_label["turbulence"]["mse"] + 20 * by_label["cavity"]["mse"]) / 180
    assert mean == pytest.approx(result["unseen_mse"], rel=1e-6)
    picture = Path(str(result["picture"])).read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 20_000


def test_every_network_of_the_study_keeps_a_32nd_of_the_numbers() -> None:
    study = load_study(FOLDER / "study.yaml")
    space = study.stages["tune"].tune.search_space
    sizes = []
    for width in space["width"]["choice"]:
        model = Autoencoder(2, width=width, depth=space["depth"], latent=space["latent"], activation="relu")
        assert model.latent_size((2, 64, 64)) == 256
        sizes.append(parameter_count(model))
    assert sizes == sorted(sizes)
    assert set(space["activation"]["choice"]) == set(ACTIVATIONS)
