"""What is logged within an epoch reaches the curves; any number of points becomes a few hundred."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from parsl_rasda.errors import TrainingError
from parsl_rasda.orchestration.events import EpochReported, Event
from parsl_rasda.orchestration.job_specs import epoch_event
from parsl_rasda.orchestration.journal import decode, encode
from parsl_rasda.protocol import EpochReport
from parsl_rasda.runtime import local_trial
from parsl_rasda.runtime.step_log import MOST, StepLog

torch = pytest.importorskip("torch")


def test_places_are_the_steps_done_and_go_with_the_report_into_the_journal(tmp_path: Path) -> None:
    trial = local_trial({"lr": 0.1}, directory=tmp_path, batch_size=2, epochs=2)
    with pytest.raises(TrainingError, match="outside an epoch"):
        trial.log(loss=1.0)
    assert trial.max_epochs == 2
    model, _ = trial.prepare(torch.nn.Linear(3, 1), torch.optim.SGD, lr=0.1)
    for epoch in trial.epochs():
        for i, (x,) in enumerate(trial.batches((torch.ones(8, 3),))):
            trial.step(model(x).mean())
            trial.log(batch_loss=float(10 * epoch + i))
        trial.report(val_loss=1.0)
    first, second = trial.history
    assert [place for place, _ in first.steps] == [0.25, 0.5, 0.75, 1.0]
    assert [m["batch_loss"] for _, m in second.steps] == [10.0, 11.0, 12.0, 13.0]
    assert second.steps[-1][0] == 2.0
    again = EpochReport.from_json(json.loads(json.dumps(second.to_json())))
    event = epoch_event(again, 0.0)
    assert event.steps == second.steps
    assert decode(json.loads(json.dumps(encode(event))), Event) == event


def test_where_nobody_counts_steps_they_are_evenly_spread_and_nothing_is_written_without_any() -> None:
    log = StepLog()
    for i in range(3):
        log.add(None, {"a": float(i)})
    assert log.take(4) == ((4.25, {"a": 0.0}), (4.5, {"a": 1.0}), (4.75, {"a": 2.0}))
    assert log.take(5) == ()
    report = EpochReport("0", 1, 1, {"a": 1.0}, 1.0)  # type: ignore[arg-type]  # an id
    assert "steps" not in encode(epoch_event(report, 0.0))
    assert isinstance(decode(encode(epoch_event(report, 0.0)), Event), EpochReported)


@pytest.mark.parametrize("count", [MOST, 1000, 12345])
def test_very_many_are_thinned_evenly(count: int) -> None:
    log = StepLog()
    for i in range(count):
        log.add((i + 1) / count, {"i": float(i)})
    found = [m["i"] for _, m in log.take(0)]
    assert MOST / 2 - 1 <= len(found) <= MOST
    gaps = {b - a for a, b in pairwise(found)}
    assert len(gaps) == 1
    assert found[0] == 0.0
