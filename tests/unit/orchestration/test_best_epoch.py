"""`best: epoch` returns the best epoch of all trials, with its checkpoint; rungs are judged as ever."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from parsl_rasda.orchestration.events import StudyInterrupted
from parsl_rasda.orchestration.summary import best, summarise
from parsl_rasda.orchestration.usage import Usage
from parsl_rasda.testing.backends import FakeBackend
from parsl_rasda.types import Outcome
from tests.unit.orchestration.small_study import SITE, driver, tune
from tests.unit.orchestration.test_machine_stories import story


def overfitted(order: Any, epoch: int) -> dict[str, float]:
    """A loss that is least after two epochs; with `mode: max` it is negated."""
    sign = -1.0 if order.mode == "max" else 1.0
    return {"loss": sign * (float(order.config["lr"]) + abs(epoch - 2))}


def found(folder: Path, **values: Any) -> dict[str, Any]:
    folder.mkdir()
    search = driver(folder, FakeBackend(overfitted), tune(**values))
    search.run(6, {SITE: 1})
    document = summarise("study", search.machine, Usage(), 0.0)
    assert document["best"] == best(search.machine)
    return document


@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_best_epoch_is_returned_with_its_checkpoint_beside_the_last_value(
    tmp_path: Path, mode: str
) -> None:
    values = {"mode": mode, "scheduler": {"grace_period": 4}}
    last, epoch = (found(tmp_path / by, best=by, **values) for by in ("last", "epoch"))
    assert last["best"]["epoch"] == last["best"]["last"]["epoch"] == 4
    assert epoch["best"]["epoch"] == 2
    assert "epoch-000002" in epoch["best"]["checkpoint"]
    assert epoch["best"]["last"] == last["best"]["last"]
    assert abs(epoch["best"]["metric"]) == pytest.approx(abs(last["best"]["metric"]) - 2)
    (row,) = (t for t in epoch["trial_list"] if t["trial"] == epoch["best"]["trial"])
    assert row["kept"] == [epoch["best"]["checkpoint"]]
    assert (row["epoch"], "epoch-000004" in row["checkpoint"]) == (4, True), "it goes on from its last one"
    states = [[t["state"] for t in document["trial_list"]] for document in (last, epoch)]
    assert states[0] == states[1], "nothing is decided by it"


def test_the_best_has_the_weights_of_its_epoch_also_if_it_was_ended_between_two(tmp_path: Path) -> None:
    """What a job writes on leaving in mid-epoch is there to go on from: nobody has measured it."""
    told = story(max_t=8)
    told.begin(1, a=1)
    told.pilot("a-0", gpus=1)
    told.epoch("0000.1", 1, 0.5)
    told.epoch("0000.1", 2, 0.4)
    told.tell(StudyInterrupted)
    told.ends("0000.1", Outcome.PREEMPTED, "0000.1/2-and-a-half")
    found = best(told.machine)
    assert (found["epoch"], found["checkpoint"]) == (2, "0000.1/2")
    (row,) = summarise("study", told.machine, Usage(), 0.0)["trial_list"]
    assert (row["checkpoint"], row["kept"]) == ("0000.1/2-and-a-half", ["0000.1/2"])


def test_the_checkpoints_of_rungs_stay_where_that_is_asked_for(tmp_path: Path) -> None:
    kept = [t["kept"] for t in found(tmp_path / "run", training=training(rungs=True))["trial_list"]]
    most = max(kept, key=len)
    assert [path.rpartition("-")[2] for path in most] == ["000001", "000002", "000004"]
    assert not any(t["kept"] for t in found(tmp_path / "other", training=training(rungs=False))["trial_list"])


def training(**keep: Any) -> dict[str, Any]:
    return {"python": "somewhere:train", "keep_checkpoints": {"whose": "all", **keep}}
