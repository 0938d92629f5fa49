"""The document of a search: what stands in it, and that one without a search has the same keys."""

from __future__ import annotations

from pathlib import Path

from parsl_rasda.orchestration.events import PilotEnded, PilotStarted, StudyStarted
from parsl_rasda.orchestration.summary import no_search, summarise
from parsl_rasda.orchestration.usage import Usage
from parsl_rasda.testing.backends import FakeBackend
from parsl_rasda.types import NodeName, NodeSlots, PilotId, SiteName
from tests.unit.orchestration.random_world import Setup, Shape
from tests.unit.orchestration.small_study import SITE, curve, driver


def test_a_study_without_a_search_has_the_same_keys_and_nothing_in_them(tmp_path: Path) -> None:
    usage = Usage()
    ended = driver(tmp_path, FakeBackend(curve), observers=[usage])
    ended.run(6, {SITE: 1})
    whole, empty = summarise("study", ended.machine, usage), no_search("study")
    assert set(empty) == set(whole)
    for part in ("trials", "measured"):
        assert set(empty[part]) == set(whole[part])
    assert whole["trials"]["total"] == 6
    assert whole["best"] is not None
    parts = (empty["trials"], empty["measured"], empty["restarts"])
    assert not any(value for part in parts for value in part.values())


def test_it_names_the_pilots_that_are_up_awaited_and_not_asked_for() -> None:
    machine, usage = Setup("stopping", "none", {"a": Shape(1, 2)}).machine(), Usage()
    slots = (NodeSlots(NodeName("n"), (0, 1)), NodeSlots(NodeName("m"), (0,)))
    for event in (
        StudyStarted(1.0, 1, {SiteName("a"): 1, SiteName("b"): 2}),
        PilotStarted(2.0, PilotId("a-0"), SiteName("a"), slots),
        PilotEnded(3.0, PilotId("b-1"), SiteName("b"), "no", usable=False, refused=True),
    ):
        usage.add(event, machine.handle(event))
    found = summarise("study", machine, usage)
    assert found["state"] == "running"
    assert found["pilots"] == [{"pilot": "a-0", "site": "a", "gpus": 3}]
    (awaited,) = found["awaited"]
    assert (awaited["pilot"], awaited["site"], awaited["since"], awaited["job"]) == ("b-2", "b", 1.0, None)
    assert found["resting"] == [{"site": "b", "until": 5.0}]
    assert found["set_aside"] == []
