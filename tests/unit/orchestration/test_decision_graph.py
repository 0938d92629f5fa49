"""The graph keeps up with epochs that no longer count."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from parsl_rasda.orchestration.assembly import build_machine
from parsl_rasda.orchestration.decision_graph import DecisionGraph
from parsl_rasda.orchestration.events import EpochReported, StartJob, StudyStarted
from parsl_rasda.orchestration.journal import read
from parsl_rasda.testing.backends import FakeBackend
from parsl_rasda.types import JobId, TrialId
from tests.unit.orchestration.small_study import SITE, curve, driver, tune


def test_a_trial_that_diverged_trains_on_until_it_is_killed(tmp_path: Path) -> None:
    def diverging(order: Any, epoch: int) -> dict[str, float]:
        return {"loss": math.nan if order.trial == "0001" else 1.0 / epoch}

    spec = tune(scheduler={"grace_period": 4, "max_t": 4})
    machine = build_machine(spec)
    decisions = DecisionGraph(machine)
    runner = FakeBackend(diverging, interactive=False)
    driver(tmp_path, runner, spec, machine=machine, observers=[decisions]).run(6, {SITE: 1})
    node = decisions.graph.nodes["0001/0"]
    assert node["decision"] == "failed"
    assert math.isnan(node["metric"])
    assert decisions.graph.nodes["0000/0"]["decision"] == "completed"


def test_words_of_a_job_of_an_earlier_controller_change_nothing(tmp_path: Path) -> None:
    driver(tmp_path, FakeBackend(curve)).run(6, {SITE: 1})
    machine = build_machine(tune())
    decisions = DecisionGraph(machine)
    started: list[JobId] = []
    for record in read(tmp_path / "journal.jsonl"):
        decisions.add(record.event, machine.handle(record.event))
        started = [i.job for i in record.instructions if isinstance(i, StartJob)]
        if started:
            break
    for event in (
        StudyStarted(90.0, 6, {SITE: 1}),
        EpochReported(91.0, started[0], 1, {"loss": 0.1}, 1.0, None),
    ):
        decisions.add(event, machine.handle(event))
    assert not machine.trials[TrialId("0000")].history
    assert decisions.graph.nodes["0000/0"]["metric"] == ""
