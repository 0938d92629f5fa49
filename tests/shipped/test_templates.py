"""What `init` copies: studies that work where they are put, and that shadow nothing."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import pytest

from parsl_rasda.cli.init import Template, copy_template
from parsl_rasda.runtime import local_trial
from parsl_rasda.search.space import SearchSpace
from parsl_rasda.study import load_site, load_study
from tests.workflow_folder import WORKFLOWS, workflow_folder

FOLDERS = sorted(folder.name for folder in WORKFLOWS.iterdir() if folder.is_dir())


def test_every_workflow_is_a_template(tmp_path: Path) -> None:
    copied = {tuple(f.name for f in copy_template(each, tmp_path / each)) for each in Template}
    there = {(*sorted(f.name for f in (WORKFLOWS / name).iterdir() if f.is_file()),) for name in FOLDERS}
    assert copied == {names if "site.yaml" in names else (*names, "site.yaml") for names in there}


@pytest.mark.parametrize("template", Template)
def test_a_copy_is_a_good_study_with_a_good_site(
    template: Template, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_template(template, tmp_path)
    monkeypatch.chdir("/")
    study = load_study(tmp_path / "study.yaml", environment={})
    load_site(tmp_path / "site.yaml", environment={})
    for stage in study.tune_stages.values():
        space = stage.tune.search_space
        assert SearchSpace.from_mapping(space).parameters.keys() == space.keys()


def test_the_cluster_in_the_comments_of_the_site_is_a_good_one(tmp_path: Path) -> None:
    _, _, cluster = (WORKFLOWS / "site.yaml").read_text().partition("# A cluster with Slurm instead:\n")
    (tmp_path / "slurm.yaml").write_text("\n".join(line.removeprefix("# ") for line in cluster.splitlines()))
    site = load_site(tmp_path / "slurm.yaml", environment={"SLURM_ACCOUNT": "x", "SCRATCH": "/scratch"})
    assert site.slots == 16


@pytest.mark.parametrize("name", FOLDERS)
def test_no_module_of_a_workflow_hides_one_that_is_installed(name: str) -> None:
    """They come first on the path of workers and ranks, under plain names."""
    installed = {*sys.stdlib_module_names, *importlib.metadata.packages_distributions()}
    assert installed.isdisjoint(file.stem for file in (WORKFLOWS / name).glob("*.py"))


@pytest.mark.parametrize("module", ["simulate.py", "turbulence.py"])
def test_both_studies_of_flows_have_the_same_turbulence(module: str) -> None:
    first, second = (WORKFLOWS / name / module for name in ("cfd_defiltering", "cfd_autoencoder"))
    assert first.read_text() == second.read_text()


def test_the_minimal_study_learns(tmp_path: Path) -> None:
    with workflow_folder("minimal") as folder:
        from train import train
    stage = load_study(folder / "study.yaml").tune_stages["tune"]
    config = {"lr": 0.02, "width": 32, "optimizer": "adamw"}
    settings = stage.tune.training.resolve(config)
    trial = local_trial(config, epochs=4, directory=tmp_path, batch_size=settings.batch_size)
    train(trial)
    losses = [report.metrics["val_loss"] for report in trial.history]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    assert losses[-1] < 0.05, "the variance of the data is about 0.25"
