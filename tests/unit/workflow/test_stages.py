"""How a controller goes through the stages of a study, and what it writes down of each."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pytest

from parsl_rasda.errors import InvalidSettingError, RunDirectoryError, SiteUnavailableError, StageFailedError
from parsl_rasda.orchestration.admission import admit
from parsl_rasda.orchestration.progress import NoProgress
from parsl_rasda.orchestration.replay import save_run
from parsl_rasda.orchestration.run_directory import RunDirectory
from parsl_rasda.orchestration.stage_records import read_record
from parsl_rasda.reporting.runs import read_run
from parsl_rasda.study import ParslSiteSpec, StudySpec
from parsl_rasda.types import StageState, StudyState
from parsl_rasda.workflow.dag import Call
from parsl_rasda.workflow.run import RunResult, WorkflowRun

PYTHON = "workflows.emulated.train:train"
HERE = ParslSiteSpec.model_validate(
    {"name": "here", "provider": {"type": "LocalProvider"}, "mpi_launcher": "process", "gpus_per_node": 1}
)
STAGES = {
    "simulate": {"python": PYTHON, "for_each": {"seed": [0, 1, 2]}},
    "prepare": {"python": PYTHON, "needs": {"fields": "simulate"}},
    "other": {"python": PYTHON},
}


@dataclass
class FakePool:
    """Calls are answered by a function at once; one that answers None is still at work.

    What `has_room` refuses is not taken, as by a site that runs enough calls.
    """

    answer: Callable[[str, Call], Any] = lambda stage, call: f"{stage}-{call.name}"
    has_room: Callable[[str, Call], bool] = lambda stage, call: True
    refusal: Exception | None = None
    sites: dict[str, Any] = field(default_factory=lambda: {"here": HERE})
    asked: list[str] = field(default_factory=list)

    def __enter__(self) -> Self:
        if self.refusal:
            raise self.refusal
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, name: str, stage: Any, call: Call) -> Future[dict[str, Any]] | None:
        if not self.has_room(name, call):
            return None
        self.asked.append(f"{name}/{call.name}")
        future: Future[dict[str, Any]] = Future()
        try:
            result = self.answer(name, call)
        except Exception as error:  # noqa: BLE001  what a call raises comes through its future
            future.set_exception(error)
        else:
            if result is not None:
                future.set_result({"result": result, "seconds": 1.0})
        return future


class Failures(NoProgress):
    def __init__(self) -> None:
        self.told: dict[str, str] = {}

    def stage_failed(self, name: str, cause: str) -> None:
        self.told[name] = cause


@dataclass
class Passage:
    """A session in a run directory of its own."""

    directory: Path
    view: Failures = field(default_factory=Failures)

    def __post_init__(self) -> None:
        self.study = StudySpec.model_validate({"name": "steps", "stages": STAGES})
        self.run = RunDirectory(self.directory)

    @contextmanager
    def session(self) -> Iterator[WorkflowRun]:
        admitted = admit(self.study, [HERE], {})
        with self.run.controlled():
            save_run(self.run, self.study, [HERE])
            yield WorkflowRun(admitted, self.run, (), self.view)

    def through(self, pool: FakePool) -> RunResult:
        with self.session() as session:
            return session.run_in(pool)  # type: ignore[arg-type]  # all that stages ask of a SitePool

    @property
    def states(self) -> dict[str, str]:
        return {name: s.state.value for name, s in read_run(self.directory).stages.items()}


@pytest.fixture
def passage(tmp_path: Path) -> Passage:
    return Passage(tmp_path)


def failing(stage: str, error: Exception, call: str = "0000") -> Callable[[str, Call], Any]:
    def answer(name: str, asked: Call) -> Any:
        if (name, asked.name) == (stage, call):
            raise error
        return asked.name

    return answer


def test_what_stages_return_is_written_down_and_stands(passage: Passage) -> None:
    result = passage.through(FakePool())
    assert (result.state, set(passage.states.values())) == (StudyState.DONE, {"done"})
    fields = ["simulate-0000", "simulate-0001", "simulate-0002"]
    stages = read_run(passage.directory).stages
    assert stages["simulate"].result == result.stages["simulate"] == fields
    assert (stages["simulate"].ended, stages["simulate"].seconds) == (3, 3.0)
    again = FakePool()
    assert passage.through(again).stages == result.stages
    assert again.asked == []


@pytest.mark.parametrize(
    ("error", "state", "cause", "is_curable"),
    [
        (StageFailedError("prepare", "no field"), StageState.FAILED, "no field", True),
        (ValueError("no field"), StageState.FAILED, "ValueError: no field", True),
        (SiteUnavailableError("here", "no account"), StageState.NO_SITE, "'here' is not available", True),
    ],
)
def test_a_failure_is_written_down_with_its_cause_and_goes_when_the_stage_runs_again(
    passage: Passage, error: Exception, state: StageState, cause: str, is_curable: bool
) -> None:
    with pytest.raises((StageFailedError, SiteUnavailableError)):
        passage.through(FakePool(failing("prepare", error)))
    record = read_record(passage.run.stages / "prepare")
    assert (record.state, record.is_curable) == (state, is_curable)
    assert cause in record.cause
    assert cause in passage.view.told["prepare"]
    assert passage.states == {"simulate": "done", "prepare": state.value, "other": "done"}
    assert read_run(passage.directory).state.value == state.value
    assert passage.through(FakePool()).state is StudyState.DONE
    assert set(passage.states.values()) == {"done"}


def test_of_several_calls_the_one_that_failed_is_named_and_the_others_are_kept(passage: Passage) -> None:
    with pytest.raises(StageFailedError, match="call 0001: no field"):
        passage.through(FakePool(failing("simulate", StageFailedError("simulate", "no field"), "0001")))
    standing = read_run(passage.directory).stages["simulate"]
    assert (standing.state, standing.ended, standing.calls) == (StageState.FAILED, 2, 3)
    places = FakePool()
    passage.through(places)
    assert [call for call in places.asked if call.startswith("simulate")] == ["simulate/0001"]


def press_ctrl_c(session: Any) -> None:
    """Interrupt a session once, from a thread of one of its stages; returns when it knows."""
    if not session.ending.is_set():
        os.kill(os.getpid(), signal.SIGINT)
        assert session.ending.wait(10)


def test_results_are_kept_as_they_come_and_an_interrupted_stage_has_not_failed(passage: Passage) -> None:
    """The first of three calls is slow; the results of the others must not wait for it."""
    with passage.session() as session:

        def answer(stage: str, call: Call) -> Any:
            if stage == "simulate" and call.name == "0002":
                press_ctrl_c(session)
            return None if (stage, call.name) == ("simulate", "0000") else call.name

        result = session.run_in(FakePool(answer))  # type: ignore[arg-type]  # as above
    assert result.state is StudyState.INTERRUPTED
    standing = read_run(passage.directory).stages["simulate"]
    assert (standing.state, standing.cause, standing.ended) == (StageState.INTERRUPTED, "", 2)
    assert read_run(passage.directory).state is StudyState.INTERRUPTED
    assert passage.view.told == {}


def test_what_a_signal_to_the_group_kills_is_interrupted(passage: Passage) -> None:
    with passage.session() as session:

        def killed(stage: str, call: Call) -> Any:
            press_ctrl_c(session)
            raise StageFailedError(stage, "sh ended with -15")

        assert session.run_in(FakePool(killed)).state is StudyState.INTERRUPTED  # type: ignore[arg-type]
    assert StageState.FAILED.value not in passage.states.values()
    assert read_run(passage.directory).cause == ""


def test_a_site_that_cannot_even_be_opened_is_the_cause_of_the_first_stages(passage: Passage) -> None:
    with pytest.raises(SiteUnavailableError):
        passage.through(FakePool(refusal=SiteUnavailableError("here", "no login")))
    assert passage.states == {"simulate": "no_site", "prepare": "waiting", "other": "no_site"}
    assert "no login" in read_run(passage.directory).cause


def test_a_controller_that_was_taken_over_writes_nothing(passage: Passage) -> None:
    with passage.session() as session:

        def taken(stage: str, call: Call) -> Any:
            claim = passage.directory / "controllers" / "000002.json"
            claim.write_text(json.dumps({"host": "elsewhere", "pid": 1, "start": "1"}))
            raise StageFailedError(stage, "not mine any more")

        with pytest.raises((RunDirectoryError, StageFailedError)):
            session.run_in(FakePool(taken))  # type: ignore[arg-type]  # as above
    (passage.directory / "controllers" / "000002.json").unlink()
    assert "failed" not in passage.states.values()


def test_a_stage_at_a_site_that_is_not_there_is_refused_before_anything_is_forgotten(tmp_path: Path) -> None:
    passage = Passage(tmp_path)
    passage.through(FakePool())
    passage.study = StudySpec.model_validate(
        {"name": "steps", "stages": {**STAGES, "other": {"python": PYTHON, "site": "lumi"}}}
    )
    with pytest.raises(InvalidSettingError, match="lumi"), passage.session() as session:
        session.run()
    assert set(passage.states.values()) == {"done"}


def test_calls_that_find_no_room_are_tried_again_and_a_full_site_delays_no_other(tmp_path: Path) -> None:
    """The site here is full until the other one has got all its calls, and then takes one at a time."""
    passage, there = Passage(tmp_path), HERE.model_copy(update={"name": "there"})
    stages = {"simulate": {"python": PYTHON, "site": "each", "for_each": {"seed": list(range(4))}}}
    passage.study = StudySpec.model_validate({"name": "steps", "stages": stages})
    tried: list[str] = []

    def has_room(stage: str, call: Call) -> bool:
        tried.append(call.name)
        is_free = len(tried) % 2 == 0
        return call.site == "there" or (len(places.asked) >= 4 and is_free)

    places = FakePool(has_room=has_room, sites={"here": HERE, "there": there})
    assert passage.through(places).state is StudyState.DONE
    here, beyond = ([f"simulate/{site}/{i:04d}" for i in range(4)] for site in ("here", "there"))
    assert places.asked == [*beyond, *here], "each in its order"
    assert len(tried) < 20, "a full site is asked once a turn"


@pytest.mark.parametrize("is_one_at_work", [False, True])
def test_what_waits_for_room_is_not_begun_any_more_once_the_run_is_to_end(
    passage: Passage, is_one_at_work: bool
) -> None:
    with passage.session() as session:

        def has_room(stage: str, call: Call) -> bool:
            if not is_one_at_work or call.name == "0001":
                press_ctrl_c(session)
            return is_one_at_work and call.name == "0000"

        places = FakePool(lambda stage, call: None, has_room)
        assert session.run_in(places).state is StudyState.INTERRUPTED  # type: ignore[arg-type]  # as above
    assert "simulate/0002" not in places.asked
    assert passage.states["simulate"] == "interrupted"
