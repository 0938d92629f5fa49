"""What is refused before anything starts."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parsl_rasda.errors import InvalidFileError, InvalidSettingError, PlacementImpossibleError
from parsl_rasda.orchestration.admission import (
    AdmittedStudy,
    PilotShape,
    admit,
    check_fit,
    check_searchers,
    misfit,
    tune_problems,
    widths_needed,
)
from parsl_rasda.orchestration.assembly import build_machine
from parsl_rasda.placement.ledger import Ledger
from parsl_rasda.study import ParslSiteSpec, StudySpec, TuneSpec, load_study
from parsl_rasda.types import NodeName, NodeSlots, PilotId, SiteName


def tune(**scheduler: Any) -> dict[str, Any]:
    return {
        "metric": "loss",
        "num_samples": 4,
        "scheduler": {"max_t": 8, **scheduler},
        "search_space": {"lr": {"float": [0.1, 1.0]}},
        "training": {"python": "module:function"},
    }


def study(**scheduler: Any) -> StudySpec:
    return StudySpec.model_validate({"name": "s", "tune": tune(**scheduler)})


def site(name: str = "quad", nodes: int = 1, gpus: int | str = 4) -> ParslSiteSpec:
    provider = {"type": "SlurmProvider"}
    return ParslSiteSpec.model_validate(
        {"name": name, "provider": provider, "nodes": nodes, "gpus_per_node": gpus}
    )


# ------------------------------------------------------------------------------------------ sizes


@pytest.mark.parametrize(
    ("scheduler", "shape", "words"),
    [
        ({"num_workers": 8}, (1, 4), ("needs 8 GPUs", "has 4 (1 node of 4)", "num_workers` to 4")),
        ({"num_workers": 3}, (2, 2), ("needs 3 GPUs", "has 4 (2 nodes of 2)", "num_workers` to 2")),
        (
            {"growth": "strict", "max_workers": 8},
            (1, 4),
            ("needs 8 GPUs", "`tune.scheduler.max_workers` to 4", "`tune.scheduler.growth` to elastic"),
        ),
        (
            {"growth": "strict", "num_workers": 3, "max_workers": 12},
            (2, 4),
            ("needs 12 GPUs", "has 8 (2 nodes of 4)", "`tune.scheduler.max_workers` to 6"),
        ),
        ({"growth": "strict"}, (1, 4), ("needs 8 GPUs", "`tune.scheduler.max_workers` to 4")),
    ],
)  # fmt: skip
def test_what_can_never_fit_is_refused_with_what_to_change(scheduler, shape, words) -> None:
    with pytest.raises(PlacementImpossibleError) as refused:
        check_fit(study(**scheduler), [site(nodes=shape[0], gpus=shape[1])], {})
    for part in words:
        assert part in str(refused.value)
    assert str(pickle.loads(pickle.dumps(refused.value))) == str(refused.value)


@pytest.mark.parametrize(
    ("scheduler", "shape"),
    [
        ({"num_workers": 4, "max_workers": 64}, (1, 4)),  # elastic: replicas need no GPU each
        ({"num_workers": 6}, (2, 4)),  # three on each of two nodes
        ({"num_workers": 3}, (1, 4)),
        ({"growth": "strict", "max_workers": 8}, (2, 4)),
        ({"kind": "asha", "growth": "none", "num_workers": 4}, (1, 4)),
    ],
)
def test_what_fits_passes(scheduler, shape) -> None:
    check_fit(study(**scheduler), [site(nodes=shape[0], gpus=shape[1])], {})


def test_one_large_site_is_enough_and_a_site_that_nobody_knows_may_be_large() -> None:
    wide = study(num_workers=8)
    check_fit(wide, [site(), site("large", gpus=8)], {})
    check_fit(wide, [site(), site("far", gpus="auto")], {})
    check_fit(wide, [], {})
    with pytest.raises(PlacementImpossibleError):
        check_fit(wide, [site(), site("far", gpus="auto")], {"far": 4})


def test_a_search_bound_to_a_site_must_fit_there_and_is_named_among_several() -> None:
    stages = {"first": {"tune": tune()}, "second": {"site": "quad", "tune": tune(num_workers=8)}}
    several = StudySpec.model_validate({"name": "s", "stages": stages})
    with pytest.raises(PlacementImpossibleError, match=r"`stages\.second\.tune\.scheduler\.num_workers`"):
        check_fit(several, [site("large", gpus=8), site()], {})


@given(
    growth=st.sampled_from(["elastic", "strict", "none"]),
    workers=st.integers(1, 9),
    shapes=st.lists(st.builds(PilotShape, st.integers(1, 5), st.integers(1, 8)), min_size=1, max_size=3),
)
def test_a_study_is_refused_exactly_if_an_empty_ledger_lacks_a_place_for_some_rung(
    growth, workers, shapes
) -> None:
    machine = build_machine(TuneSpec.model_validate(tune(growth=growth, num_workers=workers)))
    ledger = Ledger()
    for number, shape in enumerate(shapes):
        nodes = [NodeSlots(NodeName(str(i)), tuple(range(shape.gpus_per_node))) for i in range(shape.nodes)]
        ledger.add_pilot(PilotId(str(number)), SiteName("s"), nodes)
    places = [ledger.find(width) for width in widths_needed(machine)]
    assert (misfit(machine, shapes, "tune.scheduler") is None) == all(places)


# --------------------------------------------------------------------------------------- settings

STUDY = """\
name: s
seed: 1
stages:
  first:
    tune:
      metric: loss
      num_samples: 4
      scheduler: {max_t: 8}
      searcher:
        kind: tpe
        foo: 3
        n_startup_trial: 4
      search_space: {lr: {float: [0.1, 1]}}
      training: {command: [true_]}
  second:
    tune:
      metric: loss
      num_samples: 4
      scheduler: {max_t: 8, max_tt: 9}
      searcher:
        kind: grid
        levels: 0
      search_space: {lr: {float: [2, 1]}}
      training: {command: [true_], batch_size: lr}
"""


def mistakes(folder: Path, text: str, *overrides: str) -> dict[tuple[int, str], str]:
    file = folder / "study.yaml"
    file.write_text(text)
    with pytest.raises(InvalidFileError) as error:
        load_study(file, overrides, check_tune=tune_problems)
    return {(m.line, m.key): f"{m.found}; {m.allowed}" for m in error.value.mistakes}


def test_every_wrong_option_of_every_searcher_comes_at_once_with_its_line(tmp_path: Path) -> None:
    found = mistakes(tmp_path, STUDY)
    block = "stages.first.tune.searcher"
    assert found[11, f"{block}.foo"].startswith("3; the options of tpe: ")
    assert "did you mean n_startup_trials?" in found[12, f"{block}.n_startup_trial"]
    assert found[22, "stages.second.tune.searcher.levels"] == "0; greater than or equal to 1"
    assert (19, "stages.second.tune.scheduler.max_tt") in found, "what the spec finds stands beside it"
    assert any("search_space.lr" in key for _, key in found)


def test_in_the_short_form_and_on_the_command_line_a_mistake_has_the_key_that_was_written(
    tmp_path: Path,
) -> None:
    short = (
        "name: s\ntune:\n  metric: m\n  num_samples: 2\n  scheduler: {max_t: 2}\n"
        "  searcher: {kind: list, configs: 3}\n  search_space: {x: 1}\n  training: {command: [a]}\n"
    )
    assert mistakes(tmp_path, short) == {(6, "tune.searcher.configs"): "3; a list"}
    override = "tune.searcher={kind: sobol, scramblee: true}"
    assert list(mistakes(tmp_path, short, override)) == [(0, "tune.searcher.scramblee")]


def test_what_a_sampler_itself_refuses_is_a_mistake_of_its_block(tmp_path: Path) -> None:
    text = STUDY[: STUDY.index("  second")].replace("kind: tpe", "kind: cmaes")
    text = text.replace("foo: 3", "lr_adapt: true").replace("n_startup_trial: 4", "use_separable_cma: true")
    ((place, words),) = mistakes(tmp_path, text).items()
    assert place == (9, "stages.first.tune.searcher")
    assert "CmaEsSampler" in words


def test_a_good_study_has_no_such_problems() -> None:
    assert not list(tune_problems(tune()))
    assert not list(tune_problems({"tune": 3}))


def test_what_is_admitted_is_the_study_and_its_sites() -> None:
    here, there = site(), site("large", gpus=8)
    assert admit(study(num_workers=8), [here, there], {}) == AdmittedStudy(
        study(num_workers=8), (here, there)
    )
    with pytest.raises(PlacementImpossibleError):
        admit(study(num_workers=8), [here], {})
    with pytest.raises(InvalidSettingError, match="'quad, quad'; allowed: sites with different names"):
        admit(study(), [here, here], {})


def test_a_study_declared_in_code_is_checked_too() -> None:
    wrong = StudySpec.model_validate({"name": "s", "tune": {**tune(), "searcher": {"kind": "tpe", "foo": 3}}})
    with pytest.raises(InvalidSettingError, match=r"searcher\.foo"):
        check_searchers(wrong)
