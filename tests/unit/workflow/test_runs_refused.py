"""A run that could never end well starts nothing: no stage, no pilot, no directory."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from parsl_rasda.errors import InvalidFileError, InvalidSettingError, PlacementImpossibleError
from parsl_rasda.orchestration.admission import admit
from parsl_rasda.orchestration.progress import NoProgress
from parsl_rasda.orchestration.replay import load_run, save_run, search_path_of
from parsl_rasda.orchestration.run_directory import RunDirectory
from parsl_rasda.study import ParslSiteSpec, StudySpec, load_study
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
        (["tune.num_samples=3"], ["tune.num_samples: found 3; allowed: at least 4, the number the run has"]),
        (
            ["seed=9", "tune.scheduler.max_t=16", "tune.num_samples=8"],
            ["--set: seed: found 9; allowed: 0", "--set: tune.scheduler.max_t: found 16; allowed: 8"],
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


def test_a_larger_synchronous_study_is_let_in() -> None:
    method = {"max_t": 8, "variant": "synchronous"}
    check_amendment(study(scheduler=method), study(scheduler=method, num_samples=9))
