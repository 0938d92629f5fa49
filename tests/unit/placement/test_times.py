from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from parsl_rasda.placement.cluster_state import NO_CAUTION, ClusterState, PendingTrial, RunningTrial
from parsl_rasda.placement.ledger import Ledger
from parsl_rasda.placement.times import Assumed, Times
from parsl_rasda.types import NodeName, NodeSlots, PilotId, Placement, SiteName, Stretch, TrialId

A, B, T, U = SiteName("a"), SiteName("b"), TrialId("t"), TrialId("u")


def test_what_is_assumed_holds_until_something_is_measured() -> None:
    times = Times(Assumed(60.0, 10.0, 0.9))
    assert times.epoch_s(T, 1, A) == 60.0
    assert times.epoch_s(T, 4, A) == pytest.approx(60.0 / (4 * 0.81))
    assert (times.restart_s, times.efficiency, times.typical_epoch_s(1)) == (10.0, 0.9, None)


def test_a_measured_width_is_taken_as_it_is_and_others_are_scaled_from_the_nearest() -> None:
    times = Times(Assumed(60.0, 10.0, 1.0))
    times.saw_epoch(T, 2, A, 50.0)
    assert times.epoch_s(T, 2, A) == 50.0
    assert times.epoch_s(T, 4, A) == 25.0
    times.saw_epoch(T, 8, A, 40.0)
    assert times.epoch_s(T, 8, A) == 40.0
    assert times.epoch_s(T, 16, A) == 40.0 / (2 * times.efficiency)


def test_other_trials_of_a_site_tell_what_to_expect_of_a_new_one_there() -> None:
    times = Times(Assumed(60.0, 10.0, 1.0))
    for trial, seconds in (("x", 10.0), ("y", 12.0), ("z", 90.0)):
        times.saw_epoch(TrialId(trial), 1, A, seconds)
    assert times.epoch_s(T, 1, A) == 12.0
    assert times.epoch_s(T, 1, B) == 60.0, "another machine is another matter"


def test_a_trial_that_changes_its_site_is_measured_anew() -> None:
    times = Times(Assumed(60.0, 10.0, 1.0))
    times.saw_epoch(T, 1, A, 10.0)
    times.saw_epoch(T, 1, B, 30.0)
    assert times.epoch_s(T, 2, B) == 15.0
    assert times.epoch_s(U, 1, A) == 60.0


def test_the_efficiency_is_the_median_of_what_doublings_gave() -> None:
    times = Times(Assumed(60.0, 10.0, 0.9))
    for trial in ("x", "y", "z"):
        times.saw_epoch(TrialId(trial), 1, A, 100.0)
        times.saw_epoch(TrialId(trial), 2, A, 100.0 / 1.4)
    assert times.efficiency == pytest.approx(0.7)


def test_the_typical_epoch_is_the_median_over_all_trials_and_sites() -> None:
    times = Times(Assumed(60.0, 10.0, 1.0))
    for trial, site, seconds in (("x", A, 10.0), ("y", B, 12.0), ("z", B, 90.0), ("z", A, 11.0)):
        times.saw_epoch(TrialId(trial), 1, site, seconds)
    assert times.typical_epoch_s(1) == 11.0
    assert times.typical_epoch_s(2) == 5.5


def test_the_slowest_restart_is_never_forgotten() -> None:
    times = Times(Assumed(60.0, 1.0, 0.9))
    times.saw_restart(3.0)
    for _ in range(20):
        times.saw_restart(1.0)
    assert times.restart_s == 3.0


def test_what_is_assumed_and_what_launches_took_count_until_a_few_restarts_were_seen() -> None:
    """The first resize may be one inside a node, the next one over many."""
    times = Times(Assumed(60.0, 10.0, 0.9))
    times.saw_restart(3.0)
    assert times.restart_s == 10.0
    times.saw_launch(25.0, A)
    times.saw_restart(2.0)
    times.saw_restart(2.0)
    assert times.restart_s == 25.0
    times.saw_restart(1.0)
    assert times.restart_s == 3.0


def test_one_absurd_restart_does_not_end_all_growth_but_a_second_one_counts() -> None:
    times = Times(Assumed(60.0, 1.0, 0.9))
    for seconds in (2.0, 3.0, 600.0, 1.0):
        times.saw_restart(seconds)
    assert times.restart_s == 3.0
    times.saw_restart(500.0)
    assert times.restart_s == 600.0


def test_stretches_of_a_script_that_differ_tell_its_start_from_its_epochs() -> None:
    times = Times(Assumed(restart_s=60.0))
    for trial, epoch_s in (("a", 2.0), ("b", 3.0)):
        times.saw_stretch(TrialId(trial), 1, A, 1, 15.0 + epoch_s)
    assert times.script_start_s(A) is None
    assert times.epoch_s(TrialId("b"), 1, A) == 18.0
    assert times.restart_s == 60.0
    times.saw_stretch(TrialId("a"), 1, A, 2, 15.0 + 2 * 2.0)
    assert times.script_start_s(A) == pytest.approx(15.0)
    assert times.epoch_s(TrialId("a"), 1, A) == pytest.approx(2.0)
    assert times.epoch_s(TrialId("b"), 1, A) == pytest.approx(3.0), "what was seen before is corrected"
    assert times.launch_s(A) == pytest.approx(15.0)
    assert times.restart_s == 60.0, "a few must be seen"
    for done in range(2, 5):
        times.saw_stretch(TrialId("a"), 1, A, 2**done, 15.0 + 2**done * 2.0)
    assert times.restart_s == pytest.approx(15.0)


def test_a_script_that_widens_is_told_apart_by_the_efficiency_that_is_assumed() -> None:
    times = Times(Assumed(efficiency=0.9))
    for width, epochs in ((1, 1), (2, 1), (4, 2)):
        times.saw_stretch(TrialId("a"), width, A, epochs, 12.0 + epochs * 6.0 / times_faster(width))
    assert times.script_start_s(A) == pytest.approx(12.0)
    assert times.epoch_s(TrialId("a"), 4, A) == pytest.approx(6.0 / times_faster(4))
    assert times.efficiency == 0.9, "nothing of it was measured"


def times_faster(width: int) -> float:
    return float(width * 0.9 ** math.log2(width))


def test_stretches_of_a_site_that_a_trial_has_left_change_nothing_of_it() -> None:
    times = Times(Assumed())
    times.saw_stretch(TrialId("a"), 1, A, 1, 10.0)
    times.saw_stretch(TrialId("a"), 1, B, 1, 30.0)
    for epochs in (1, 2):
        times.saw_stretch(TrialId("b"), 1, A, epochs, 8.0 + epochs)
    assert times.epoch_s(TrialId("a"), 1, B) == 30.0


@given(
    st.floats(0.0, 60.0),
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from([1, 2, 4]), st.integers(1, 8)),
        min_size=1,
        max_size=12,
    ),
)
def test_a_start_that_is_the_same_each_time_is_found_as_soon_as_it_can_be(
    start_s: float, runs: list[tuple[str, int, int]]
) -> None:
    times, works = Times(Assumed(efficiency=1.0)), dict[str, set[float]]()
    for trial, width, epochs in runs:
        epoch_s = {"a": 1.0, "b": 2.0, "c": 5.0}[trial] / width
        times.saw_stretch(TrialId(trial), width, A, epochs, start_s + epochs * epoch_s)
        works.setdefault(trial, set()).add(epochs / width)
    if any(max(work) > 1.2 * min(work) for work in works.values()):
        assert times.script_start_s(A) == pytest.approx(start_s, abs=1e-6)
    assert all(times.epoch_s(TrialId(t), w, A) > 0 for t, w, _ in runs)


@given(st.lists(st.floats(0.0, 1e6), min_size=2), st.randoms())
def test_a_restart_is_underestimated_at_most_once(seen: list[float], random: Random) -> None:
    times = Times(Assumed(restart_s=0.0))
    random.shuffle(seen)
    for seconds in seen:
        times.saw_restart(seconds)
    assert sum(seconds > times.restart_s for seconds in seen) <= 1


@example([(0, 3, 1e-300), (0, 2, 3.6e305)])
@example([(0, 4, 1.7e307)])
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.floats(allow_nan=True)), max_size=30))
def test_whatever_is_measured_every_estimate_is_a_positive_time(seen: list[tuple[int, int, float]]) -> None:
    times = Times(Assumed())
    for trial, doublings, seconds in seen:
        times.saw_epoch(TrialId(str(trial)), 2**doublings, A, seconds)
    for trial in range(6):
        for doublings in range(6):
            found = times.epoch_s(TrialId(str(trial)), 2**doublings, A)
            assert found > 0
            assert math.isfinite(found)


def cluster() -> ClusterState:
    return ClusterState(Ledger(), Times(Assumed(10.0, 1.0, 1.0)), num_workers=2, max_epochs=8, step=2)


def running(trial: str, age: int, width: int, *, at: float = 0.0, until: int = 4) -> RunningTrial:
    placement = Placement(A, PilotId("p"), (NodeSlots(NodeName("n"), tuple(range(width))),))
    return RunningTrial(TrialId(trial), age, placement, at, Stretch(2, until, 8))


def test_world_sizes_are_the_divisors_of_the_replicas_on_the_ladder() -> None:
    assert cluster().world_sizes(2) == (2,)
    assert cluster().world_sizes(8) == (2, 4, 8)
    assert cluster().world_sizes(12) == (2, 4, 12)
    assert cluster().world_sizes(1) == (1,)


def test_the_deepest_and_then_the_oldest_waits_in_front() -> None:
    made = cluster()
    for trial, age, epoch in (("a", 0, 0), ("b", 1, 4), ("c", 2, 4), ("d", 3, 8)):
        made.enqueue(PendingTrial(TrialId(trial), age, Stretch(epoch, 8, 2)))
    assert [w.trial for w in made.waiting] == ["d", "b", "c", "a"]
    made.dequeue(TrialId("b"))
    made.dequeue(TrialId("b"))
    assert [w.trial for w in made.waiting] == ["d", "c", "a"]


def test_once_a_kind_is_refused_the_queue_goes_on_without_it() -> None:
    made = cluster()
    waiting = (("a", 0, 8, 4), ("b", 1, 4, 2), ("c", 2, 4, 4), ("d", 3, 0, 2), ("e", 4, 0, 4))
    for trial, age, epoch, replicas in waiting:
        made.enqueue(PendingTrial(TrialId(trial), age, Stretch(epoch, 16, replicas)))
    refused: set = set()
    seen = []
    for one in made.queue(refused):
        seen.append(one.trial)
        if one.trial == "c":
            refused.add(one.kind)
    assert seen == ["a", "b", "c", "d"]
    assert set(made.kinds) == {(4, None, NO_CAUTION), (2, None, NO_CAUTION)}
    made.enqueue(PendingTrial(TrialId("a"), 0, Stretch(0, 16, 2)))
    assert [w.trial for w in made.waiting] == ["b", "c", "a", "d", "e"], "nobody waits twice"


def test_who_would_end_last_is_the_first_to_grow_and_who_cannot_grow_is_not_asked() -> None:
    made = cluster()
    made.place(running("early", 0, 4, at=0.0))
    made.place(running("late", 1, 4, at=100.0))
    made.place(running("narrow", 2, 2, at=90.0))
    made.place(running("full", 3, 8, at=900.0))
    made.place(running("at rung", 4, 2, at=900.0, until=2))
    assert [r.trial for _, r in made.growable()] == ["narrow", "late", "early"]
    made.place(running("late", 1, 4, at=10.0))
    assert [r.trial for _, r in made.growable()] == ["narrow", "late", "early"]
    made.unplace(TrialId("narrow"))
    made.unplace(TrialId("narrow"))
    assert [r.trial for _, r in made.growable()] == ["late", "early"]
