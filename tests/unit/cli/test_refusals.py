"""What the command line refuses before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from parsl_rasda.cli.plan import plan
from parsl_rasda.cli.run import run
from parsl_rasda.cli.validate import validate
from parsl_rasda.errors import InvalidFileError, InvalidSettingError, PlacementImpossibleError

STUDY = """
name: small
tune:
  metric: val_loss
  num_samples: 8
  scheduler: {max_t: 8, max_workers: 4}
  search_space: {lr: {float: [0.001, 0.1]}}
  training: {python: workflows.emulated.train:train}
"""
SITE = "provider: {type: LocalProvider}\naccelerator: none\nmpi_launcher: process\ngpus_per_node: 4\n"


@pytest.fixture
def study(tmp_path: Path) -> Path:
    file = tmp_path / "study.yaml"
    file.write_text(STUDY)
    return file


@pytest.fixture
def site(tmp_path: Path) -> str:
    file = tmp_path / "quad.yaml"
    file.write_text(SITE)
    return str(file)


WIDE = ["tune.scheduler.num_workers=8", "tune.scheduler.max_workers=8"]
STRICT = ["tune.scheduler.growth=strict", "tune.scheduler.max_workers=8"]


@pytest.mark.parametrize("command", [plan, validate, run])
@pytest.mark.parametrize("overrides", [WIDE, STRICT])
def test_what_can_never_fit_is_refused_at_once(study, site, tmp_path, command, overrides) -> None:
    more = {"directory": tmp_path / "out"} if command is run else {}
    with pytest.raises(PlacementImpossibleError, match="needs 8 GPUs at once"):
        command(study, [site], overrides=overrides, **more)
    assert not (tmp_path / "out").exists()


def test_plan_refuses_what_does_not_fit_the_gpus_that_a_run_found(study, finished, tmp_path) -> None:
    far = tmp_path / "virtual.yaml"
    far.write_text("provider: {type: SlurmProvider}\n")
    with pytest.raises(PlacementImpossibleError, match="needs 8 GPUs at once"):
        plan(study, [str(far)], finished, overrides=WIDE)


def test_a_stage_on_a_site_that_is_not_there_is_found_before_the_run(study, site) -> None:
    study.write_text(STUDY + "site: elsewhere\n")
    with pytest.raises(InvalidFileError, match=r"study\.yaml:9: site: .* one of the sites given: quad"):
        validate(study, [site])


@pytest.mark.parametrize("command", [plan, validate, run])
def test_inputs_that_no_site_has_together_are_found_before_the_run(study, site, tmp_path, command) -> None:
    (tmp_path / "other.yaml").write_text(SITE)
    study.write_text(STUDY + "with:\n  data: {quad: /q}\n  labels: {other: /o}\n")
    more = {"directory": tmp_path / "out"} if command is run else {}
    words = r"study\.yaml:11: with\.labels: found other, but `data` is given for quad only"
    with pytest.raises(InvalidFileError, match=words):
        command(study, [site, str(tmp_path / "other.yaml")], **more)
    assert not (tmp_path / "out").exists()


def test_plan_tells_which_site_has_no_trial_and_why(study, site, tmp_path, capsys) -> None:
    (tmp_path / "other.yaml").write_text(SITE)
    study.write_text(STUDY + "with: {data: {quad: /q}}\n")
    plan(study, [site, str(tmp_path / "other.yaml")])
    words = " ".join(capsys.readouterr().out.split())
    assert "8 trials on 4 GPUs, 1 node: quad" in words
    assert "Search tune runs no trial on other: `data` is given for quad only." in words


def test_plan_says_that_this_machine_has_no_gpu(study, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("parsl_rasda.agent.node_probe.gpu_count", lambda accelerator: 0)
    here = tmp_path / "here.yaml"
    here.write_text("provider: {type: LocalProvider}\n")
    with pytest.raises(InvalidSettingError, match="this machine shows no cuda device"):
        plan(study, [str(here)])


def test_a_searcher_with_a_wrong_option_is_found_before_the_run(study) -> None:
    study.write_text(STUDY + "  searcher: {kind: sobol, scramblee: true}\n")
    with pytest.raises(InvalidFileError) as error:
        validate(study, ["nowhere"])
    text = str(error.value)
    assert (
        f"{study}:9: tune.searcher.scramblee: found an unknown key; "
        "allowed: kind, warm_start, first, learn_from, scramble" in text
    )
    assert "no site of that name" in text
