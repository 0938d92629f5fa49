from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import parsl_rasda.study
from parsl_rasda.runtime import local_trial
from parsl_rasda.search.space import SearchSpace
from parsl_rasda.study import load_site, load_study

TEMPLATES = Path(parsl_rasda.study.__file__).parent / "templates"


@pytest.mark.parametrize("name", ["minimal", "cfd"])
def test_a_template_is_a_good_study_with_a_good_site(name: str) -> None:
    study = load_study(TEMPLATES / name / "study.yaml", environment={})
    load_site(TEMPLATES / name / "site.yaml", environment={})
    (stage,) = study.tune_stages.values()
    assert (
        SearchSpace.from_mapping(stage.tune.search_space).parameters.keys() == stage.tune.search_space.keys()
    )


@pytest.mark.parametrize("name", ["minimal", "cfd"])
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
    best = {"config": config, "checkpoint": trial.history[-1].checkpoint}
    assert template.evaluate(best, data)["network"] > 0
