"""Which checkpoints may go: none that a controller may still name to a successor."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from parsl_rasda.handoff import EpochReport
from parsl_rasda.runtime.retention import KEPT, superseded
from parsl_rasda.vocabulary import TrialId


def report(epoch: int, checkpoint: str | None) -> EpochReport:
    return EpochReport(TrialId("0000"), 1, epoch, {}, 1.0, checkpoint)


def test_a_controller_that_hears_at_once_needs_the_newest_only() -> None:
    assert superseded(["a", "b", "c", "d"], [], None) == 2


def test_an_attempt_that_is_cut_off_keeps_all_since_the_last_one_that_was_heard_of() -> None:
    reports = [report(1, "a"), report(2, "b"), report(3, "c"), report(4, "d"), report(5, "e")]
    assert superseded(["a", "b", "c", "d", "e"], reports, 2) == 1
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
        asked = [r.checkpoint for r in reports if r.epoch <= heard and r.checkpoint]
        assert not asked or asked[-1] in kept
    assert len(kept) >= min(KEPT, len(places))
