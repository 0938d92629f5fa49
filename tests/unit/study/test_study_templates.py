from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import parsl_rasda.study
from parsl_rasda.cli.init import Template
from parsl_rasda.runtime import local_trial
from parsl_rasda.search.space import SearchSpace
from parsl_rasda.study import load_site, load_study

TEMPLATES = Path(parsl_rasda.study.__file__).parent / "templates"
NAMES = tuple(Template)


def test_every_template_can_be_asked_for() -> None:
    assert {f.name for f in TEMPLATES.iterdir()} == {str(name) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_a_template_is_a_good_study_with_a_good_site(name: str) -> None:
    study = load_study(TEMPLATES / name / "study.yaml", environment={})
    load_site(TEMPLATES / name / "site.yaml", environment={})
    (stage,) = study.tune_stages.values()
    assert (
        SearchSpace.from_mapping(stage.tune.search_space).parameters.keys() == stage.tune.search_space.keys()
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_cluster_in_the_comments_of_a_site_template_is_a_good_site(name: str, tmp_path: Path) -> None:
    _, _, cluster = (
        (TEMPLATES / name / "site.yaml").read_text().partition("# A cluster with Slurm instead:\n")
    )
    (tmp_path / "slurm.yaml").write_text("\n".join(line.removeprefix("# ") for line in cluster.splitlines()))
    site = load_site(tmp_path / "slurm.yaml", environment={"SLURM_ACCOUNT": "x", "SCRATCH": "/scratch"})
    assert site.slots == 16


@pytest.fixture
def template(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module train.py of a template, imported as it is beside a study."""
    monkeypatch.syspath_prepend(str(TEMPLATES / request.param))
    sys.modules.pop("train", None)
    yield import_module("train")
    sys.modules.pop("train", None)


@pytest.mark.parametrize("template", ["minimal"], indirect=True)
def test_the_minimal_template_learns(template: ModuleType, tmp_path: Path) -> None:
    stage = load_study(TEMPLATES / "minimal" / "study.yaml").tune_stages["tune"]
    config = {"lr": 0.02, "width": 32, "optimizer": "adamw"}
    settings = stage.tune.training.resolve(config)
    trial = local_trial(config, epochs=4, directory=tmp_path, batch_size=settings.batch_size)
    template.train(trial)
    losses = [report.metrics["val_loss"] for report in trial.history]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    assert losses[-1] < 0.05, "the variance of the data is about 0.25"


@pytest.mark.parametrize("template", ["cfd"], indirect=True)
def test_the_cfd_template_trains_and_tests_on_what_the_stages_before_it_made(
    template: ModuleType, tmp_path: Path
) -> None:
    from workflows.cfd_defiltering.prepare import write_shards
    from workflows.cfd_defiltering.simulate import simulate

    folders = [tmp_path / str(i) for i in range(4)]
    for folder in folders:
        folder.mkdir()
    fields = [
        simulate(seed, grid=24, snapshots=32, viscosity=4e-3, directory=str(f))
        for seed, f in enumerate(folders[:3])
    ]
    data = write_shards(fields, str(folders[3]))
    config = {"lr": 1e-3, "width": 6, "optimizer": "sgd", "momentum": 0.9}
    trial = local_trial(config, inputs={"data": data}, epochs=2, directory=tmp_path / "trial", batch_size=8)
    template.train(trial)
    assert len(trial.history) == 2
    best = {"config": config, "checkpoint": trial.history[-1].checkpoint.path}
    assert template.evaluate(best, data)["network"] > 0


@pytest.mark.parametrize("template", ["am"], indirect=True)
def test_the_am_template_reads_speed_and_power_off_unseen_objects(
    template: ModuleType, tmp_path: Path
) -> None:
    from workflows.am_meltpool.dataset import write_index
    from workflows.am_meltpool.render import render
    from workflows.am_meltpool.simulate import simulate

    fields = [simulate(speed, str(tmp_path)) for speed in (400, 600, 900, 1500)]
    films = [render(fields, n, str(tmp_path), layers=1, lines=24, rotation_deg=0.0) for n in (27, 28, 30, 31)]
    data = write_index(films, str(tmp_path))
    config = {"lr": 5e-3, "weight_decay": 1e-4, "width": 4, "kernel_frames": 3}
    trial = local_trial(config, inputs={"data": data}, epochs=6, directory=tmp_path / "trial", batch_size=4)
    template.train(trial)
    losses = [report.metrics["val_loss"] for report in trial.history]
    assert len(losses) == 6
    assert min(losses) < data["mean_mse"]["validation"]
    best = {"config": config, "checkpoint": trial.history[-1].checkpoint.path}
    found = template.evaluate(best, data)
    assert set(found) == {"speed_mm_s", "power_w", "error_over_mean"}
    assert found["error_over_mean"] < 1, "better than always guessing the mean"


@pytest.mark.parametrize("template", ["cv"], indirect=True)
@pytest.mark.parametrize("optimizer", [{"optimizer": "adamw"}, {"optimizer": "sgd", "momentum": 0.9}])
def test_the_cv_template_tells_classes_of_unseen_images(
    template: ModuleType, tmp_path: Path, optimizer: dict[str, object]
) -> None:
    data = template.draw(960, 16, 0.3, str(tmp_path))
    config = {"lr": 1e-2, "weight_decay": 1e-4, "width": 8, "activation": "relu", "flips": True, **optimizer}
    trial = local_trial(config, inputs={"data": data}, epochs=4, directory=tmp_path / "trial", batch_size=32)
    template.train(trial)
    accuracies = [report.metrics["val_accuracy"] for report in trial.history]
    assert accuracies[-1] > 0.4, "four classes: a guess is right in a quarter"
    best = {"config": config, "checkpoint": trial.history[-1].checkpoint.path}
    found = template.evaluate(best, data)
    assert set(found) == {"accuracy", "disc", "ring", "plus", "cross"}
    assert found["accuracy"] > 0.4


@pytest.mark.parametrize("template", ["cv"], indirect=True)
def test_no_image_of_the_cv_template_is_in_two_splits(template: ModuleType, tmp_path: Path) -> None:
    data = template.draw(60, 8, 0.3, str(tmp_path))
    splits = [template.split_of(data, name)[0] for name in ("train", "validation", "test")]
    assert [len(images) for images in splits] == [40, 10, 10]
    assert len({image.numpy().tobytes() for images in splits for image in images}) == 60
