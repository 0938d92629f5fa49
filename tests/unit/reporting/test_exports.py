"""Other tools open what is exported, and find in it what the run's own summary says."""

from __future__ import annotations

import csv
import math
import warnings
from datetime import datetime
from pathlib import Path

import optuna
import pytest

from parsl_rasda.errors import InvalidSettingError
from parsl_rasda.reporting.exports import export_run, to_csv, to_mlflow, to_optuna
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
    monkeypatch.setitem(__import__("sys").modules, "parsl_rasda.tracking.mlflow", None)
    with pytest.raises(InvalidSettingError, match=r"pip install 'parsl_rasda\[mlflow\]'"):
        to_mlflow(read_run(finished))
    assert not list(finished.glob("mlflow*"))


def test_csv_has_a_row_for_each_trial_and_one_for_each_metric_of_each_epoch(several: Path) -> None:
    results, metrics = to_csv(read_run(several))
    trials = {t["trial"]: t for t in read_run(several).document()["trial_list"]}
    with results.open() as text:
        rows = list(csv.DictReader(text))
    assert {r["trial"] for r in rows} == set(trials)
    for row in rows:
        trial = trials[row["trial"]]
        assert float(row["accuracy"]) == trial["metrics"]["accuracy"] == 1 - 1 / trial["epoch"]
        assert datetime.fromisoformat(row["ended"]).timestamp() == pytest.approx(trial["ended"], abs=1e-3)
    with metrics.open() as text:
        long = list(csv.DictReader(text))
    for trial in trials.values():
        for name, curve in trial["curves"].items():
            found = [r for r in long if (r["trial"], r["metric"]) == (trial["trial"], name)]
            assert [int(r["epoch"]) for r in found] == [epoch for epoch, _ in curve]
            values = [float(r["value"]) for r in found]
            assert [None if math.isnan(v) else v for v in values] == [value for _, value in curve]


@pytest.fixture
def several(rehearsals, tmp_path: Path) -> Path:
    """A run whose trials report two metrics."""
    directory = tmp_path / "several"
    rehearsals.into(directory, rehearsals.study_of(), also={"accuracy": lambda epoch: 1 - 1 / epoch})
    return directory


def test_exports_have_the_times_of_the_run(several: Path) -> None:
    (file,) = to_optuna(read_run(several))
    for found, trial in zip(opened(file).trials, read_run(several).document()["trial_list"], strict=True):
        assert found.datetime_start.timestamp() == pytest.approx(trial["began"])
        assert found.datetime_complete.timestamp() == pytest.approx(trial["ended"])
        assert found.user_attrs["metrics"] == trial["metrics"]


LATENCY = {"metric": "latency", "at_most": 0.3}  # trials of fewer than four epochs break it
TWO = {"metrics": [{"name": "val_loss"}, {"name": "accuracy", "mode": "max"}]}


@pytest.mark.parametrize("limits", [{}, {"constraints": [LATENCY]}])
@pytest.mark.parametrize("metrics", [{}, TWO])
def test_the_best_trials_that_optuna_finds_are_the_front(rehearsals, tmp_path, limits, metrics) -> None:
    judged = {**metrics, **limits} or {"constraints": [{"metric": "latency", "at_most": 1}]}
    study = rehearsals.study_of(**judged, scheduler={"variant": "synchronous"})
    also = {"accuracy": lambda epoch: -float(epoch), "latency": lambda epoch: 1.0 / epoch}
    rehearsals.into(tmp_path, study, also=also)
    run = read_run(tmp_path)
    summary, (file,) = run.document(), to_optuna(run)
    found, front = opened(file), {one["trial"] for one in summary["front"]}
    assert {t.user_attrs["trial"] for t in found.best_trials} == front
    assert [d.name for d in found.directions] == ["MINIMIZE", "MAXIMIZE"][: 2 if metrics else 1]
    assert found.metric_names == ["val_loss", "accuracy"][: 2 if metrics else 1]
    broken = {t.user_attrs["trial"] for t in found.trials if any(v > 0 for v in t.constraints.values())}
    assert bool(broken) == bool(limits)
    with to_csv(run)[0].open() as text:
        rows = list(csv.DictReader(text))
    assert {r["trial"] for r in rows if r["is_front"] == "True"} == front
    assert ("violation" in rows[0]) == ("constraints" in judged)
    if limits:
        assert {r["trial"] for r in rows if float(r["violation"]) > 0} == broken
    assert all(float(r["accuracy"]) == -float(r["epochs"]) for r in rows)


def test_exports_tell_of_brackets(rehearsals, tmp_path: Path) -> None:
    rehearsals.into(tmp_path, rehearsals.study_of(scheduler={"brackets": 2}))
    run = read_run(tmp_path)
    there = {t["trial"]: t["bracket"] for t in run.document()["trial_list"]}
    assert set(there.values()) == {0, 1}
    assert {t.user_attrs["trial"]: t.user_attrs["bracket"] for t in opened(to_optuna(run)[0]).trials} == there
    with to_csv(run)[0].open() as text:
        rows = list(csv.DictReader(text))
    assert {r["trial"]: int(r["bracket"]) for r in rows} == there
    assert not {"is_front", "violation"} & set(rows[0])


def test_to_a_storage_of_others_only_what_is_missing_is_added(rehearsals, tmp_path: Path) -> None:
    url = f"optuna+sqlite:///{tmp_path / 'shared.db'}"
    one, two, torn = (tmp_path / name for name in ("one", "two", "torn"))
    for directory in (one, two):
        rehearsals.into(directory, rehearsals.study_of())
    rehearsals.into(torn, rehearsals.study_of(), torn_after=60.0)
    (torn / "mark").write_text("third")
    for directory in (one, two, one, torn):
        assert export_run(read_run(directory), url) == (url.removeprefix("optuna+"),)
    before = study_in(url, "rehearsed third").trials
    assert 0 < len(before) < 8
    assert all(t.state.is_finished() for t in before), "those that run come once they have ended"
    (torn / "journal.jsonl").write_bytes((one / "journal.jsonl").read_bytes())
    for _ in range(2):
        export_run(read_run(torn), url)
    names = optuna.get_all_study_names(url.removeprefix("optuna+"))
    assert {name.split()[0] for name in names} == {"rehearsed"}
    assert len(names) == 3
    whole = study_in(url, "rehearsed").trials
    assert len(whole) == 8
    third = study_in(url, "rehearsed third").trials
    assert [t.intermediate_values for t in sorted(third, key=lambda t: t.user_attrs["trial"])] == [
        t.intermediate_values for t in whole
    ]


def study_in(url: str, name: str) -> optuna.Study:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return optuna.load_study(study_name=name, storage=url.removeprefix("optuna+"))


@pytest.mark.slow
def test_to_an_mlflow_store_a_run_goes_twice_and_is_there_once(several: Path, tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow.tracking")
    uri = f"sqlite:///{tmp_path / 'store.db'}"
    for _ in range(2):
        export_run(read_run(several), f"mlflow+{uri}")
    client = mlflow.MlflowClient(tracking_uri=uri)
    runs = client.search_runs([client.get_experiment_by_name("rehearsed").experiment_id])
    assert len(runs) == 8
    trials = {t["trial"]: t for t in read_run(several).document()["trial_list"]}
    for run in runs:
        trial = trials[run.data.tags["trial"]]
        assert (run.info.start_time, run.info.end_time) == (
            int(1000 * trial["began"]),
            int(1000 * trial["ended"]),
        )
        history = client.get_metric_history(run.info.run_id, "accuracy")
        assert [[m.step, m.value] for m in history] == trial["curves"]["accuracy"]


@pytest.mark.parametrize(
    "target", ["excel", "ftp://there", "", "optuna+", "sqlite", "postgresql://me:secret@127.0.0.1:1/x"]
)
def test_what_is_no_target_is_refused_in_words_without_passwords(finished: Path, target: str) -> None:
    with pytest.raises(InvalidSettingError) as refused:
        export_run(read_run(finished), target)
    assert "--to" in str(refused.value)
    assert "secret" not in str(refused.value)
