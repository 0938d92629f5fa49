"""A run that could never end well starts nothing: no stage, no pilot, no directory."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from parsl_rasda.errors import (
    InvalidFileError,
    InvalidSettingError,
    PlacementImpossibleError,
    RasdaError,
)
from parsl_rasda.orchestration.admission import admit
from parsl_rasda.orchestration.progress import NoProgress
from parsl_rasda.orchestration.replay import load_run, save_run, search_path_of
from parsl_rasda.orchestration.run_directory import RunDirectory
from parsl_rasda.study import ParslSiteSpec, StudySpec, dump_site, load_study
from parsl_rasda.workflow.entry import check_amendment, resume_study, run_study

SITE = ParslSiteSpec.model_validate(
    {"name": "quad", "provider": {"type": "LocalProvider"}, "accelerator": "none", "gpus_per_node": 4}
)


def study(**changes: Any) -> StudySpec:
    tune = {
        "metric": "loss",
        "num_samples": 4,
        "scheduler": {"max_t": 8},
        "search_space": {"lr": {"float": [0.1, 1.0]}},
        "training": {"python": "module:function"},
    } | changes
    stages = {"before": {"command": ["touch", "../../../../called"]}, "tune": {"tune": tune}}
    return StudySpec.model_validate({"name": "s", "stages": stages})


WIDE = study(scheduler={"max_t": 8, "num_workers": 8})
STRICT = study(scheduler={"max_t": 8, "growth": "strict", "max_workers": 8})
ODD = study(scheduler={"max_t": 8, "num_workers": 5})


@pytest.mark.parametrize("wrong", [WIDE, STRICT, ODD])
def test_a_trial_that_can_never_fit_is_refused_before_the_stage_ahead_of_it(
    tmp_path: Path, wrong: StudySpec
) -> None:
    with pytest.raises(PlacementImpossibleError):
        run_study(admit(wrong, [SITE], {}), tmp_path / "out", search_path=(), progress=NoProgress())
    assert not list(tmp_path.iterdir())


def test_so_it_is_when_a_run_is_taken_up_again(tmp_path: Path) -> None:
    save_run(RunDirectory(tmp_path / "out"), STRICT, [SITE])
    before = set(tmp_path.rglob("*"))
    with pytest.raises(PlacementImpossibleError):
        resume_study(tmp_path / "out", (), progress=NoProgress())
    assert set(tmp_path.rglob("*")) == before


def test_a_searcher_of_a_study_in_code_is_refused_before_the_stage_ahead_of_it(tmp_path: Path) -> None:
    wrong = study(searcher={"kind": "tpe", "foo": 3})
    with pytest.raises(InvalidSettingError, match=r"searcher\.foo"):
        run_study(admit(wrong, [SITE], {}), tmp_path / "out", search_path=(), progress=NoProgress())
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------- other settings on resume


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["tune.metric=foo"],
            ["tune.metric: found 'foo'; allowed: 'loss', as the run has it: only tune.num"],
        ),
        (["tune.num_samples=3"], ["tune.num_samples: found 3; allowed: at least 4, which the run has"]),
        (
            ["seed=9", "tune.scheduler.max_t=4", "tune.num_samples=8"],
            ["--set: seed: found 9; allowed: 0", "tune.scheduler.max_t: found 4; allowed: at least 8"],
        ),
        (
            ["tune.scheduler.max_t={auto: 16}"],
            ["tune.scheduler.max_t: found {auto: 16}; allowed: a number, as the run has it"],
        ),
        (
            ["tune.scheduler.early=curve"],
            ["tune.scheduler.early: found 'curve'; allowed: 'none', as the run has it"],
        ),
        (["stages.tune={command: x}"], ["--set: tune: found nothing", "stages.tune.command: found "]),
        (["stages.before.site=quad"], ["stages.before.site: found 'quad'; allowed: nothing"]),
    ],
)
def test_every_setting_that_may_not_change_is_named(
    tmp_path: Path, overrides: list[str], words: list[str]
) -> None:
    save_run(RunDirectory(tmp_path), study(), [SITE])
    with pytest.raises(InvalidFileError) as error:
        resume_study(tmp_path, overrides, progress=NoProgress())
    for part in words:
        assert part in str(error.value)
    assert "num_samples: found 8" not in str(error.value)


def test_a_run_keeps_its_sites_and_where_its_functions_are(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "out")
    save_run(directory, study(), [SITE], [tmp_path / "mine"])
    assert load_run(directory)[1] == (SITE,)
    assert search_path_of(directory) == [str(tmp_path / "mine")]


def test_sites_are_replaced_all_or_none(tmp_path: Path) -> None:
    run, wide = RunDirectory(tmp_path / "out"), scheduled(num_workers=4)
    save_run(run, wide, [SITE])
    run.journal.write_text("{}", encoding="utf-8")  # so it ends before anything runs
    small = SITE.model_copy(update={"name": "small", "gpus_per_node": 2})
    large = SITE.model_copy(update={"name": "large", "gpus_per_node": 8})
    for site in (small, large):
        (tmp_path / f"{site.name}.yaml").write_text(dump_site(site), encoding="utf-8")
    for names, error in (
        (["small"], PlacementImpossibleError),
        (["large", "small.yml"], InvalidFileError),
        (["large", "large"], InvalidSettingError),
    ):
        with pytest.raises(error):
            resume_study(
                run.path, (), progress=NoProgress(), sites=[str(tmp_path / f"{name}.yaml") for name in names]
            )
        assert load_run(run)[1] == (SITE,)
    with pytest.raises(RasdaError):
        resume_study(run.path, (), progress=NoProgress(), sites=[str(tmp_path / "large.yaml")])
    assert [site.name for site in load_run(run)[1]] == ["large"]


def test_a_constant_that_is_not_a_number_is_no_change(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "out")
    save_run(directory, study(search_space={"lr": {"float": [0.1, 1.0]}, "fill": math.nan}), [SITE])
    was, wanted = (
        load_run(directory)[0],
        load_study(directory.study_file, ["tune.num_samples=8"], check_targets=False),
    )
    check_amendment(was, wanted)
    other = load_study(directory.study_file, ["tune.search_space.fill=0.5"], check_targets=False)
    with pytest.raises(InvalidFileError, match=r"fill: found 0\.5; allowed: nan, as the run has it"):
        check_amendment(was, other)


def scheduled(**scheduler: Any) -> StudySpec:
    return study(scheduler={"max_t": 8, **scheduler})


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ({"max_workers": 4}, {"max_workers": 2}, "max_workers: found 2; allowed: at least 4, which the run"),
        ({}, {"max_workers": 2}, "max_workers: found 2; allowed: no limit, as the run has it"),
        ({"batch": "constant"}, {"batch": "constant", "max_t": 16}, "allowed: 8: `batch: constant` has cut"),
        ({}, {"reduction_factor": 3}, "found 3; allowed: 2, as the run has it: only tune.num_samples, tune."),
    ],
)
def test_a_method_that_nobody_can_go_on_by_is_refused(
    before: dict[str, Any], after: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidFileError) as error:
        check_amendment(scheduled(**before), scheduled(**after))
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"max_workers": 2}, {"max_t": 16, "max_workers": 4, "growth": "strict"}),
        ({"max_workers": 2}, {"max_workers": None}),
        ({"batch": "constant", "max_workers": 4}, {"batch": "constant", "max_workers": 4, "max_t": 16}),
    ],
)
def test_a_longer_or_wider_method_is_let_in(before: dict[str, Any], after: dict[str, Any]) -> None:
    check_amendment(scheduled(**before), scheduled(**after))


def test_the_first_method_is_kept_before_another_one_is_declared(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "out")
    save_run(run, scheduled(growth="strict", max_workers=4), [SITE])
    run.journal.write_text("{}", encoding="utf-8")  # so it ends before anything runs
    with pytest.raises(RasdaError):
        resume_study(run.path, ["tune.scheduler.max_t=16"], progress=NoProgress())
    assert load_run(run)[0].tune_stages["tune"].tune.scheduler.max_t == 16
    assert json.loads(run.first_method.read_text(encoding="utf-8"))["max_t"] == 8


def test_a_larger_synchronous_study_is_let_in() -> None:
    method = {"max_t": 8, "variant": "synchronous"}
    check_amendment(study(scheduler=method), study(scheduler=method, num_samples=9))
