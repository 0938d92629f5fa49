from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parsl_rasda.errors import InvalidFileError
from parsl_rasda.placement.cluster_state import ClusterState, PendingTrial, RunningTrial
from parsl_rasda.placement.growth import build_growth
from parsl_rasda.placement.ledger import Ledger
from parsl_rasda.placement.times import Assumed, Times
from parsl_rasda.testing.growth import random_cluster
from parsl_rasda.types import NodeName, NodeSlots, PilotId, SiteName, Stretch, TrialId

SEEDS = range(2000)
EPSILON_S = 1e-6


def cluster_of(
    restart_s: float = 0.1, *, epoch_s: float = 1.0, efficiency: float = 0.9, **sites: int
) -> ClusterState:
    """One pilot with one node a site."""
    made = ClusterState(
        Ledger(), Times(Assumed(epoch_s, restart_s, efficiency)), num_workers=1, max_epochs=16, step=2
    )
    for site, gpus in sites.items():
        node = NodeSlots(NodeName(f"{site}-n"), tuple(range(gpus)))
        made.ledger.add_pilot(PilotId(site), SiteName(site), (node,))
    return made


def run(
    on: ClusterState, trial: str, *, width: int, replicas: int, site: str = "a", at: float = 1.0, **named
) -> RunningTrial:
    placement = on.ledger.find(width, site=SiteName(site))
    assert placement is not None
    on.ledger.take(placement)
    epoch, until = named.get("epoch", 8), named.get("until", 16)
    running = RunningTrial(TrialId(trial), int(trial[1:]), placement, at, Stretch(epoch, until, replicas))
    on.place(running)
    return running


def stands(on: ClusterState, running: RunningTrial) -> RunningTrial:
    """The trial is at its boundary now."""
    on.unplace(running.trial)
    return running


def queue(
    on: ClusterState, trial: str, *, replicas: int = 1, epoch: int = 0, site: str | None = None
) -> None:
    on.enqueue(
        PendingTrial(
            TrialId(trial), int(trial[1:]), Stretch(epoch, 2 * epoch or 1, replicas), site and SiteName(site)
        )
    )


# --------------------------------------------------------------------------------- elastic, any cluster


def test_elastic_never_widens_while_somebody_waits_for_the_same_slots() -> None:
    policy = build_growth("elastic")
    for seed in SEEDS:
        made, here = random_cluster(seed)
        found = policy.decide(made, 0.0, here)
        left = [w for w in made.waiting if w.trial not in found.starts]
        if here is None or found.here is None:
            continue
        if made.new_trials or any(w.site in {None, here.placement.site} for w in left):
            assert found.here.world_size < here.placement.world_size, "only to let others in"
            assert found.here.world_size >= made.num_workers
        else:
            assert found.here.world_size > here.placement.world_size


def test_elastic_resizes_only_if_the_certain_epochs_gain_more_than_the_restart() -> None:
    policy = build_growth("elastic")
    grown = 0
    for seed in SEEDS:
        made, here = random_cluster(seed)
        found = policy.decide(made, 0.0, here)
        if here is not None and found.here is not None and found.here.world_size > here.placement.world_size:
            certain = here.ahead.until - here.ahead.epoch
            gain_s = made.epoch_s(here, here.placement.world_size) - made.epoch_s(here, found.here.world_size)
            assert certain * gain_s > made.times.restart_s
            grown += 1
    assert grown > 100


def test_elastic_starts_whoever_fits_at_the_width_of_the_start_or_more() -> None:
    policy = build_growth("elastic")
    for seed in SEEDS:
        made, here = random_cluster(seed)
        found = policy.decide(made, 0.0, here)
        for placement in found.starts.values():
            made.ledger.take(placement)
        if found.here is not None:
            made.ledger.take(found.here.minus(here.placement))
        for waiting in made.waiting:
            if waiting.trial not in found.starts:
                width = min(waiting.stretch.replicas, made.num_workers)
                assert made.ledger.find(width, site=waiting.site) is None, "nobody waits beside idle slots"


# --------------------------------------------------------------------------------- elastic, stories


def test_the_longest_path_widens_first_and_free_slots_are_kept_for_it() -> None:
    """Two want the one free slot: the one that ends later gets it, although it is not at a boundary."""
    made = cluster_of(a=3)
    here = run(made, "t0", width=1, replicas=2, at=1.0)
    run(made, "t1", width=1, replicas=2, at=500.0)
    policy = build_growth("elastic")
    assert policy.decide(made, 1.0, stands(made, here)).here is None
    made.unplace(TrialId("t1"))
    assert policy.decide(made, 1.0, here).here.world_size == 2


def test_it_widens_at_once_to_the_widest_that_fits_and_pays() -> None:
    made = cluster_of(a=8)
    here = run(made, "t0", width=1, replicas=16)
    assert build_growth("elastic").decide(made, 0.0, stands(made, here)).here.world_size == 8


def test_it_stays_where_a_wider_start_was_seen_to_be_slower() -> None:
    made = cluster_of(a=4)
    here = run(made, "t0", width=1, replicas=4)
    made.times.saw_epoch(here.trial, 1, SiteName("a"), 10.0)
    made.times.saw_epoch(here.trial, 4, SiteName("a"), 12.0)
    assert build_growth("elastic").decide(made, 0.0, stands(made, here)).here.world_size == 2


def test_a_trial_that_starts_does_not_take_slots_that_would_slow_it_down() -> None:
    made = cluster_of(a=4)
    queue(made, "t0", replicas=4, epoch=4)
    for width, seconds in ((1, 10.0), (2, 12.0), (4, 15.0)):
        made.times.saw_epoch(TrialId("t0"), width, SiteName("a"), seconds)
    assert build_growth("elastic").decide(made, 0.0).starts[TrialId("t0")].world_size == 1


def test_a_trial_that_starts_alone_starts_as_wide_as_it_may() -> None:
    made = cluster_of(restart_s=1e9, a=4)
    queue(made, "t0", replicas=8, epoch=8)
    assert build_growth("elastic").decide(made, 0.0).starts[TrialId("t0")].world_size == 4


def test_a_late_trial_is_let_in_by_shrinking_a_wide_one() -> None:
    made = cluster_of(a=8)
    here = run(made, "t0", width=8, replicas=8)
    queue(made, "t1")
    found = build_growth("elastic").decide(made, 0.0, stands(made, here))
    assert found.here.world_size == 4
    assert set(found.here.slots) < set(here.placement.slots)


def test_nobody_shrinks_further_than_those_who_wait_need() -> None:
    made = cluster_of(a=8)
    here = run(made, "t0", width=8, replicas=8)
    for age in range(1, 5):
        queue(made, f"t{age}")
    assert build_growth("elastic").decide(made, 0.0, stands(made, here)).here.world_size == 4


def test_nobody_shrinks_while_another_is_about_to_free_enough() -> None:
    made = cluster_of(a=8, b=1)
    here = run(made, "t0", width=4, replicas=4)
    other = run(made, "t1", width=4, replicas=4)
    elsewhere = run(made, "t2", width=1, replicas=1, site="b")
    queue(made, "t3")
    policy = build_growth("elastic")
    made.leave(elsewhere.trial, elsewhere.placement, 0.0)
    assert policy.decide(made, 0.0, stands(made, here)).here is not None, "it may be pinned by then"
    made.leave(other.trial, other.placement, 0.0)
    assert policy.decide(made, 0.0, here).here is None
    made.unplace(TrialId("t1"))
    assert policy.decide(made, 0.0, here).here is not None, "it has left, and somebody took them"


def test_nobody_shrinks_for_less_than_two_restarts_of_certain_training() -> None:
    made = cluster_of(restart_s=5.0, a=8)
    here = run(made, "t0", width=8, replicas=8, epoch=15)
    queue(made, "t1")
    assert build_growth("elastic").decide(made, 0.0, stands(made, here)).here is None


def test_nobody_shrinks_for_a_trial_that_may_only_run_elsewhere() -> None:
    made = cluster_of(a=8, b=1)
    here = run(made, "t0", width=8, replicas=8)
    run(made, "t1", width=1, replicas=1, site="b")
    queue(made, "t2", epoch=4, site="b")
    assert build_growth("elastic").decide(made, 0.0, stands(made, here)).here is None


def test_a_trial_whose_site_is_away_does_not_keep_others_from_growing() -> None:
    made = cluster_of(a=8)
    here = run(made, "t0", width=1, replicas=8)
    queue(made, "t2", epoch=4, site="away")
    assert build_growth("elastic").decide(made, 0.0, stands(made, here)).here.world_size == 8


def test_a_trial_that_cannot_widen_itself_does_not_look_at_the_others() -> None:
    """Free slots that are of no use to it are none of its business, however many would like them."""
    made = cluster_of(a=4, b=2)
    here = run(made, "t0", width=4, replicas=8)
    run(made, "t1", width=1, replicas=2, site="b")
    made.growable = None
    assert build_growth("elastic").decide(made, 0.0, stands(made, here)).here is None


def test_slots_are_kept_for_a_few_only() -> None:
    made = cluster_of(a=40)
    here = run(made, "t0", width=1, replicas=2, at=1.0)
    for age in range(1, 20):
        run(made, f"t{age}", width=1, replicas=2, at=500.0)
    policy = build_growth("elastic")
    assert policy.decide(made, 1.0, stands(made, here)).here.world_size == 2, "there is enough for all"
    made.ledger.take(made.ledger.find(3))
    assert policy.decide(made, 1.0, here).here.world_size == 2, "17 are left, and no more than 16 are kept"
    made.ledger.take(made.ledger.find(1))
    assert policy.decide(made, 1.0, here).here is None


# --------------------------------------------------------------------------------- one task after another


# --------------------------------------------------------------------------------- slots about to be free


def leave(on: ClusterState, running: RunningTrial, at: float = 0.0) -> RunningTrial:
    on.leave(running.trial, running.placement, at)
    return running


def test_a_start_waits_for_slots_that_are_about_to_be_free() -> None:
    made = cluster_of(a=4)
    leaving = [leave(made, run(made, f"t{i}", width=1, replicas=1)) for i in range(3)]
    queue(made, "t3", replicas=4, epoch=4)
    found = build_growth("elastic").decide(made, 0.0)
    assert (dict(found.starts), dict(found.postponed)) == ({}, {TrialId("t3"): pytest.approx(0.1)})
    for one in leaving:
        made.unplace(one.trial)
        made.ledger.release(one.placement)
    (placement,) = build_growth("elastic").decide(made, 0.01).starts.values()
    assert placement.world_size == 4


@pytest.mark.parametrize(
    ("restart_s", "now", "waited_since"),
    [
        pytest.param(10.0, 0.0, None, id="a release may take longer than it gains"),
        pytest.param(0.1, 0.2, None, id="those that leave are late, and may never come to an end"),
        pytest.param(0.1, 50.0, 0.0, id="it has waited for longer than it gains"),
    ],
)
def test_a_start_does_not_wait_for_what_does_not_pay(
    restart_s: float, now: float, waited_since: float | None
) -> None:
    made = cluster_of(restart_s, a=4)
    told_at = 0.0 if waited_since is None else now
    for i in range(3):
        leave(made, run(made, f"t{i}", width=1, replicas=1), told_at)
    queue(made, "t3", replicas=4, epoch=4)
    if waited_since is not None:
        made.postpone(TrialId("t3"), waited_since)
    found = build_growth("elastic").decide(made, now)
    assert (len(found.starts), len(found.postponed)) == (1, 0)


def test_slots_about_to_be_free_are_first_for_those_who_cannot_start() -> None:
    made = cluster_of(a=4)
    for i in range(3):
        leave(made, run(made, f"t{i}", width=1, replicas=1))
    for i in range(3, 7):
        queue(made, f"t{i}", replicas=4, epoch=4)
    found = build_growth("elastic").decide(made, 0.0)
    assert [p.world_size for p in found.starts.values()] == [1], "three wait for the other three"
    assert not found.postponed


def test_nobody_waits_for_slots_to_which_a_trial_returns() -> None:
    made = cluster_of(a=2)
    made.return_later(leave(made, run(made, "t0", width=1, replicas=1)).trial, Stretch(4, 8, 2))
    queue(made, "t1", replicas=2, epoch=4)
    found = build_growth("elastic").decide(made, 0.0)
    assert [p.world_size for p in found.starts.values()] == [1]


def test_a_trial_at_a_boundary_leaves_for_slots_that_are_about_to_be_free() -> None:
    made = cluster_of(a=4)
    here = stands(made, run(made, "t0", width=2, replicas=4))
    leave(made, run(made, "t1", width=2, replicas=2))
    policy = build_growth("elastic")
    assert policy.decide(made, 0.0, here).requeue
    assert not policy.decide(made, 0.2, here).requeue, "the other is late, and may never leave"


@pytest.mark.parametrize(
    ("restart_s", "epoch", "others"),
    [
        pytest.param(2.0, 8, 0, id="a restart and a release take longer than it gains"),
        pytest.param(0.1, 8, 1, id="another that returns wants them"),
        pytest.param(0.1, 16, 0, id="none of its epochs is certain"),
    ],
)
def test_a_trial_at_a_boundary_does_not_leave_for_what_is_not_certain(
    restart_s: float, epoch: int, others: int
) -> None:
    made = cluster_of(restart_s, a=8)
    here = stands(made, run(made, "t0", width=2, replicas=4, epoch=epoch))
    leave(made, run(made, "t1", width=2, replicas=2))
    for i in range(others):
        other = leave(made, run(made, f"t{2 + i}", width=2, replicas=2))
        made.return_later(other.trial, Stretch(8, 16, 4))
    run(made, "t9", width=made.ledger.free, replicas=made.ledger.free)
    assert not build_growth("elastic").decide(made, 0.0, here).requeue


def test_nobody_waits_for_slots_that_are_set_aside_while_they_are_left() -> None:
    made = cluster_of(a=4)
    for i in range(3):
        leave(made, run(made, f"t{i}", width=1, replicas=1))
    made.ledger.set_aside((SiteName("a"), NodeName("a-n"), gpu) for gpu in range(3))
    free = made.ledger.free
    queue(made, "t3", replicas=4, epoch=4)
    assert len(build_growth("elastic").decide(made, 0.0).starts) == free == 1
    assert made.ledger.free == free


def test_a_start_waits_for_twice_the_slowest_release_seen_and_no_longer() -> None:
    made = cluster_of(restart_s=3.0, a=4)
    for seconds in (0.5, 0.2, 0.4):
        made.times.saw_release(seconds, SiteName("a"))
    for i in range(3):
        leave(made, run(made, f"t{i}", width=1, replicas=1))
    queue(made, "t3", replicas=4, epoch=4)
    assert build_growth("elastic").decide(made, 0.0).postponed == {TrialId("t3"): pytest.approx(1.0)}
    assert made.times.release_s(SiteName("b")) == 3.0, (
        "nobody has left there: a restart, of which it is a part"
    )


def test_a_stretch_is_divided_in_the_middle_while_its_trial_may_widen_and_tasks_are_cheap() -> None:
    made, policy = cluster_of(restart_s=0.1, epoch_s=1.0, a=4), build_growth("elastic")
    narrow = run(made, "t0", width=1, replicas=2, epoch=8, until=16)
    assert policy.returns_at(made, narrow) == 12
    assert policy.returns_at(made, replace(narrow, ahead=Stretch(13, 16, 2))) == 15, "rounded up"
    assert policy.returns_at(made, replace(narrow, ahead=Stretch(15, 16, 2))) == 16
    assert policy.returns_at(made, replace(narrow, ahead=Stretch(8, 16, 1))) == 16, "as wide as it may be"
    made.times.saw_launch(0.14, SiteName("a"))
    assert policy.returns_at(made, narrow) == 12
    assert policy.returns_at(made, replace(narrow, ahead=Stretch(15, 16, 2))) == 16, "not worth eight tasks"
    made.times.saw_launch(0.16, SiteName("a"))
    assert policy.returns_at(made, narrow) == 16, "a task is dear"
    assert (
        build_growth("strict").returns_at(made, narrow) == build_growth("none").returns_at(made, narrow) == 16
    )


def test_a_stretch_is_not_divided_where_no_wider_placement_exists() -> None:
    made = cluster_of(a=4, b=1)
    assert build_growth("elastic").returns_at(made, run(made, "t0", width=1, replicas=4, site="b")) == 16


# --------------------------------------------------------------------------------- strict and none


def test_strict_starts_at_the_full_width_or_not_at_all() -> None:
    policy = build_growth("strict")
    for seed in SEEDS:
        made, here = random_cluster(seed)
        found = policy.decide(made, 0.0, here)
        assert found.here is None
        assert found.requeue == (here is not None and here.placement.world_size != here.ahead.replicas)
        replicas = {w.trial: w.stretch.replicas for w in made.waiting}
        assert all(p.world_size == replicas[t] for t, p in found.starts.items())


@given(st.integers(1, 7), st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9)), min_size=1, max_size=9))
def test_strict_never_starves_a_wide_trial_behind_an_endless_stream_of_narrow_ones(
    busy: int, stream: list[tuple[int, int]]
) -> None:
    """Each second some narrow ones come, for some seconds each: 8 slots are never free by themselves."""
    policy, made = build_growth("strict"), cluster_of(a=8)
    ends: list[tuple[int, RunningTrial]] = [(9, run(made, f"t{i}", width=1, replicas=1)) for i in range(busy)]
    queue(made, "t100", replicas=8, epoch=8)
    passed, age = 0, 101
    for now in range(300):
        for end, running in [e for e in ends if e[0] <= now]:
            made.unplace(running.trial)
            made.ledger.release(running.placement)
            ends.remove((end, running))
        come, last = stream[now % len(stream)]
        for _ in range(come or now == 0):
            queue(made, f"t{age}")
            age += 1
        started = policy.decide(made, float(now)).starts
        if "t100" in started:
            return
        passed += len(started)
        assert passed <= busy, "each of those in the study may pass once"
        for trial, placement in started.items():
            made.admit(trial)
            made.ledger.take(placement)
            running = RunningTrial(trial, int(trial[1:]), placement, 0.0, Stretch(0, 1, 1))
            made.place(running)
            ends.append((now + last, running))
    raise AssertionError("the wide trial never started")


def test_strict_lets_narrow_trials_past_one_that_does_not_fit() -> None:
    made = cluster_of(a=4)
    run(made, "t0", width=1, replicas=1)
    queue(made, "t1", replicas=4, epoch=4)
    queue(made, "t2")
    assert set(build_growth("strict").decide(made, 0.0).starts) == {"t2"}


def test_without_growth_nobody_is_ever_resized() -> None:
    policy = build_growth("none")
    for seed in SEEDS:
        made, here = random_cluster(seed)
        found = policy.decide(made, 0.0, here)
        assert found.here is None
        assert not found.requeue
        assert {p.world_size for p in found.starts.values()} <= {made.num_workers}


def test_an_unknown_policy_is_refused_with_those_there_are() -> None:
    with pytest.raises(InvalidFileError, match="elastic"):
        build_growth("eager")
