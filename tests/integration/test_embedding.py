"""Our search as one app of somebody's own Parsl program."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import dill
import parsl
import pytest
from parsl.config import Config
from parsl.data_provider.files import File
from parsl.dataflow.errors import DependencyError
from parsl.executors import ThreadPoolExecutor
from parsl.monitoring import MonitoringHub

from parsl_rasda import Slots, Study, StudyResult, api, tune
from parsl_rasda.errors import (
    InvalidFileError,
    InvalidSettingError,
    PlacementImpossibleError,
    RunDirectoryError,
    StageFailedError,
)
from parsl_rasda.orchestration.progress import NoProgress
from parsl_rasda.types import StudyState
from parsl_rasda.workflow import resume_study

PROGRAM = Path(__file__).parent / "embedded_program.py"
REPOSITORY = Path(__file__).parents[2]
SLOTS = Slots("gpu", gpus_per_node=2, accelerator="none", mpi_launcher="process")

pytestmark = pytest.mark.parsl


SETTINGS: dict[str, Any] = {
    "metric": "val_loss",
    "num_samples": 2,
    "max_retries": 0,
    "scheduler": {"max_t": 2, "max_workers": 2},
    "search_space": {"lr": {"float": [1e-4, 1e-1], "log": True}},
    "training": {"python": "workflows.emulated.train:train"},
}


def study(name: str, *, fault: str = "none") -> Study:
    space = {**SETTINGS["search_space"], "fault": fault}
    return Study({**SETTINGS, "search_space": space}, name=name)


def contents(directory: Path) -> dict[Path, bytes]:
    return {
        path: path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.parent.name != "controllers"
    }


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(REPOSITORY))
    executors = [
        ThreadPoolExecutor(label="gpu", max_threads=4),
        ThreadPoolExecutor(label="cpu", max_threads=1),
    ]
    with parsl.load(Config(executors=executors, usage_tracking=0, initialize_logging=False)):
        yield tmp_path
    parsl.clear()


@pytest.mark.parametrize("kind", ["threads", pytest.param("htex", marks=pytest.mark.slow)])
def test_a_program_of_forty_lines_gets_its_best_trial(tmp_path: Path, kind: str) -> None:
    assert len(PROGRAM.read_text().splitlines()) <= 40
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PATH": path}
    done = subprocess.run(
        [sys.executable, str(PROGRAM), kind],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "reached epoch 4" in done.stdout


def without_gpus(executor: str, nodes: int, gpus_per_node: int) -> Slots:
    """Slots as examples declare them, on a machine that has none."""
    assert (executor, nodes) == ("gpu", 4)
    return Slots(executor, gpus_per_node=gpus_per_node, accelerator="none", mpi_launcher="process")


def run_example(program: str, folder: Path, names: dict[str, Any]) -> dict[str, Any]:
    """Execute an example between the apps of somebody's program, and return what it has named."""
    (folder / "study.yaml").write_text(json.dumps({"name": "example", "tune": SETTINGS}))
    (folder / "train.py").write_text("def train(trial): ...")

    @parsl.python_app(executors=["cpu"])
    def simulate(points: int) -> int:
        return points

    @parsl.python_app(executors=["cpu"])
    def prepare(points: int) -> dict[str, float]:
        return {"points": points, "epoch_s": 0.01}

    @parsl.python_app(executors=["cpu"])
    def evaluate(best: dict[str, Any]) -> int:
        return int(best["epoch"])

    names |= {"simulate": simulate, "prepare": prepare, "evaluate": evaluate, "prepared": prepare(100)}
    exec(program, names)
    return names


def test_the_examples_of_the_docstrings(loaded: Path) -> None:
    ours = {"Study": Study, "tune": tune, "Slots": without_gpus}
    whole, in_code = (
        textwrap.dedent(block)
        for text in (api.__doc__, Study.__doc__)
        for block in re.findall(r"^ *::\n\n((?: +.*\n|\n)+?)(?=\n *\w|\Z)", str(text), re.MULTILINE)
    )
    assert run_example(whole, loaded, dict(ours))["final"].result(timeout=60) == 2
    assert run_example(in_code, loaded, dict(ours))["study"].spec.name == "cavity"


def test_two_searches_at_once_in_one_executor_and_no_thread_of_parsl_waits(loaded: Path) -> None:
    @parsl.python_app(executors=["cpu"])
    def settings() -> dict[str, float]:
        return {"epoch_s": 0.05}

    data = settings()
    first, second = (tune(study(n), slots=SLOTS, directory=n, data=data) for n in ("one", "two"))
    waiting = [t.name for t in threading.enumerate() if t.name.startswith("_parsl_internal")]
    assert len(waiting) <= 2
    for future, name in ((first, "one"), (second, "two")):
        best = future.result(timeout=60)
        assert best["epoch"] == 2
        assert (loaded / name / "journal.jsonl").exists()


def test_the_monitoring_of_parsl_shows_its_tasks_under_speaking_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(REPOSITORY))
    hub = MonitoringHub(resource_monitoring_enabled=False, logging_endpoint="sqlite:///monitoring.db")
    config = Config([ThreadPoolExecutor(label="gpu", max_threads=4)], usage_tracking=0, monitoring=hub)
    with parsl.load(config):
        best = tune(study("seen"), slots=SLOTS, directory="seen", epoch_s=0.01)
        best.result(timeout=60)
        assert best.task_status() == "exec_done"
    with contextlib.closing(sqlite3.connect("monitoring.db")) as kept:
        names = {name for (name,) in kept.execute("select task_func_name from task")}
    assert names == {"rasda_seen", "describe_allocation", "trial_0000_attempt_1", "trial_0001_attempt_1"}


def test_inside_a_join_app(loaded: Path) -> None:
    @parsl.join_app
    def whole(epoch_s: float) -> Future[Any]:
        return tune(study("joined"), slots=SLOTS, directory="joined", data={"epoch_s": epoch_s})

    assert whole(0.02).result(timeout=60)["epoch"] == 2


def test_its_failure_is_an_exception_of_ours_with_the_cause(loaded: Path) -> None:
    future = tune(study("bad", fault="raise"), slots=SLOTS, directory="bad")
    with pytest.raises(StageFailedError, match="EmulatedFaultError") as failed:
        future.result(timeout=60)
    assert str(pickle.loads(pickle.dumps(failed.value))) == str(failed.value)


def test_an_input_that_fails_is_the_cause_of_a_failure_of_ours(loaded: Path) -> None:
    @parsl.python_app(executors=["cpu"])
    def prepare() -> None:
        raise ValueError("no data")

    future = tune(study("starved"), slots=SLOTS, directory="starved", data=prepare())
    with pytest.raises(StageFailedError, match="an input could not be had: ValueError: no data") as failed:
        future.result(timeout=60)
    dependency = failed.value.__cause__
    assert isinstance(dependency, DependencyError)
    assert isinstance(dependency.__cause__, ValueError)
    assert str(dill.loads(dill.dumps(failed.value))) == str(failed.value)


def test_what_the_system_refuses_is_the_cause_of_a_failure_of_ours(loaded: Path) -> None:
    (loaded / "file").write_text("not a folder")
    future = tune(study("nowhere"), slots=SLOTS, directory=loaded / "file" / "run")
    with pytest.raises(StageFailedError, match="NotADirectoryError") as failed:
        future.result(timeout=60)
    assert isinstance(failed.value.__cause__, NotADirectoryError)


@pytest.mark.parametrize("module", [pickle, dill])
def test_the_result_and_the_study_survive_pickling(loaded: Path, module: Any) -> None:
    searched, slots = module.loads(module.dumps((study("pickled"), SLOTS)))
    best = tune(searched, slots=slots, directory="pickled", epoch_s=0.01).result(timeout=60)
    assert module.loads(module.dumps(best)) == best


def test_its_result_shows_itself_and_its_progress(loaded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = tune(study("shown"), slots=SLOTS, directory="shown", progress=True, epoch_s=0.01).result(
        timeout=60
    )
    assert isinstance(best, StudyResult)
    assert best.directory == loaded / "shown"
    assert best.summary()["state"] == "done"
    assert "<svg" in best._repr_html_()
    assert "finished state=done" in capsys.readouterr().err


def test_a_finished_run_directory_is_taken_up_again_and_repeats_nothing(loaded: Path) -> None:
    first = tune(study("again"), slots=SLOTS, directory="again").result(timeout=60)
    journal = (loaded / "again" / "journal.jsonl").read_bytes()
    assert tune(study("again"), slots=SLOTS, directory="again").result(timeout=60) == first
    assert (loaded / "again" / "journal.jsonl").read_bytes() == journal


@pytest.mark.parametrize(
    ("changed", "inputs", "differs"),
    [
        ({"search_space": {"zz": {"int": [1, 3]}}}, {}, "stages.tune.tune.search_space.lr"),
        ({}, {"epoch_s": 9.0, "data": "other"}, "stages.tune.with.epoch_s, stages.tune.with.data"),
        ({"num_samples": 1}, {}, "stages.tune.tune.num_samples"),
    ],
)
def test_a_directory_of_another_search_is_refused_and_stays_as_it_was(
    loaded: Path, changed: dict[str, Any], inputs: dict[str, Any], differs: str
) -> None:
    given = {"epoch_s": 0.01}
    tune(Study(SETTINGS, name="one"), slots=SLOTS, directory="one", **given).result(timeout=60)
    before = contents(loaded / "one")
    future = tune(
        Study({**SETTINGS, **changed}, name="one"), slots=SLOTS, directory="one", **{**given, **inputs}
    )
    with pytest.raises(RunDirectoryError, match=f"another study, which differs in {differs}"):
        future.result(timeout=60)
    assert contents(loaded / "one") == before


def test_more_trials_in_the_same_directory_go_on_from_there(loaded: Path) -> None:
    for trials in (2, 3):
        more = Study({**SETTINGS, "num_samples": trials}, name="more")
        tune(more, slots=SLOTS, directory="more", epoch_s=0.01).result(timeout=60)
    assert sorted(p.name for p in (loaded / "more" / "trials").iterdir()) == ["0000", "0001", "0002"]
    assert all(len(list(p.iterdir())) == 1 for p in (loaded / "more" / "trials").iterdir())


def test_a_study_file_of_the_users_is_never_written_over(loaded: Path) -> None:
    (loaded / "study.yaml").write_text("name: mine")
    with pytest.raises(RunDirectoryError, match="not of a run"):
        tune(study("mine"), slots=SLOTS, directory=".").result(timeout=60)
    assert (loaded / "study.yaml").read_text() == "name: mine"


def test_parsl_rasda_resume_takes_an_embedded_search_up(loaded: Path) -> None:
    tune(study("taken"), slots=SLOTS, directory="taken", epoch_s=0.01).result(timeout=60)
    resumed = resume_study(loaded / "taken", [], progress=NoProgress())
    assert resumed.state is StudyState.DONE
    assert resumed.summary["trials"]["completed"] + resumed.summary["trials"]["stopped"] == 2


def test_files_and_futures_arrive_in_the_training_function_as_json(loaded: Path) -> None:
    (loaded / "data.txt").write_text("x")
    future = tune(
        study("files"), slots=SLOTS, directory="files", data=File(str(loaded / "data.txt")), epoch_s=0.01
    )
    future.result(timeout=60)
    order = next((loaded / "files" / "trials").glob("*/attempt-1/order.json")).read_text()
    assert str(loaded / "data.txt") in order


PIPELINE = {
    "name": "whole",
    "stages": {
        "simulate": {"command": ["true"]},
        "first": {"needs": {"data": "simulate"}, "tune": SETTINGS},
        "second": {
            "needs": {"data": "simulate"},
            "with": {"epoch_s": 0.01},
            "tune": {**SETTINGS, "num_samples": 1},
        },
        "warm": {"tune": {**SETTINGS, "searcher": {"kind": "tpe", "warm_start": "first"}}},
        "late": {"needs": {"progress": "simulate"}, "tune": SETTINGS},
    },
}


def test_one_search_of_a_file_with_several_and_what_it_needs(loaded: Path) -> None:
    (loaded / "study.yaml").write_text(json.dumps(PIPELINE))
    second = Study.from_yaml("study.yaml", stage="second")
    with pytest.raises(InvalidSettingError, match="found 'no data'; allowed: what the study needs: data"):
        tune(second, slots=SLOTS, directory="second")
    assert tune(second, slots=SLOTS, directory="second", data=1).result(timeout=60)["epoch"] == 2
    order = json.loads(next((loaded / "second" / "trials").glob("*/attempt-1/order.json")).read_text())
    assert order["inputs"] == {"data": 1, "epoch_s": 0.01}


def test_functions_beside_a_study_file_elsewhere_are_found_by_ranks_and_by_resume(loaded: Path) -> None:
    (loaded / "elsewhere").mkdir()
    (loaded / "elsewhere" / "beside.py").write_text("from workflows.emulated.train import train as learn\n")
    training = {"python": "beside:learn"}
    text = json.dumps({"name": "elsewhere", "tune": {**SETTINGS, "training": training}})
    (loaded / "elsewhere" / "study.yaml").write_text(text)
    declared = Study.from_yaml("elsewhere/study.yaml")
    best = tune(declared, slots=SLOTS, directory="run", epoch_s=0.0).result()
    assert best["epoch"] == 2
    origin = json.loads((loaded / "run" / "origin.json").read_text())
    assert origin["search_path"][0] == str(loaded / "elsewhere")


@pytest.mark.parametrize(
    ("stage", "refused"),
    [
        (None, "stage: found None; allowed: a search of whole: first, second, warm, late"),
        ("simulate", "stage: found 'simulate'"),
        ("warm", "searcher.warm_start: found 'first'; allowed: nothing in a program"),
        ("late", r"needs: found 'progress'; allowed: another name: tune\(\) has an argument of this one"),
    ],
)
def test_what_a_program_cannot_search_is_refused_in_words(
    loaded: Path, stage: str | None, refused: str
) -> None:
    (loaded / "study.yaml").write_text(json.dumps(PIPELINE))
    with pytest.raises(InvalidSettingError, match=refused):
        Study.from_yaml("study.yaml", stage=stage)


def test_an_input_that_is_called_as_an_argument_of_ours_is_refused_in_words(loaded: Path) -> None:
    @parsl.python_app(executors=["cpu"])
    def prepare() -> str:
        return "data"

    with pytest.raises(InvalidSettingError, match="an input of the training needs another name"):
        tune(study("clash"), slots=SLOTS, directory=prepare())


def test_what_ranks_could_never_receive_is_refused(loaded: Path) -> None:
    with pytest.raises(InvalidSettingError, match="ranks are other processes"):
        tune(study("lambda"), slots=SLOTS, directory="lambda", data=object()).result(timeout=60)


def test_an_unknown_executor_is_refused_with_the_labels_there_are(loaded: Path) -> None:
    with pytest.raises(InvalidSettingError, match="gpu, cpu"):
        tune(study("nowhere"), slots=Slots("gqu"), directory="nowhere")


def test_what_its_slots_can_never_hold_is_refused_at_once_and_leaves_no_directory(loaded: Path) -> None:
    strict = {**SETTINGS, "scheduler": {"max_t": 4, "max_workers": 4, "growth": "strict"}}
    with pytest.raises(PlacementImpossibleError, match=r"needs 4 GPUs at once.*largest pilot has 2"):
        tune(Study(strict, name="wide"), slots=SLOTS, directory="wide")
    assert not (loaded / "wide").exists()


def test_every_mistake_of_a_study_in_code_is_told_at_once() -> None:
    wrong = {**SETTINGS, "metrc": 1, "num_samples": 0, "searcher": {"kind": "tpe", "foo": 3}}
    with pytest.raises(InvalidFileError) as error:
        Study(tune=wrong, name="wrong")
    assert {m.key for m in error.value.mistakes} == {"tune.metrc", "tune.num_samples", "tune.searcher.foo"}
    with pytest.raises(InvalidFileError, match=r"Slots\('gpu'\): mpi_launcher: found 'mpirun'"):
        Slots("gpu", mpi_launcher="mpirun")


def test_mistakes_of_a_study_file_have_their_lines_here_too(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(
        json.dumps({"name": "s", "tune": {**SETTINGS, "searcher": {"kind": "gp", "foo": 3}}}, indent=1)
    )
    with pytest.raises(InvalidFileError, match=r"study\.yaml:\d+: tune\.searcher\.foo"):
        Study.from_yaml(file)
