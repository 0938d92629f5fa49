"""Every command that reads a run directory tells the truth of it, however it stands."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parsl_rasda.cli.export import export
from parsl_rasda.cli.report import report
from parsl_rasda.cli.status import status
from parsl_rasda.cli.watch import watch
from parsl_rasda.orchestration.run_directory import RunDirectory
from parsl_rasda.orchestration.stage_records import (
    StageRecord,
    forget_record,
    keep_result,
    read_record,
    write_record,
)
from parsl_rasda.reporting.graph import run_graph
from parsl_rasda.reporting.overview import JobWords, run_view
from parsl_rasda.reporting.runs import read_run
from parsl_rasda.reporting.tables import as_text
from parsl_rasda.simulation.rehearsal import VirtualSite
from parsl_rasda.study import StudySpec, dump_study
from parsl_rasda.types import StageState

PYTHON = "workflows.emulated.train:train"
MLFLOW = pytest.param("mlflow", marks=pytest.mark.slow)  # a second for each database
TARGETS = [MLFLOW, "optuna", "csv"]
RESUME = "go on with: parsl-rasda resume"
NO_FIELD = StageRecord(StageState.FAILED, at=2.0, cause="ValueError: no field (simulating.py:3)")
REFUSED = StageRecord(StageState.FAILED, at=2.0, cause="another --dir, please", is_curable=False)


def declared(directory: Path, stages: dict[str, Any]) -> None:
    run = RunDirectory(directory)
    run.sites.mkdir(parents=True)
    run.study_file.write_text(dump_study(StudySpec.model_validate({"name": "odd", "stages": stages})))


def note(directory: Path, stage: str, record: StageRecord) -> None:
    write_record(RunDirectory(directory).stages / stage, record)


def lose_search(directory: Path) -> None:
    (directory / "journal.jsonl").unlink()


class Worlds:
    """Run directories in every state that a run can be left in."""

    def __init__(self, directory: Path, rehearsals: Any) -> None:
        self.directory, self.rehearsals = directory, rehearsals

    def not_begun(self) -> None:
        lose_search(self.directory)
        forget_record(self.directory / "stages" / "simulate")

    def killed_in_the_first_stage(self) -> None:
        lose_search(self.directory)
        running = StageRecord(StageState.RUNNING, at=1.0, calls={"0000": "a", "0001": "z"})
        note(self.directory, "simulate", running)

    def first_stage_failed(self) -> None:
        lose_search(self.directory)
        note(self.directory, "simulate", NO_FIELD)

    def last_stage_failed(self) -> None:
        note(self.directory, "evaluate", NO_FIELD)

    def no_site_for_the_last_stage(self) -> None:
        note(self.directory, "evaluate", replace(NO_FIELD, state=StageState.NO_SITE, cause="no account"))

    def search_refused(self) -> None:
        note(self.directory, "tune", REFUSED)

    def all_done(self) -> None:
        note(self.directory, "evaluate", StageRecord(StageState.DONE, at=3.0, result={"skill": 0.5}))


# state, cause, a line of `status`, and whether `resume` is advised
CASES = {
    "not_begun": ("interrupted", "", "rehearsed: has not begun", True),
    "killed_in_the_first_stage": ("interrupted", "", "simulate  interrupted  1 of 2 calls, 1.5 s", True),
    "first_stage_failed": ("failed", f"stage simulate: {NO_FIELD.cause}", f"failed   {NO_FIELD.cause}", True),
    "last_stage_failed": ("failed", f"stage evaluate: {NO_FIELD.cause}", "rehearsed: failed", True),
    "no_site_for_the_last_stage": ("no_site", "stage evaluate: no account", "no site", True),
    "search_refused": ("failed", f"stage tune: {REFUSED.cause}", "another --dir, please", False),
    "all_done": ("done", "", "skill  0.5", False),
}


def squeezed(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("world", CASES)
def test_the_state_of_a_run_is_that_of_all_its_stages(world, pipeline, rehearsals, capsys) -> None:
    getattr(Worlds(pipeline, rehearsals), world)()
    state, cause, line, is_advised = CASES[world]
    status(pipeline, as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert (document["state"], document["cause"], document["controller"]) == (state, cause, None)
    assert list(document["stages"]) == ["simulate", "tune", "evaluate"]
    assert "running" not in {s["state"] for s in (*document["stages"].values(), document)}, "nobody runs it"
    watch(pipeline)
    watched = capsys.readouterr().out
    status(pipeline)
    out = capsys.readouterr().out
    assert watched == out
    assert squeezed(line) in squeezed(out)
    assert (RESUME in out) == is_advised


@pytest.mark.parametrize("is_queued", [False, True])
@pytest.mark.parametrize("world", CASES)
def test_a_submitted_run_says_where_its_job_is_and_how_to_submit_it_again(
    world, is_queued, pipeline, rehearsals
) -> None:
    getattr(Worlds(pipeline, rehearsals), world)()
    last = RunDirectory(pipeline).last_job
    last.parent.mkdir()
    last.write_text("{}")
    run = read_run(pipeline)
    text = squeezed(as_text(run_view(run, job=JobWords("job 7, as it is", may_be_queued=is_queued))))
    assert ("its controller: job 7, as it is" in text) == (world != "all_done")
    assert ("go on with: parsl-rasda submit" in text) == (CASES[world][3] and not is_queued)
    assert "parsl-rasda resume" not in text, "there, it would train on a login node"


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("world", CASES)
def test_every_command_works_on_a_run_in_every_state(world, target, pipeline, rehearsals, capsys) -> None:
    getattr(Worlds(pipeline, rehearsals), world)()
    report([pipeline])
    assert (pipeline / "summary.txt").read_text() == as_text(run_view(read_run(pipeline)))
    has_begun = (pipeline / "journal.jsonl").exists()
    export(pipeline, target)
    assert ("nothing to export" in capsys.readouterr().err) != has_begun


@pytest.mark.parametrize("controlled", [False, True])
def test_what_runs_is_running_only_if_somebody_runs_it(pipeline, rehearsals, controlled) -> None:
    Worlds(pipeline, rehearsals).killed_in_the_first_stage()
    run = replace(read_run(pipeline), controller="process 7 on n1" if controlled else None)
    state = "running" if controlled else "interrupted"
    document = run.document()
    assert (document["state"], document["stages"]["simulate"]["state"]) == (state, state)
    assert document["stages"]["tune"]["state"] == "waiting"
    assert ("being run by process 7 on n1" in as_text(run_view(run))) == controlled


def test_a_result_counts_only_while_its_key_stands(pipeline) -> None:
    folder = pipeline / "stages" / "simulate"
    assert read_run(pipeline).document()["stages"]["simulate"] == {
        "state": "done",
        "cause": "",
        "seconds": 3.0,
        "calls": 2,
        "calls_ended": 2,
        "result": ["field-0000", "field-0001"],
    }
    (folder / "0000" / "shards.json").parent.mkdir()
    (folder / "0000" / "shards.json").write_text("{}")  # a file of the call's own
    keep_result(folder, "0001", "older", {"result": 1, "seconds": 9.0})
    found = read_run(pipeline).stages["simulate"]
    assert (found.calls, found.ended, found.seconds) == (2, 1, 1.5)


def test_the_cause_that_ended_a_search_is_shown_everywhere(tmp_path, rehearsals, capsys) -> None:
    study = rehearsals.study_of(scheduler={"num_workers": 2, "max_workers": 4})
    rehearsals.into(tmp_path, study, site=VirtualSite(nodes=1, gpus_per_node=1))
    cause = "a trial needs 2 GPUs at once"
    report([tmp_path])
    status(tmp_path)
    assert capsys.readouterr().out.count(cause) == 2
    assert cause in (tmp_path / "summary.txt").read_text()
    status(tmp_path, as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert document["state"] == "no_site"
    assert cause in document["cause"]
    assert document["cause"] == document["searches"]["tune"]["cause"] == document["stages"]["tune"]["cause"]


def test_the_first_of_two_failures_is_the_cause(pipeline) -> None:
    note(pipeline, "evaluate", replace(NO_FIELD, at=1.5, cause="first"))
    note(pipeline, "simulate", NO_FIELD)
    assert read_run(pipeline).cause == "stage evaluate: first"


# ------------------------------------------------------------------------- one shape of document


def two_searches(directory: Path, rehearsals: Any, begun: list[str]) -> Path:
    tune = rehearsals.study_of().tune_stages["tune"].model_dump(mode="json", by_alias=True)
    fine = {**tune, "needs": {"start": "coarse"}}
    study = StudySpec.model_validate({"name": "two", "stages": {"fine": fine, "coarse": tune}})
    declared(directory, {"fine": fine, "coarse": tune})
    for stage in begun:
        rehearsals.into(directory, study, stage=stage)
    return directory


def no_search(directory: Path) -> Path:
    declared(directory, {"simulate": {"python": PYTHON}})
    note(directory, "simulate", StageRecord(StageState.RUNNING, at=1.0))
    return directory


Make = Callable[[Path, Any], Path]
SHAPES: dict[str, Make] = {
    "no search": lambda folder, rehearsals: no_search(folder / "none"),
    "none of two has begun": lambda folder, rehearsals: two_searches(folder / "a", rehearsals, []),
    "one of two has begun": lambda folder, rehearsals: two_searches(folder / "b", rehearsals, ["coarse"]),
    "both have begun": lambda folder, rehearsals: two_searches(folder / "c", rehearsals, ["coarse", "fine"]),
}


def shape(document: Any, depth: int = 2) -> Any:
    """Return the keys of a document, and of the mappings in it that always have the same."""
    if not isinstance(document, dict) or not depth:
        return None
    varying = {"searches", "stages", "best", "asha"}
    return {k: None if k in varying else shape(v, depth - 1) for k, v in document.items()}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("make", SHAPES.values(), ids=SHAPES)
def test_a_document_has_the_same_keys_whatever_the_run_consists_of(
    make, target, finished, tmp_path, rehearsals, capsys
) -> None:
    directory = make(tmp_path, rehearsals)
    documents = []
    for run in (finished, directory):
        status(run, as_json=True)
        documents.append(json.loads(capsys.readouterr().out, parse_constant=pytest.fail))
    assert shape(documents[0]) == shape(documents[1])
    assert documents[1]["state"] in {"interrupted", "done"}
    report([directory])
    assert "\n\n\n" not in capsys.readouterr().out
    export(directory, target)


def test_with_several_searches_costs_are_summed_and_findings_are_the_last_ones(tmp_path, rehearsals) -> None:
    document = read_run(two_searches(tmp_path / "two", rehearsals, ["coarse", "fine"])).document()
    coarse, fine = (document["searches"][name] for name in ("coarse", "fine"))
    assert document["state"] == "done"
    for key in ("makespan_s", "gpu_hours", "epochs"):
        assert document[key] == pytest.approx(coarse[key] + fine[key], rel=1e-3), key
    assert document["restarts"]["count"] == coarse["restarts"]["count"] + fine["restarts"]["count"]
    assert document["gpu_busy_fraction"] == pytest.approx(coarse["gpu_busy_fraction"], abs=1e-3)
    for key in ("best", "trials", "rungs", "trial_list", "metric"):
        assert document[key] == fine[key], key


def test_the_last_search_is_the_one_that_needs_the_others_whatever_the_order_of_the_file(
    tmp_path, rehearsals
) -> None:
    run = read_run(two_searches(tmp_path / "two", rehearsals, ["coarse"]))
    assert list(run.study.stages) == ["fine", "coarse"]
    assert run.order == ["coarse", "fine"]
    document = run.document()
    assert document["best"] is None
    assert document["trials"]["total"] == 8, "those that are wanted"
    assert document["searches"]["coarse"]["best"]["trial"]
    graph = run_graph(run)
    assert all(data["kind"] in {"stage", "stretch"} for _, data in graph.nodes(data=True))
    assert graph.in_degree("fine") == 1, "it waits for the best trial of the first"


def test_a_search_that_ended_holds_nothing_while_the_run_goes_on(pipeline) -> None:
    run = replace(read_run(pipeline), controller="process 7 on n1")
    early, late = (run.document(now=run.searches["tune"].usage.last_at + s) for s in (1.0, 1e4))
    assert early["state"] == "running"
    assert early["gpu_hours"] == late["gpu_hours"]
    assert (early["gpus"], early["pilots"]) == (0, [])


# ------------------------------------------------------------------------------------ records

results = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
records = st.builds(
    StageRecord,
    st.sampled_from(StageState),
    st.floats(0, 2e9),
    st.dictionaries(st.text(), st.text()),
    st.text(),
    st.booleans(),
    results,
)


@given(records)
def test_a_record_is_read_as_it_was_written(tmp_path_factory, record) -> None:
    folder = tmp_path_factory.mktemp("stage")
    write_record(folder, record)
    assert read_record(folder) == record
    forget_record(folder)
    assert read_record(folder) == StageRecord()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"state": "odd"}', '{"state": "done", "other": 1}'])
def test_half_a_record_is_none(tmp_path, text) -> None:
    (tmp_path / "stage.json").write_text(text)
    assert read_record(tmp_path) == StageRecord()
