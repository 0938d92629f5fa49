from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from parsl_rasda.runtime import local_trial
from parsl_rasda.study import load_study
from tests.unit.workflows.best_trial import best_of
from tests.workflow_folder import workflow_folder

with workflow_folder("cv_resnet") as FOLDER:
    from digits import write_digits
    from evaluate import batches, confusion_matrix, confusions, error_of, evaluate
    from model import ACTIVATIONS, NETWORKS, build, parameter_count, predictions
    from prepare import index_images
    from train import split_of, train

CONFIG = {"lr": 5e-3, "weight_decay": 1e-4, "optimizer": "adam", "activation": "relu", "network": "small"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    return write_digits(0, str(tmp_path_factory.mktemp("digits")))


def test_resnet_50_has_the_parameters_that_it_is_known_by() -> None:
    assert parameter_count(NETWORKS["resnet50"](1000, 3, "relu")) == 25_557_032
    assert parameter_count(NETWORKS["small"](10, 1, "relu")) == 19_706


def test_resnet_50_halves_an_image_five_times() -> None:
    model = NETWORKS["resnet50"](7, 3, "relu").eval()
    with torch.no_grad():
        images = torch.zeros(1, 3, 64, 64)
        assert model.stem(images).shape == (1, 64, 16, 16)
        assert model.blocks(model.stem(images)).shape == (1, 2048, 2, 2)
        assert model(images).shape == (1, 7)


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_the_network_is_built_of_the_activation_that_is_searched(activation: str) -> None:
    model = NETWORKS["small"](10, 1, activation)
    wanted = type(ACTIVATIONS[activation]())
    kinds = {type(ACTIVATIONS[name]()) for name in ACTIVATIONS}
    assert {type(module) for module in model.modules()} & kinds == {wanted}
    assert torch.isfinite(model(torch.randn(4, 1, 8, 8))).all()


@pytest.mark.slow
def test_the_best_network_knows_digits_that_decided_nothing(data: dict[str, object], tmp_path: Path) -> None:
    trial = local_trial(
        CONFIG, inputs={"data": data}, epochs=4, batch_size=16, warmup_initial=1, directory=tmp_path
    )
    train(trial)
    last = trial.history[-1]
    result = evaluate(best_of(trial, "val_error"), data, str(tmp_path))
    assert json.loads(json.dumps(result)) == result
    assert result["val_error"] == pytest.approx(last.metrics["val_error"], abs=1e-9)
    assert result["test_error"] < 0.1
    assert result["test_samples"] == 300
    wrong = round(result["test_error"] * 300)
    assert 0 < sum(images for _, _, images in result["confusions"]) <= wrong
    assert Path(str(result["picture"])).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("optimizer", "readers"), [("sgd", 0), ("adam", 1)])
def test_both_optimizers_learn_from_image_files(optimizer: str, readers: int, tmp_path: Path) -> None:
    for folder, images in (("train", 8), ("val", 4)):
        for name, colour in (("dark", 30), ("light", 220)):
            (tmp_path / folder / name).mkdir(parents=True)
            for number in range(images):
                grey = (colour + number,) * 3
                Image.new("RGB", (20, 16), grey).save(tmp_path / folder / name / f"{number}.png")
    data = index_images(str(tmp_path), str(tmp_path))
    config = {**CONFIG, "optimizer": optimizer, "pixels": 8, "readers": readers, "lr": 0.01}
    trial = local_trial(config, inputs={"data": data}, epochs=3, batch_size=4, directory=tmp_path / "trial")
    train(trial)
    assert trial.history[-1].metrics["val_error"] == 0.0
    guesses, labels = predictions(build(config, data).eval(), batches(split_of(data, "test", config)))
    assert guesses.shape == labels.shape == (4,)


def test_a_confusion_matrix_counts_what_was_taken_for_what() -> None:
    labels, guesses = torch.tensor([0, 0, 1, 2, 2, 2]), torch.tensor([0, 1, 1, 0, 0, 2])
    matrix = confusion_matrix(guesses, labels, 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 1, 0], [2, 0, 1]]
    assert error_of(matrix) == pytest.approx(0.5)
    assert confusions(matrix) == [(2, 0, 2), (0, 1, 1)]


def test_both_studies_search_the_space_of_the_paper() -> None:
    for name in ("study.yaml", "imagenet.yaml"):
        study = load_study(FOLDER / name)
        tune = study.stages["tune"].tune
        space = tune.search_space
        assert space["lr"] == {"float": [1e-5, 1.0], "log": True}
        assert space["weight_decay"] == {"float": [0.0, 0.1]}
        assert set(space["optimizer"]["choice"]) == {"adam", "sgd"}
        assert set(space["activation"]["choice"]) == set(ACTIVATIONS)
        assert space["network"] in NETWORKS
        assert tune.num_samples == 24
        assert tune.scheduler.reduction_factor == 2
        assert tune.scheduler.grace_period >= 2
    assert tune.training.batch_size == 128
    assert space["warmup_initial"] == {"int": [1, 5]}
    assert space["warmup_rescale"] == {"int": [1, 2]}
