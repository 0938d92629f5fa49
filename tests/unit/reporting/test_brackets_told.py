"""What people are told of brackets: by status, the report, the log of decisions, the methods and the plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from parsl_rasda.display.decisions import DecisionLog
from parsl_rasda.orchestration.decision_graph import graph_of_decisions
from parsl_rasda.orchestration.run_directory import RunDirectory
from parsl_rasda.reporting.files import results_csv, write_report
from parsl_rasda.reporting.methods import methods_text
from parsl_rasda.reporting.runs import Run, read_run
from parsl_rasda.reporting.tables import as_text, status_view
from parsl_rasda.simulation.forecast import forecast
from parsl_rasda.simulation.rehearsal import VirtualSite
from parsl_rasda.study import SchedulerSpec
from parsl_rasda.types import SiteName
from parsl_rasda.verification.decisions import check_decisions


def run_of(rehearsals: Any, folder: Path, brackets: int | str) -> Run:
    rehearsals.into(folder, rehearsals.study_of(scheduler={"brackets": brackets}, num_samples=12))
    return read_run(folder)


def test_status_has_the_bracket_of_each_trial_and_what_came_of_it(rehearsals: Any, tmp_path: Path) -> None:
    summary = run_of(rehearsals, tmp_path, 3).document()
    rows, trials = summary["brackets"], summary["trial_list"]
    assert [row["grace_period"] for row in rows] == [1, 2, 4]
    for row in rows:
        own = [t for t in trials if t["bracket"] == row["bracket"]]
        assert row["trials"] == len(own) > 0
        assert row["completed"] == sum(t["state"] == "completed" for t in own)
        assert all(t["epoch"] >= row["grace_period"] for t in own)
    assert sum(row["trials"] for row in rows) == 12
    text = as_text(status_view(summary))
    assert "bracket  grace period  trials  completed" in text
    assert "trial  state      bracket  epoch" in text
    assert "agreement" not in text.partition("rank agreement")[0]


def test_auto_says_by_what_it_chooses(rehearsals: Any, tmp_path: Path) -> None:
    run = run_of(rehearsals, tmp_path, "auto")
    summary = run.document()
    assert [row["agreement"] for row in summary["brackets"]] == [1.0, 1.0, 1.0]  # its curves never cross
    assert "agreement" in as_text(status_view(summary)).partition("rank agreement")[0]
    assert "later trials went to the one whose" in methods_text(run, "tune", run.summaries()["tune"])


def test_one_bracket_is_no_news(rehearsals: Any, tmp_path: Path) -> None:
    run = run_of(rehearsals, tmp_path, 1)
    summary = run.document()
    assert summary["brackets"] == []
    assert {t["bracket"] for t in summary["trial_list"]} == {None}
    assert "bracket" not in as_text(status_view(summary))
    assert "bracket" not in methods_text(run, "tune", run.summaries()["tune"])


def test_the_report_and_the_methods_say_it(rehearsals: Any, tmp_path: Path) -> None:
    run = run_of(rehearsals, tmp_path, 3)
    write_report(run)
    page = (tmp_path / "report.html").read_text()
    assert "<h3>Brackets</h3>" in page
    assert page.count('data-name="bracket"') == 12 + 3
    said = "in 3 brackets first judged after 1, 2 and 4 epochs, in the proportions of Hyperband"
    assert said in methods_text(run, "tune", run.summaries()["tune"])
    assert results_csv(run.summaries()["tune"]).startswith("trial,")


def test_a_start_in_the_log_names_the_bracket(rehearsals: Any, tmp_path: Path) -> None:
    history = run_of(rehearsals, tmp_path, 3).searches["tune"]
    log = DecisionLog(history.machine)
    lines = [line for r in history.records for line in log.lines(r.event, r.instructions)]
    started = [line for line in lines if line.verb == "started"]
    assert {line.facts["bracket"] for line in started} == {0, 1, 2}
    assert " bracket=0 " in str(started[0])


def test_a_trial_is_compared_with_those_of_its_bracket_from_its_first_rung_on(
    rehearsals: Any, tmp_path: Path
) -> None:
    run = run_of(rehearsals, tmp_path, 3)
    bracket = {t["trial"]: t["bracket"] for t in run.document()["trial_list"]}
    graph = graph_of_decisions(run.searches["tune"], ())
    compared = 0
    for _, data in graph.nodes(data=True):
        others = data["compared_with"].split()
        compared += len(others)
        assert {bracket[other] for other in others} <= {bracket[data["trial"]]}
        assert not others or data["rung"] >= bracket[data["trial"]]
    assert compared


@pytest.mark.parametrize("brackets", [3, "auto"])
def test_verify_makes_every_decision_again(rehearsals: Any, tmp_path: Path, brackets: int | str) -> None:
    run = run_of(rehearsals, tmp_path, brackets)
    found = check_decisions(RunDirectory(tmp_path), run.study.tune_stages["tune"].tune, run.study.seed)
    assert found.decisions.same == found.decisions.total > 0


def test_a_plan_rehearses_brackets_and_compares_them_with_one(rehearsals: Any) -> None:
    study = rehearsals.study_of(scheduler={"brackets": 3}, num_samples=12)
    site = {SiteName("here"): VirtualSite(nodes=2, gpus_per_node=2)}
    found = forecast("tune", study.tune_stages["tune"].tune, site, seed=study.seed)
    epochs = {policy.name: policy.epochs for policy in found.policies}
    assert epochs["RASDA elastic"] > epochs["RASDA, one bracket"]
    assert [r.epochs for r in found.rungs] == [1, 2, 4, 8]


def test_a_plug_in_has_no_brackets() -> None:
    found = [*SchedulerSpec.problems({"kind": "mine", "max_t": 4, "brackets": 2})]
    (said,) = [str(problem) for problem in found if problem.loc == ("brackets",)]
    assert "2, with kind: 'mine'" in said
