"""Our search as one app of somebody's own Parsl program."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import parsl
import pytest
from parsl.config import Config
from parsl.data_provider.files import File
from parsl.executors import ThreadPoolExecutor

import parsl_rasda
from parsl_rasda import Slots, Study, tune
from parsl_rasda.errors import (
    InvalidFileError,
    InvalidSettingError,
    PlacementImpossibleError,
    StageFailedError,
)

PROGRAM = Path(__file__).parent / "embedded_program.py"
REPOSITORY = Path(__file__).parents[2]
README = REPOSITORY / "README.md"
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
    return Study.from_mapping({**SETTINGS, "search_space": space}, name=name)


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
    assert len(PROGRAM.read_text().splitlines()) <= 50
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


def test_the_program_of_the_readme(loaded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (loaded / "study.yaml").write_text(json.dumps({"name": "readme", "tune": SETTINGS}))

    @parsl.python_app(executors=["cpu"])
    def prepare() -> dict[str, float]:
        return {"epoch_s": 0.01}

    @parsl.python_app(executors=["cpu"])
    def evaluate(best: dict[str, Any]) -> int:
        return int(best["epoch"])

    def without_gpus(executor: str, nodes: int, gpus_per_node: int) -> Slots:
        assert (executor, nodes) == ("gpu", 4)
        return Slots(executor, gpus_per_node=gpus_per_node, accelerator="none", mpi_launcher="process")

    monkeypatch.setattr(parsl_rasda, "Slots", without_gpus)
    (_, program) = re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {"prepared": prepare(), "evaluate": evaluate}
    exec(program, names)
    assert names["final"].result(timeout=60) == 2


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


def test_parsl_shows_its_tasks_under_speaking_names(loaded: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="parsl.dataflow.dflow"):
        tune(study("named"), slots=SLOTS, directory="named").result(timeout=60)
    assert "rasda_named" in caplog.text
    assert "trial_0000_attempt_1" in caplog.text


def test_inside_a_join_app(loaded: Path) -> None:
    @parsl.join_app
    def whole(epoch_s: float) -> Future[Any]:
        return tune(study("joined"), slots=SLOTS, directory="joined", data={"epoch_s": epoch_s})

    assert whole(0.02).result(timeout=60)["epoch"] == 2


def test_its_failure_is_an_exception_of_ours_with_the_cause(loaded: Path) -> None:
    future = tune(study("bad", fault="raise"), slots=SLOTS, directory="bad")
    with pytest.raises(StageFailedError, match="EmulatedFaultError"):
        future.result(timeout=60)


def test_a_finished_run_directory_is_taken_up_again_and_repeats_nothing(loaded: Path) -> None:
    first = tune(study("again"), slots=SLOTS, directory="again").result(timeout=60)
    journal = (loaded / "again" / "journal.jsonl").read_bytes()
    assert tune(study("again"), slots=SLOTS, directory="again").result(timeout=60) == first
    assert (loaded / "again" / "journal.jsonl").read_bytes() == journal


def test_files_and_futures_arrive_in_the_training_function_as_json(loaded: Path) -> None:
    (loaded / "data.txt").write_text("x")
    future = tune(
        study("files"), slots=SLOTS, directory="files", data=File(str(loaded / "data.txt")), epoch_s=0.01
    )
    future.result(timeout=60)
    order = next((loaded / "files" / "trials").glob("*/attempt-1/order.json")).read_text()
    assert str(loaded / "data.txt") in order


def test_what_ranks_could_never_receive_is_refused(loaded: Path) -> None:
    with pytest.raises(InvalidSettingError, match="ranks are other processes"):
        tune(study("lambda"), slots=SLOTS, directory="lambda", data=object()).result(timeout=60)


def test_an_unknown_executor_is_refused_with_the_labels_there_are(loaded: Path) -> None:
    with pytest.raises(InvalidSettingError, match="gpu, cpu"):
        tune(study("nowhere"), slots=Slots("gqu"), directory="nowhere")


def test_what_its_slots_can_never_hold_is_refused_at_once_and_leaves_no_directory(loaded: Path) -> None:
    strict = {**SETTINGS, "scheduler": {"max_t": 4, "max_workers": 4, "growth": "strict"}}
    with pytest.raises(PlacementImpossibleError, match=r"needs 4 GPUs at once.*largest pilot has 2"):
        tune(Study.from_mapping(strict, name="wide"), slots=SLOTS, directory="wide")
    wrong = Study.from_mapping({**SETTINGS, "searcher": {"kind": "tpe", "foo": 3}}, name="wide")
    with pytest.raises(InvalidSettingError, match=r"searcher\.foo"):
        tune(wrong, slots=SLOTS, directory="wide")
    assert not (loaded / "wide").exists()


def test_mistakes_of_a_study_file_have_their_lines_here_too(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(
        json.dumps({"name": "s", "tune": {**SETTINGS, "searcher": {"kind": "gp", "foo": 3}}}, indent=1)
    )
    with pytest.raises(InvalidFileError, match=r"study\.yaml:\d+: tune\.searcher\.foo"):
        Study.from_yaml(file)
