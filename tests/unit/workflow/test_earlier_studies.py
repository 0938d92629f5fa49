"""What earlier studies found is tried first, whatever it is read from, and kept with the run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from parsl_rasda import Study
from parsl_rasda.errors import InvalidFileError
from parsl_rasda.reporting.exports import to_csv, to_optuna
from parsl_rasda.reporting.runs import read_run
from parsl_rasda.search import SearchSpace, build_searcher
from parsl_rasda.study import dump_study, load_study
from parsl_rasda.types import TrialId
from parsl_rasda.workflow.earlier_studies import BEST, learn

SPACE = {
    "lr": {"float": [0.001, 0.1], "log": True},
    "optimizer": {"choice": ["sgd", "adamw", "1"]},
    "width": {"int": [16, 64], "step": 16},
    "momentum": {"float": [0.0, 0.9], "step": 0.3, "when": {"optimizer": "sgd"}},
    "layers": {"choice": [[8], [8, 8]]},
    "nesterov": {"choice": [True, False]},
}
READERS: dict[str, Callable[[Path], Path]] = {
    "run": lambda run: run,
    "table": lambda run: to_csv(read_run(run))[0],
    "storage": lambda run: to_optuna(read_run(run))[0],
}


@pytest.fixture
def earlier(rehearsals, tmp_path: Path) -> Path:
    searcher = build_searcher({"kind": "random"}, SearchSpace.from_mapping(SPACE), mode="min", seed=1)
    rehearsals.into(
        tmp_path / "earlier",
        rehearsals.study_of(search_space=SPACE, num_samples=12),
        config_of=lambda trial: searcher.propose(TrialId(str(trial))),
    )
    return tmp_path / "earlier"


def best_of(run: Path) -> list[dict[str, Any]]:
    trials = [t for t in read_run(run).document()["trial_list"] if t["metric"] is not None]
    return [t["config"] for t in sorted(trials, key=lambda t: (-t["epoch"], t["metric"]))][:BEST]


@pytest.mark.parametrize("kind", READERS)
def test_the_best_are_tried_first_whatever_they_are_read_from(rehearsals, earlier, kind) -> None:
    source = str(READERS[kind](earlier))
    study = rehearsals.study_of(search_space=SPACE, searcher={"kind": "tpe", "learn_from": [source]})
    learnt = learn(study, Path())
    assert not learnt.problems
    assert list(learnt.study.tune_stages["tune"].tune.searcher.first) == best_of(earlier)
    assert learnt.sentences == (f"{source}: 12 trials, the best 3 are tried first",)


def test_several_sources_and_what_was_written_come_in_order_and_once(rehearsals, earlier) -> None:
    own = {"lr": 0.05}
    searcher = {"first": [own], "learn_from": ["earlier", "earlier/results.csv"]}
    to_csv(read_run(earlier))
    learnt = learn(rehearsals.study_of(search_space=SPACE, searcher=searcher), earlier.parent)
    assert list(learnt.study.tune_stages["tune"].tune.searcher.first) == [own, *best_of(earlier)]


def test_values_that_are_not_searched_here_are_left_out_and_told(rehearsals, earlier) -> None:
    space = {"lr": {"float": [0.2, 0.3]}, "width": {"int": [1, 100]}, "depth": {"int": [1, 3]}}
    study = rehearsals.study_of(search_space=space, searcher={"learn_from": ["earlier"]})
    learnt = learn(study, earlier.parent)
    found = learnt.study.tune_stages["tune"].tune.searcher.first
    assert found, "the width is"
    assert all(set(config) == {"width"} for config in found)
    assert learnt.sentences[0].endswith("it does not have all values of lr, depth")


@pytest.mark.parametrize(
    ("source", "changes", "words"),
    [
        ("earlier", {"mode": "max"}, "judged by val_loss (min)"),
        ("earlier", {"metric": "error"}, "judged by val_loss (min)"),
        ("earlier/optuna.db", {"metric": "error"}, "with the studies rehearsed"),
        ("earlier/optuna.db", {"mode": "max"}, "with the studies rehearsed"),
        ("earlier", {"search_space": {"depth": {"int": [1, 3]}}}, "none of which has a value"),
        ("nowhere", {}, "cannot be read (No such file"),
        ("earlier/study.yaml", {}, "without the columns"),
        ("earlier/sites", {}, "earlier/sites"),
        ("sqlite:///nowhere.db", {}, "where no file is"),
        ("nosuch://host/base", {}, "cannot be read"),
    ],
)
def test_what_nothing_can_be_learnt_from_is_told_at_its_place(
    rehearsals, earlier, source, changes, words
) -> None:
    to_optuna(read_run(earlier))
    study = rehearsals.study_of(
        **{"search_space": SPACE, "searcher": {"learn_from": ["earlier", source]}, **changes}
    )
    problems = learn(study, earlier.parent).problems
    found = problems[-1]
    assert words in found.found
    assert found.loc == ("stages", "tune", "tune", "searcher", "learn_from", 1)
    assert not Path("nowhere.db").exists()


def test_the_run_keeps_what_it_learnt(rehearsals, earlier, tmp_path) -> None:
    study = rehearsals.study_of(search_space=SPACE, searcher={"learn_from": [str(earlier)]})
    learnt = learn(study, Path()).study
    (tmp_path / "copy.yaml").write_text(dump_study(learnt))
    shutil.rmtree(earlier)
    assert load_study(tmp_path / "copy.yaml", check_targets=False, is_copy=True) == learnt


def test_a_program_learns_too(rehearsals, earlier, tmp_path) -> None:
    written = rehearsals.study_of(search_space=SPACE, searcher={"learn_from": [str(earlier)]})
    (tmp_path / "study.yaml").write_text(dump_study(written))
    study = Study.from_yaml(tmp_path / "study.yaml")
    assert list(study.search[1].tune.searcher.first) == best_of(earlier)
    tune = written.tune_stages["tune"].tune.model_dump(mode="json", by_alias=True)
    assert list(Study(tune).search[1].tune.searcher.first) == best_of(earlier)
    tune["searcher"]["learn_from"] = ["nowhere"]
    with pytest.raises(InvalidFileError, match=r"learn_from\.0: found nowhere"):
        Study(tune)
