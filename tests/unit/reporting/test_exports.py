"""Other tools open what is exported, and find in it what the run's own summary says."""

from __future__ import annotations

import csv
import math
import warnings
from pathlib import Path

import optuna
import pytest

from parsl_rasda.errors import InvalidSettingError
from parsl_rasda.reporting.exports import to_csv, to_mlflow, to_optuna
from parsl_rasda.reporting.runs import read_run
from parsl_rasda.search import SearchSpace, build_searcher
from parsl_rasda.types import TrialId

SPACE = {
    "lr": {"float": [0.001, 0.1], "log": True},
    "optimizer": {"choice": ["sgd", "adamw"]},
    "width": {"int": [16, 64], "step": 16},
    "momentum": {"float": [0.0, 0.9], "step": 0.3, "when": {"optimizer": "sgd"}},
    "layers": {"choice": [[8], [8, 8]]},
    "nesterov": True,
}


def opened(file: Path) -> optuna.Study:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of SQLAlchemy, about Optuna
        return optuna.load_study(study_name=None, storage=f"sqlite:///{file}")


def test_optuna_finds_every_trial_with_its_epochs_and_its_fate(finished: Path) -> None:
    (file,) = to_optuna(read_run(finished))
    summary = read_run(finished).document()
    study = opened(file)
    assert study.metric_names == ["val_loss"]
    assert study.best_value == summary["best"]["metric"]
    assert study.best_params == summary["best"]["config"]
    for found, trial in zip(study.trials, summary["trial_list"], strict=True):
        states = {"completed": "COMPLETE", "stopped": "PRUNED", "failed": "FAIL"}
        assert found.state.name == states[trial["state"]]
        assert found.params == trial["config"]
        assert found.user_attrs["trial"] == trial["trial"]
        for epoch, metric in trial["history"]:
            kept = found.intermediate_values[epoch]
            assert math.isnan(kept) if metric is None else kept == metric


def test_optuna_gets_the_whole_search_space(rehearsals, tmp_path: Path) -> None:
    searcher = build_searcher({"kind": "random"}, SearchSpace.from_mapping(SPACE), mode="min", seed=1)
    rehearsals.into(
        tmp_path,
        rehearsals.study_of(search_space=SPACE),
        config_of=lambda trial: searcher.propose(TrialId(str(trial))),
    )
    run = read_run(tmp_path)
    (file,) = to_optuna(run)
    study = opened(file)
    names = {name for trial in study.trials for name in trial.distributions}
    assert names == {"lr", "optimizer", "width", "momentum", "layers"}
    for found, trial in zip(study.trials, run.document()["trial_list"], strict=True):
        assert ("momentum" in found.params) == (found.params["optimizer"] == "sgd")
        assert found.user_attrs["config"] == trial["config"], "constants and lists are kept as they were"


def test_a_run_that_goes_on_is_exported_as_it_stands_and_again(rehearsals, tmp_path: Path) -> None:
    rehearsals.into(tmp_path, rehearsals.study_of(), torn_after=40.0)
    for _ in range(2):
        (file,) = to_optuna(read_run(tmp_path))
    states = {trial.state.name for trial in opened(file).trials}
    assert "RUNNING" in states
    assert [f.name for f in tmp_path.glob("optuna*")] == ["optuna.db"]


def test_configurations_of_another_space_are_kept_as_attributes(finished: Path) -> None:
    text = (finished / "study.yaml").read_text().replace("- adamw", "- lion")
    (finished / "study.yaml").write_text(text)
    (file,) = to_optuna(read_run(finished))
    other = [t for t in opened(file).trials if t.user_attrs["config"]["optimizer"] == "adamw"]
    assert other
    assert all(not t.params for t in other)


@pytest.mark.slow
def test_mlflow_finds_a_run_for_each_trial(finished: Path) -> None:
    mlflow = pytest.importorskip("mlflow.tracking")
    (file,) = to_mlflow(read_run(finished))
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{file}")
    experiment = client.get_experiment_by_name("rehearsed")
    runs = {r.data.tags["trial"]: r for r in client.search_runs([experiment.experiment_id])}
    summary = read_run(finished).document()
    assert set(runs) == {t["trial"] for t in summary["trial_list"]}
    ends = {"completed": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
    for trial in summary["trial_list"]:
        found = runs[trial["trial"]]
        assert found.info.status == ends[trial["state"]]
        assert found.data.params == {k: str(v) for k, v in trial["config"].items()}
        history = client.get_metric_history(found.info.run_id, "val_loss")
        assert [m.step for m in history] == [epoch for epoch, _ in trial["history"]]


def test_without_mlflow_one_sentence_says_how_to_get_it(finished: Path, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "mlflow.tracking", None)
    with pytest.raises(InvalidSettingError, match=r"pip install 'parsl_rasda\[mlflow\]'"):
        to_mlflow(read_run(finished))
    assert not list(finished.glob("mlflow*"))


def test_csv_has_a_row_for_each_trial(finished: Path) -> None:
    (file,) = to_csv(read_run(finished))
    with file.open() as text:
        assert len(list(csv.DictReader(text))) == 8
