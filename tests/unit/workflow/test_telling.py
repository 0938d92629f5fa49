"""What a user tells a study is examined before any of it is written down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from parsl_rasda.errors import InvalidFileError, RunDirectoryError
from parsl_rasda.orchestration.events import PilotStarted, StudyStarted, TrialProposed, UserTold
from parsl_rasda.orchestration.journal import VERSION, read
from parsl_rasda.orchestration.progress import NoProgress
from parsl_rasda.orchestration.replay import save_run
from parsl_rasda.orchestration.requests import requests_after
from parsl_rasda.orchestration.run_directory import RunDirectory
from parsl_rasda.reporting.runs import read_run
from parsl_rasda.study import ParslSiteSpec, StudySpec, TuneSpec
from parsl_rasda.testing.backends import FakeBackend
from parsl_rasda.types import NodeName, NodeSlots, PilotId, StudyState, TrialId
from parsl_rasda.workflow.search_run import Search
from parsl_rasda.workflow.telling import configuration, tell_study
from tests.unit.orchestration.small_study import SITE, curve, driver, tune

SPACE = {
    "lr": {"float": [0.001, 0.1], "log": True},
    "optimizer": {"choice": ["sgd", "adam"]},
    "momentum": {"float": [0.0, 0.9], "when": {"optimizer": "sgd"}},
    "depth": {"int": [1, 8]},
    "kind": "mlp",
}


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run in which one trial waits and five have ended."""
    found = RunDirectory(tmp_path / "run")
    spec = tune()
    save_run(found, StudySpec.model_validate({"name": "study", "tune": spec}), [])
    at_work = driver(found.path, FakeBackend(curve), spec)
    at_work.tell(UserTold(0.0, 1, stop=TrialId("0000")))
    at_work.run(6, {SITE: 1})
    return found


def told(run: RunDirectory) -> list[UserTold | TrialProposed]:
    return list(requests_after(run.requests, 0, 0.0))


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ({}, ["options: found none; allowed: --stop, --at-most, --add, --retry-failed"]),
        ({"stop": ["0099"], "at_most": 2}, ["--stop: found '0099', no trial of this search"]),
        ({"stop": ["0001"], "retry_failed": True}, ["--stop: found '0001', which is ", "no trial goes on"]),
        ({"stage": "x", "at_most": 2}, ["--stage: found 'x'; allowed: a search of this study: tune"]),
        (
            {"add": ["{lr: 0.01}", "{lr: 5}", "[1]", "{lr: 0.01, x: 1}"], "stop": ["7"]},
            [
                "--stop: found '7'",
                "found '{lr: 5}'; allowed: a configuration of {lr: {float",
                "'[1]'",
                "x: 1",
            ],
        ),
        ({"add": ["{lr: "]}, ["--add"]),
    ],
)
def test_a_mistake_is_told_and_nothing_is_written(
    run: RunDirectory, what: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(InvalidFileError) as error:
        tell_study(run.path, **what)
    assert error.value.exit_code == 2
    for part in words:
        assert part in str(error.value)
    assert told(run) == []


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError):
        tell_study(tmp_path, at_most=2)
    assert not list(tmp_path.iterdir())


def test_each_thing_that_is_told_is_a_request_of_its_own(run: RunDirectory) -> None:
    said = tell_study(run.path, at_most=0, add=["{lr: 1e-2}"], retry_failed=True)
    assert said == "noted: nobody runs it, `parsl-rasda resume` takes it up"
    assert told(run) == [
        UserTold(0.0, 1, at_most=0),
        UserTold(0.0, 2, retry_failed=True),
        TrialProposed(0.0, TrialId(""), {"lr": 0.01}, 3),
    ]
    with run.controlled():
        assert tell_study(run.path, at_most=3).startswith("told: process ")


def test_a_controller_takes_up_what_it_is_told_while_it_runs_and_after(tmp_path: Path) -> None:
    run, spec = RunDirectory(tmp_path), tune()
    study = StudySpec.model_validate({"name": "study", "tune": spec})
    site = ParslSiteSpec.model_validate(
        {"name": "a", "provider": {"type": "LocalProvider"}, "accelerator": "none", "gpus_per_node": 2}
    )
    save_run(run, study, [site])
    searches: list[Search] = []

    def curve_and_words(order: Any, epoch: int) -> dict[str, float]:
        if not run.requests.exists():
            tell_study(run.path, at_most=1, add=["{lr: 0.002}"])
            searches[-1].take_requests()
            searches[-1].take_requests()
        return curve(order, epoch)

    def search() -> Search:
        backend = FakeBackend(curve_and_words)
        searches.append(Search(study, "tune", spec, {SITE: site}, backend, run, run, {}))
        searches[-1].run(NoProgress())
        return searches[-1]

    with run.controlled():
        assert search().summary()["trials"]["total"] == 7
        assert search().is_reused
        tell_study(run.path, add=["{lr: 0.003}"])
        assert not search().is_reused
    found = read_run(run.path).document()
    assert (found["state"], found["at_most"], found["trials"]["total"]) == ("done", 1, 8)
    added = [t["config"]["lr"] for t in found["trial_list"] if t["config"]["lr"] in (0.002, 0.003)]
    assert added == [0.002, 0.003]


def search_of(run: RunDirectory, spec: TuneSpec) -> Search:
    study = StudySpec.model_validate({"name": "study", "tune": spec})
    site = ParslSiteSpec.model_validate(
        {"name": "a", "provider": {"type": "LocalProvider"}, "accelerator": "none", "gpus_per_node": 2}
    )
    save_run(run, study, [site])
    return Search(study, "tune", spec, {SITE: site}, FakeBackend(curve), run, run, {})


@pytest.mark.parametrize("version", [VERSION, "0.0.1"])
@pytest.mark.parametrize("words", [{}, {"at_most": 2}, {"add": ["{lr: 0.01}"]}])
def test_time_without_a_controller_costs_nothing_whatever_is_told_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: dict[str, Any], version: str
) -> None:
    run, spec = RunDirectory(tmp_path), tune(budget={"wall_time": "01:00:00"})
    search = search_of(run, spec)
    monkeypatch.setattr("parsl_rasda.orchestration.journal.VERSION", version)
    at_work = driver(run.path, FakeBackend(curve), spec)  # its clock begins in 1970, that of `Search` is ours
    at_work.abandon()
    at_work.run(6, {SITE: 1}, budget=spec.budget.limits(0.0))
    at_work.record([PilotStarted(9.0, PilotId("a-0"), SITE, (NodeSlots(NodeName("n"), (0, 1)),))])
    at_work.journal.close()
    monkeypatch.undo()
    if words:
        tell_study(run.path, **words)
    with run.controlled():
        search.run(NoProgress())
    found = search.summary()
    assert found["state"] == "done"
    assert found["trials"]["not_tried"] == 0
    assert found["makespan_s"] < 600.0


@pytest.mark.parametrize("variant", ["stopping", "synchronous"])
def test_what_is_told_before_the_first_start_is_taken_up_after_it(tmp_path: Path, variant: str) -> None:
    run = RunDirectory(tmp_path)
    search = search_of(run, tune(scheduler={"variant": variant}))
    tell_study(run.path, at_most=2, add=["{lr: 0.02}"])
    with run.controlled():
        search.run(NoProgress())
    events = [record.event for record in read(run.journal)]
    assert type(events[0]) is StudyStarted
    found = search.summary()
    assert (found["state"], found["at_most"], found["trials"]["total"]) == ("done", 2, 7)
    first_rung = found["rungs"][0]
    assert first_rung["reached"] == 7
    assert search.state is StudyState.DONE
    searched_again = search_of(run, search.tune)
    with run.controlled():
        searched_again.run(NoProgress())
    assert searched_again.is_reused, "each is taken once"


@pytest.mark.parametrize(("variant", "is_alone"), [("stopping", False), ("synchronous", True)])
def test_who_adds_a_trial_is_told_if_it_competes_with_nobody(
    tmp_path: Path, variant: str, is_alone: bool
) -> None:
    run = RunDirectory(tmp_path)
    search = search_of(run, tune(scheduler={"variant": variant}))
    with run.controlled():
        search.run(NoProgress())
    assert ("competes with nobody" in tell_study(run.path, add=["{lr: 0.1}"])) is is_alone
    assert "competes" not in tell_study(run.path, at_most=2)
    again = search_of(run, search.tune)
    with run.controlled():
        again.run(NoProgress())
    added = again.summary()["trial_list"][-1]
    assert added["config"]["lr"] == 0.1, "the worst of all"
    assert (added["state"] == "completed") is is_alone


@pytest.mark.parametrize("words", [{"add": ["{lr: 0.01}"]}, {"retry_failed": True}])
def test_a_search_that_has_found_enough_takes_no_more_trials(tmp_path: Path, words: dict[str, Any]) -> None:
    run = RunDirectory(tmp_path)
    search = search_of(run, tune(stop_when={"metric_below": 10.0}))
    with run.controlled():
        search.run(NoProgress())
    assert search.summary()["stopped"]
    with pytest.raises(InvalidFileError, match="below 10") as error:
        tell_study(run.path, at_most=1, **words)
    assert error.value.exit_code == 2
    assert told(run) == []
    tell_study(run.path, at_most=1)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            "{lr: 1e-2, optimizer: sgd, momentum: 0.5, depth: 2.0}",
            {"lr": 0.01, "optimizer": "sgd", "momentum": 0.5, "depth": 2, "kind": "mlp"},
        ),
        ("{lr: 0.1, optimizer: adam, depth: 1}", {"lr": 0.1, "optimizer": "adam", "depth": 1, "kind": "mlp"}),
    ],
)
def test_a_configuration_is_written_as_the_searcher_would(text: str, found: dict[str, Any]) -> None:
    assert configuration(tune(search_space=SPACE), text) == found


@pytest.mark.parametrize(
    "text",
    [
        "{lr: 0.1, optimizer: rmsprop, depth: 1}",
        "{lr: 0.1, optimizer: adam, momentum: 0.5, depth: 1}",
        "{lr: 0.1, optimizer: sgd, depth: 1}",
        "{lr: 0.1, optimizer: adam, depth: 1.5}",
        "{lr: 0.1, optimizer: adam, depth: 1, kind: cnn}",
    ],
)
def test_what_is_no_configuration_of_the_space_is_refused(text: str) -> None:
    with pytest.raises(InvalidFileError, match="--add"):
        configuration(tune(search_space=SPACE), text)
