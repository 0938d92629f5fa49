"""`best: epoch` returns the best epoch of all trials, with its checkpoint; rungs are judged as ever."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from parsl_rasda.orchestration.summary import best, summarise
from parsl_rasda.orchestration.usage import Usage
from parsl_rasda.testing.backends import FakeBackend
from tests.unit.orchestration.small_study import SITE, driver, tune


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


def test_the_checkpoints_of_rungs_stay_where_that_is_asked_for(tmp_path: Path) -> None:
    kept = [t["kept"] for t in found(tmp_path / "run", training=training(rungs=True))["trial_list"]]
    most = max(kept, key=len)
    assert [path.rpartition("-")[2] for path in most] == ["000001", "000002", "000004"]
    assert not any(t["kept"] for t in found(tmp_path / "other", training=training(rungs=False))["trial_list"])


def training(**keep: Any) -> dict[str, Any]:
    return {"python": "somewhere:train", "keep_checkpoints": {"whose": "all", **keep}}
