"""Slots of a Parsl program: never two searches on the same, and those of several executors as one."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import parsl
import pytest
from parsl.config import Config
from parsl.executors import ThreadPoolExecutor

from parsl_rasda import Slots, Study, tune
from parsl_rasda.errors import InvalidSettingError, RunDirectoryError, StageFailedError
from parsl_rasda.orchestration.progress import NoProgress
from parsl_rasda.workflow.embedded import Embedded

TRAINING = """
import json, time

def train(trial):
    for epoch in trial.epochs():
        begin = time.time()
        time.sleep(0.05)
        with (trial.directory / "held.jsonl").open("a") as file:
            file.write(json.dumps([begin, time.time()]) + "\\n")
        trial.report(val_loss=trial.config["lr"])
"""
SETTINGS: dict[str, Any] = {
    "metric": "val_loss",
    "num_samples": 4,
    "scheduler": {"max_t": 4, "max_workers": 2},
    "search_space": {"lr": {"float": [0.1, 1.0]}},
    "training": {"python": "held:train"},
}

pytestmark = pytest.mark.parsl


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "held.py").write_text(TRAINING)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    executors = [ThreadPoolExecutor(label=label, max_threads=8) for label in ("gpu", "more")]
    with parsl.load(Config(executors=executors, usage_tracking=0, initialize_logging=False)):
        yield tmp_path
    parsl.clear()


def slots(executor: str, gpus: int) -> Slots:
    return Slots(executor, gpus_per_node=gpus, accelerator="none", mpi_launcher="process")


def held(run: Path) -> list[tuple[tuple[str, str, int], float, float]]:
    """Return which GPU was held from when to when, as the ranks of each attempt have written it."""
    found = []
    for line in (run / "journal.jsonl").read_text().splitlines()[1:]:
        for start in (i for i in json.loads(line)["instructions"] if i["type"] == "StartJob"):
            attempt = run / "trials" / start["job"]["trial"] / f"attempt-{start['job']['attempt']}"
            spans = [json.loads(t) for f in attempt.rglob("held.jsonl") for t in f.read_text().splitlines()]
            if spans:
                site, nodes = start["placement"]["site"], start["placement"]["nodes"]
                gpus = [(site, node["node"], gpu) for node in nodes for gpu in node["gpus"]]
                found += [(gpu, spans[0][0], spans[-1][1]) for gpu in gpus]
    return found


def test_two_searches_on_one_executor_never_hold_the_same_gpu(loaded: Path) -> None:
    shapes = {"one": slots("gpu", 2), "two": slots("gpu", 4), "three": slots("gpu", 2)}
    futures = [tune(Study(SETTINGS, name=n), slots=s, directory=n) for n, s in shapes.items()]
    assert [f.result(timeout=120)["epoch"] for f in futures] == [4, 4, 4]
    spans = [span for name in shapes for span in held(loaded / name)]
    assert len(spans) >= 3 * 4
    for (gpu, begin, end), (other, other_begin, other_end) in itertools.combinations(spans, 2):
        assert gpu != other or end <= other_begin or other_end <= begin


def test_searches_have_their_turns_in_the_order_of_the_calls(
    loaded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parsl's thread that begins the first call is late, so that the second one begins before it."""
    begin, second_has_begun, order = Embedded.begin, threading.Event(), list[str]()

    def late(self: Embedded, inputs: Mapping[str, Any]) -> Future[Any]:
        if self.study.name == "first":
            assert second_has_begun.wait(30)
        future = begin(self, inputs)
        second_has_begun.set()
        return future

    class Told(NoProgress):
        def __init__(self, name: str) -> None:
            self.name = name

        def search(self, *_: object, **__: object) -> Any:
            order.append(self.name)
            return self

    monkeypatch.setattr(Embedded, "begin", late)
    names = ("first", "second")
    futures = [
        tune(Study(SETTINGS, name=n), slots=slots("gpu", 2), directory=n, progress=Told(n)) for n in names
    ]
    assert [f.result(timeout=120)["epoch"] for f in futures] == [4, 4]
    assert order == ["first", "second"]


def test_a_search_whose_input_is_still_computed_holds_up_nobody(loaded: Path) -> None:
    computed = Future[int]()
    waits = tune(Study(SETTINGS, name="waits"), slots=slots("gpu", 2), directory="waits", seen=computed)
    assert tune(Study(SETTINGS, name="runs"), slots=slots("gpu", 2), directory="runs").result(timeout=120)
    computed.set_result(1)
    assert waits.result(timeout=120)["epoch"] == 4


def test_a_search_whose_input_fails_holds_up_nobody(loaded: Path) -> None:
    failed = Future[int]()
    failed.set_exception(ValueError("no data"))
    never = tune(Study(SETTINGS, name="never"), slots=slots("gpu", 2), directory="never", seen=failed)
    with pytest.raises(StageFailedError, match="no data"):
        never.result(timeout=60)
    assert tune(Study(SETTINGS, name="runs"), slots=slots("gpu", 2), directory="runs").result(timeout=120)


def test_two_searches_on_two_executors_run_at_the_same_time(loaded: Path) -> None:
    both = threading.Barrier(2, timeout=60)  # each holds its trial until the other has one, too

    class Meet:
        """A reporter that lets a search begin when the other one does."""

        def search(self, *_: object, **__: object) -> Any:
            both.wait()
            return self

        def add(self, *_: object) -> None: ...

    labels = ("gpu", "more")
    futures = [
        tune(Study(SETTINGS, name=n), slots=slots(n, 2), directory=n, progress=Meet())  # type: ignore[arg-type]
        for n in labels
    ]
    assert [f.result(timeout=120)["epoch"] for f in futures] == [4, 4]


def test_the_slots_of_several_executors_are_those_of_one_search(loaded: Path) -> None:
    wide = Study({**SETTINGS, "num_samples": 8}, name="wide")
    best = tune(wide, slots=[slots("gpu", 2), slots("more", 3)], directory="wide").result(timeout=120)
    spans = held(loaded / "wide")
    assert {gpu[0] for gpu, _, _ in spans} == {"gpu", "more"}
    assert best["site"] in {"gpu", "more"}
    assert len({gpu for gpu, _, _ in spans}) == 5


@pytest.mark.parametrize("named", [[], ["gpu", "gpu"]])
def test_slots_of_no_executor_or_twice_of_one_are_refused(loaded: Path, named: list[str]) -> None:
    with pytest.raises(InvalidSettingError, match="at least one executor, each of them once"):
        tune(Study(SETTINGS), slots=[slots(label, 1) for label in named])


def test_the_same_study_twice_at_once_gets_two_directories(loaded: Path) -> None:
    same = Study({**SETTINGS, "num_samples": 1}, name="same")
    futures = [tune(same, slots=slots(label, 1)) for label in ("gpu", "more", "gpu")]
    assert [f.result(timeout=120)["epoch"] for f in futures] == [4, 4, 4]
    assert sorted(p.name for p in (loaded / "runs").iterdir()) == ["same", "same-2", "same-3"]


def test_where_no_directory_can_be_made_the_call_says_so(loaded: Path) -> None:
    (loaded / "runs").write_text("not a folder")
    with pytest.raises(RunDirectoryError, match="runs/study: cannot be made: Not a directory"):
        tune(Study(SETTINGS), slots=slots("gpu", 1))


def test_inside_an_allocation_slots_have_the_names_of_its_nodes(
    loaded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (loaded / "nodes").write_text("nid007\nnid007\nnid012\n")
    monkeypatch.setenv("PBS_NODEFILE", str(loaded / "nodes"))
    two = Slots("gpu", nodes=2, gpus_per_node=1, accelerator="none", mpi_launcher="process")
    tune(Study(SETTINGS, name="named"), slots=two, directory="named").result(timeout=120)
    assert {gpu for gpu, _, _ in held(loaded / "named")} == {("gpu", "nid007", 0), ("gpu", "nid012", 0)}


def test_the_same_directory_twice_at_once_is_refused_in_words(loaded: Path) -> None:
    begun, tried = threading.Event(), threading.Event()

    class Wait:
        """A reporter that keeps the first search from going on until the second has been tried."""

        def search(self, *_: object, **__: object) -> Any:
            begun.set()
            assert tried.wait(60)
            return self

        def add(self, *_: object) -> None: ...

    once = Study({**SETTINGS, "num_samples": 1}, name="once")
    first = tune(once, slots=slots("gpu", 1), directory="once", progress=Wait())  # type: ignore[arg-type]
    assert begun.wait(60)
    second = tune(once, slots=slots("more", 1), directory="once")
    with pytest.raises(RunDirectoryError, match="is being run by another thread of this process"):
        second.result(timeout=60)
    tried.set()
    assert first.result(timeout=60)["epoch"] == 4
    assert tune(once, slots=slots("more", 1), directory="once").result(timeout=60) == first.result()


def test_a_kernel_that_is_not_the_loaded_one(loaded: Path) -> None:
    kernel = parsl.dfk()
    parsl.clear()
    once = Study({**SETTINGS, "num_samples": 1}, name="given")
    best = tune(once, slots=slots("gpu", 1), data_flow_kernel=kernel)
    assert best.result(timeout=60)["epoch"] == 4
