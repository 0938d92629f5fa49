"""Which checkpoints may go: none that a controller may still name to a successor."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parsl_rasda.protocol import KNOWN, Checkpoint, EpochReport
from parsl_rasda.runtime.checkpoints.retention import KEPT, remove_superseded_attempts, superseded
from parsl_rasda.types import TrialId
from tests.unit.runtime.attempts import attempt_in


def report(epoch: int, checkpoint: str | None) -> EpochReport:
    return EpochReport(TrialId("0000"), 1, epoch, {}, 1.0, checkpoint and Checkpoint(checkpoint, epoch))


def test_a_controller_that_hears_at_once_needs_the_newest_only() -> None:
    assert superseded(["a", "b", "c", "d"], [], None) == 2


def test_an_attempt_that_is_cut_off_keeps_all_since_the_last_one_that_was_heard_of() -> None:
    reports = [report(1, "a"), report(2, "b"), report(3, "c"), report(4, "d"), report(5, "e")]
    assert superseded(["a", "b", "c", "d", "e"], reports, 2) == 0, "the one before may be asked for, too"
    assert superseded(["a", "b", "c", "d", "e"], reports, 3) == 1
    assert superseded(["a", "b", "c", "d", "e"], reports, 5) == 3, "once it is heard again"
    assert superseded(["a", "b", "c", "d", "e"], reports, 0) == 0


def test_a_copy_that_became_whole_after_the_report_is_not_taken_for_the_one_it_names() -> None:
    reports = [report(2, "a"), report(3, "a"), report(4, "b")]  # "b" is of epoch 3
    assert superseded(["a", "b", "c", "d"], reports, 3) == 0


@given(st.integers(1, 12), st.integers(0, 12), st.data())
def test_what_any_later_controller_would_ask_for_is_never_removed(
    epochs: int, known: int, data: st.DataObject
) -> None:
    lags = [data.draw(st.integers(0, 3)) for _ in range(epochs)]
    named = [max(0, epoch - lag) for epoch, lag in enumerate(lags, 1)]
    for epoch in range(1, epochs):
        named[epoch] = max(named[epoch], named[epoch - 1])
    reports = [report(e, f"c{n}" if n else None) for e, n in enumerate(named, 1)]
    places = [f"c{n}" for n in range(1, epochs + 1)]
    kept = places[superseded(places, reports, known) :]
    for heard in range(known, epochs + 1):
        asked = [r.checkpoint.path for r in reports if r.epoch <= heard and r.checkpoint]
        assert set([*dict.fromkeys(asked)][-2:]) <= set(kept)
    assert len(kept) >= min(KEPT, len(places))


def trained(folder: Path, metrics: list[float], **spec: Any) -> list[int]:
    """Let an attempt report and save epochs; return the epochs whose checkpoints are left."""
    attempt = attempt_in(folder / "attempt-2", metric="loss", **{"until": 9, **spec})
    attempt.directory.mkdir(parents=True, exist_ok=True)
    for epoch, metric in enumerate(metrics, attempt.spec.epoch + 1):
        attempt.epoch = epoch
        path = attempt.directory / f"epoch-{epoch:06d}"
        path.mkdir()
        (path / "header.json").touch()
        attempt.add_checkpoint(path)
        attempt.record({"loss": metric}, 1.0)
    return sorted(int(path.name[-6:]) for path in folder.glob("*/epoch-*"))


FOUND = [3.0, 1.0, 2.0, math.nan, 4.0, 5.0]


@pytest.mark.parametrize(
    ("spec", "left"),
    [
        ({}, [4, 5, 6]),
        ({"keeps_best": True}, [2, 4, 5, 6]),
        ({"keeps_best": True, "mode": "max"}, [4, 5, 6]),
        ({"keeps_best": True, "best_metric": 2.0}, [2, 4, 5, 6]),
        ({"keeps_best": True, "best_metric": 0.5}, [4, 5, 6]),
        ({"keeps_rungs": True, "until": 3}, [3, 4, 5, 6]),
        ({"keeps_rungs": True, "keeps_best": True, "until": 3}, [2, 3, 4, 5, 6]),
    ],
)
def test_the_best_epoch_and_rungs_stay_where_the_study_asks_for_them(
    tmp_path: Path, spec: dict[str, Any], left: list[int]
) -> None:
    assert trained(tmp_path, FOUND, **spec) == left


def test_what_was_best_until_the_controller_was_gone_stays_for_the_attempt_that_it_starts_next(
    tmp_path: Path,
) -> None:
    (tmp_path / "attempt-2").mkdir()
    (tmp_path / "attempt-2" / KNOWN).write_text("1")
    assert 1 in trained(tmp_path, [3.0, 2.0, 4.0, 1.0, 5.0, 6.0], keeps_best=True)


def test_the_best_epoch_of_an_earlier_attempt_stays(tmp_path: Path) -> None:
    best, worse = (tmp_path / "attempt-1" / f"epoch-00000{epoch}" for epoch in (1, 2))
    for path in (best, worse):
        path.mkdir(parents=True)
    spec = {"keeps_best": True, "best_metric": 0.5, "kept": (str(best),), "epoch": 2}
    own = str(tmp_path / "attempt-2" / "epoch-000002")
    assert trained(tmp_path, FOUND, resume_from=own, **spec) == [1, 6, 7, 8]


def test_checkpoints_of_attempts_that_the_controller_has_left_behind_go_and_no_others(tmp_path) -> None:
    places = [
        tmp_path / f"attempt-{number}" / name
        for number in (1, 2, 10, 11, 12)
        for name in ("epoch-000001", "epoch-000002-step-00000003", "resumed")
    ]
    for place in places:
        place.mkdir(parents=True)
        (place.parent / "report.json").touch()
    remove_superseded_attempts(tmp_path / "attempt-12", str(tmp_path / "attempt-10" / "epoch-000001"))
    left = [place for place in places if place.exists()]
    assert {place.parent.name for place in left} == {"attempt-10", "attempt-11", "attempt-12"}
    assert len(left) == 9
    assert len(list(tmp_path.glob("*/report.json"))) == 5


@pytest.mark.parametrize(
    "origin", [None, "elsewhere", "/somewhere/else/epoch-000001", "s3://b/t/attempt-1/epoch-000001"]
)
def test_nothing_goes_while_no_later_attempt_has_a_checkpoint_of_its_own(tmp_path, origin) -> None:
    place = tmp_path / "attempt-1" / "epoch-000001"
    place.mkdir(parents=True)
    remove_superseded_attempts(tmp_path / "attempt-2", origin)
    assert place.exists()


def test_the_attempt_that_wrote_what_a_trial_would_fall_back_to_is_spared(tmp_path) -> None:
    places = [tmp_path / f"attempt-{number}" / "epoch-000001" for number in (1, 2, 3, 4)]
    for place in places:
        place.mkdir(parents=True)
    remove_superseded_attempts(tmp_path / "attempt-4", str(places[2]), str(places[1]))
    assert [place.exists() for place in places] == [False, True, True, True]
    remove_superseded_attempts(tmp_path / "attempt-4", str(places[2]), "nobody knows where")
    assert [place.exists() for place in places] == [False, True, True, True]


@settings(deadline=None)
@given(st.data())
def test_a_successor_of_any_attempt_finds_the_checkpoint_that_it_is_sent_to(data: st.DataObject) -> None:
    """Attempts go on from the newest checkpoint of which the controller knows; lost ones wake up later."""
    with tempfile.TemporaryDirectory() as folder:
        known, before, awake = None, None, []
        for number in range(1, 8):
            here = Path(folder) / f"attempt-{number}"
            assert known is None or Path(known).exists()
            assert before is None or Path(before).exists(), "should the other be damaged"
            awake.append((here, known, before))
            if data.draw(st.booleans(), label="it is heard of"):
                (here / "epoch-000001").mkdir(parents=True)
                known, before = str(here / "epoch-000001"), known
            for place, *origin in data.draw(
                st.lists(st.sampled_from(awake), max_size=3), label="they report"
            ):
                remove_superseded_attempts(place, *origin)
        assert known is None or Path(known).exists()
