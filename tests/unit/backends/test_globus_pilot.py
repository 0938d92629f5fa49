"""How a pilot behind an endpoint is come by, told by a link without a service and a clock of the test's."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from parsl_rasda.agent import endpoint_tasks
from parsl_rasda.agent.endpoint_tasks import TaskContext
from parsl_rasda.backends.globus import pilot
from parsl_rasda.backends.globus.client import PilotLostError, RefusedError, UnreachableError
from parsl_rasda.backends.globus.pilot import GlobusPilot
from parsl_rasda.orchestration.events import RequestPilot
from parsl_rasda.study.sites import GlobusSiteSpec
from parsl_rasda.types import PilotId, SiteName

ENDPOINT = "11111111-0000-4000-8000-000000000000"
SILENCE_S = 10.0
SITE = GlobusSiteSpec.model_validate(
    {
        "name": "alps",
        "endpoint_id": ENDPOINT,
        "gpus_per_node": 2,
        "accelerator": "none",
        "heartbeat_threshold": 10,
    }
)


class World:
    """A pilot, its link, and what is told of it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.handshakes: list[Future[Any]] = []
        self.is_online: bool | Exception = True
        self.told: list[tuple[str, Any]] = []
        self.found = endpoint_tasks.describe("none", {"folder": str(folder), "mark": "m", "term": 1})
        self.found["block"] = "one"
        monkeypatch.setattr(pilot, "time", self)
        self.pilot = GlobusPilot(
            RequestPilot(PilotId("alps-0"), SiteName("alps")),
            TaskContext(str(folder), "m", 1),
            SITE,
            spent="spent",
            when=lambda task, then: task.add_done_callback(then),
            up=lambda pilot, found: self.told.append(("up", pilot.sender.block)),
            refused=lambda pilot, cause: self.told.append(("refused", cause)),
            delayed=lambda pilot, cause: self.told.append(("delayed", cause)),
        )

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now

    def submit(self, call: str, arguments: dict[str, Any]) -> Future[Any]:
        assert (call, arguments["sender"]["term"]) == ("describe", 1)
        self.handshakes.append(Future())
        return self.handshakes[-1]

    def ask_whether_online(self) -> Future[bool]:
        state: Future[bool] = Future()
        if isinstance(self.is_online, Exception):
            state.set_exception(self.is_online)
        else:
            state.set_result(self.is_online)
        return state

    def pass_time(self, seconds: float) -> None:
        """Let time pass in the runner's ticks."""
        for _ in range(int(seconds)):
            self.now += 1.0
            self.pilot.shake_hands(self)  # type: ignore[arg-type]  # as much of a link as it uses

    def answer(self, **fields: Any) -> None:
        self.handshakes[-1].set_result({**self.found, **fields})


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path, monkeypatch)
    made.pass_time(1)
    return made


def test_the_first_answer_brings_the_pilot_up_and_a_late_one_changes_nothing(world: World) -> None:
    world.pass_time(15 * SILENCE_S)
    assert len(world.handshakes) == 2, "the first may be lost"
    world.answer()
    assert world.told == [("up", "one")]
    assert world.pilot.allocation is not None
    world.handshakes[0].set_result({**world.found, "block": "two"})
    assert world.told == [("up", "one")]


def test_who_waits_for_hours_asks_less_and_less_often(world: World) -> None:
    world.pass_time(8 * 3600)
    assert len(world.handshakes) == 9, "after 100, 200, 400 ... seconds"
    assert not world.told


def test_an_endpoint_that_stays_offline_is_refused(world: World) -> None:
    world.is_online = False
    world.pass_time(2 * SILENCE_S)
    assert not world.told, "it has not been away for long"
    world.pass_time(SILENCE_S)
    assert world.told[0] == ("refused", f"endpoint {ENDPOINT} is offline; start it there")


def test_an_endpoint_that_comes_back_in_time_is_asked_again(world: World) -> None:
    world.handshakes[-1].set_exception(UnreachableError(ENDPOINT, "no route"))
    world.is_online = UnreachableError(ENDPOINT, "no route")
    world.pass_time(SILENCE_S - 2)
    world.is_online = True
    world.pass_time(5)
    assert len(world.handshakes) == 2
    world.answer()
    assert world.told == [("up", "one")]


def test_a_pilot_that_ends_while_it_is_asked_leaves_the_question_to_the_next_one(world: World) -> None:
    world.handshakes[-1].set_exception(PilotLostError(ENDPOINT))
    world.pass_time(1)
    world.answer(block="two")
    assert world.told == [("up", "two")]


def test_what_went_wrong_there_is_told(world: World) -> None:
    world.handshakes[-1].set_exception(RefusedError(ENDPOINT, "no such account"))
    assert world.told == [("refused", f"endpoint {ENDPOINT}: no such account")]


def test_a_pilot_that_another_study_uses_is_waited_for_and_that_is_told_once(world: World) -> None:
    for _ in range(3):
        world.answer(taken="another study (heat, run 1) uses this pilot")
        asked = len(world.handshakes)
        world.pass_time(SILENCE_S + 1)
        assert len(world.handshakes) == asked + 1
    ((kind, words),) = world.told
    assert kind == "delayed"
    assert words.startswith("site alps: another study (heat, run 1) uses this pilot; wait for its end, or ")
    world.answer()
    assert world.told[1:] == [("up", "one")]


def test_a_pilot_that_is_about_to_end_is_not_taken_for_the_next_one(world: World) -> None:
    world.answer(block="spent")
    world.pass_time(SILENCE_S + 1)
    assert not world.told
    world.answer()
    assert world.told == [("up", "one")]
