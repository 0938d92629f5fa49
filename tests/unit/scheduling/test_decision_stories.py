"""What a person would check by hand, told as short stories."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parsl_rasda.scheduling import VARIANTS, build_scheduler
from parsl_rasda.scheduling.base import Action, Scheduler
from parsl_rasda.testing.schedulers import play


def build(variant: str, **more: object) -> Scheduler:
    return build_scheduler({"variant": variant, "metric": "loss", "max_t": 8, **more})


def test_a_trial_worse_than_the_median_of_the_earlier_ones_stops() -> None:
    scheduler = build("stopping")
    first = scheduler.report("a", 1, 0.4)
    assert first.reason == "loss 0.4 is the first at epoch 1"
    worse = scheduler.report("b", 1, 0.8)
    assert worse.action is Action.STOP
    assert worse.reason == "loss 0.8 is worse than 0.4, the only result before it"
    between = scheduler.report("c", 1, 0.6)
    assert (between.action, between.until, between.replicas, between.rung) == (Action.CONTINUE, 2, 2, 1)
    assert between.reason == "loss 0.6 is within the best half of 2 results before it"


def test_an_equal_metric_continues() -> None:
    scheduler = build("stopping", reduction_factor=3, max_t=9)
    assert [scheduler.report(t, 1, 0.1).action for t in "abcde"] == [Action.CONTINUE] * 5


def test_with_only_diverged_trials_before_it_any_finite_metric_continues() -> None:
    scheduler = build("stopping")
    assert scheduler.report("a", 1, math.nan).reason == "loss nan is not finite"
    second = scheduler.report("b", 1, 1e300)
    assert second.action is Action.CONTINUE


def test_huge_metrics_do_not_overflow_the_percentile() -> None:
    scheduler = build("stopping", mode="max")
    scheduler.report("a", 1, 1.7e308)
    scheduler.report("b", 1, -1.7e308)
    words = "loss -1.75e+308 is worse than -1.7e+308, the limit of the best half of 2 results before it"
    assert scheduler.report("c", 1, -1.75e308).reason == words


def test_a_report_that_skips_milestones_is_judged_at_the_highest() -> None:
    scheduler = build("stopping", max_t=16)
    scheduler.report("a", 1, 0.1)
    skipped = scheduler.report("b", 5, 0.9)
    assert (skipped.action, skipped.until, skipped.rung) == (Action.CONTINUE, 8, 3)
    assert skipped.reason == "loss 0.9 is the first at epoch 5", "nobody has been at epoch 4 yet"


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_end_is_a_completion(variant: str) -> None:
    decision = build(variant, max_t=1).report("a", 1, 0.5)
    assert (decision.action, decision.completed, decision.reason) == (Action.STOP, True, "reached max_t 1")


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_trial_that_repeats_epochs_after_a_loss_is_recorded_once(variant: str) -> None:
    scheduler = build(variant, num_samples=1, reduction_factor=2)
    following = scheduler.report("a", 1, 0.5)
    if following.action is Action.PAUSE:
        assert scheduler.report("a", 1, 0.5) == following
    else:
        again = scheduler.report("a", 1, 0.5)
        assert (again.action, again.until) == (Action.CONTINUE, following.until)


def test_promotion_pauses_until_a_trial_is_among_the_best() -> None:
    scheduler = build("promotion")
    alone = scheduler.report("a", 1, 0.5)
    assert (alone.action, alone.reason) == (Action.PAUSE, "rank 1 of 1, best 0 go on")
    assert scheduler.resume_next() is None
    assert scheduler.report("b", 1, 0.7).action is Action.PAUSE
    resumed = scheduler.resume_next()
    assert (resumed.trial, resumed.until, resumed.replicas) == ("a", 2, 2)
    assert resumed.reason == "rank 1 of 2, best 1 go on"
    assert scheduler.resume_next() is None
    assert scheduler.report("c", 1, 0.1).action is Action.CONTINUE, "rank 1 of 3 goes on at once"


def test_promotion_looks_at_the_top_rung_first_and_ties_favour_the_older() -> None:
    scheduler = build("promotion")
    scheduler.add("a")
    assert [scheduler.report(t, 1, 0.5).action for t in "ba"] == [Action.PAUSE, Action.CONTINUE]
    scheduler.report("a", 2, 0.5)
    scheduler.report("c", 1, 0.9)
    scheduler.report("d", 1, 0.9)
    assert scheduler.resume_next().trial == "b"
    scheduler.report("b", 2, 0.6)
    scheduler.report("e", 1, 0.9)
    scheduler.report("f", 1, 0.9)  # of six, three may go on: c waits below, a on top
    assert [scheduler.resume_next().trial for _ in range(2)] == ["a", "c"]


def test_a_paused_trial_that_failed_is_never_resumed() -> None:
    scheduler = build("promotion")
    scheduler.report("a", 1, 0.1)
    scheduler.remove("a")
    scheduler.report("b", 1, 0.7)
    scheduler.report("c", 1, 0.8)
    scheduler.report("d", 1, 0.9)
    assert scheduler.resume_next().trial == "b"
    assert scheduler.resume_next() is None


def test_promotion_dismisses_only_who_can_never_go_on() -> None:
    scheduler = build("promotion")
    for trial in "abcd":
        scheduler.add(trial)
    scheduler.report("a", 1, 0.4)
    scheduler.report("b", 1, 0.3)
    scheduler.report("c", 1, 0.2)
    assert scheduler.dismiss() == (), "not closed: a hundred worse ones may come"
    scheduler.close()
    # of four, two will go on: a is third at best
    (stop,) = scheduler.dismiss()
    assert (stop.trial, stop.action, stop.reason) == ("a", Action.STOP, "rank 3 of 4 at most, best 2 go on")
    assert scheduler.dismiss() == ()
    assert scheduler.report("d", 1, 0.9).action is Action.PAUSE
    assert [d.trial for d in scheduler.dismiss()] == ["d"]
    assert scheduler.resume_next() is None, "b and c went on at once"


def test_promotion_keeps_a_trial_that_waits_for_company_from_below() -> None:
    scheduler = build("promotion", max_t=4)
    scheduler.report("a", 1, 0.1)
    scheduler.report("b", 1, 0.2)
    assert scheduler.resume_next().trial == "a"
    scheduler.report("a", 2, 0.1)
    scheduler.report("c", 1, 0.3)
    scheduler.report("d", 1, 0.4)
    scheduler.close()
    assert {d.trial for d in scheduler.dismiss()} == {"c", "d"}, "b may go on, and then a"
    assert scheduler.resume_next().trial == "b"
    scheduler.report("b", 2, 0.2)
    assert scheduler.resume_next().trial == "a"


def test_promotion_counts_who_went_on_at_once_among_those_that_a_rung_can_see() -> None:
    scheduler = build("promotion", max_t=4)
    for trial in "abcd":
        scheduler.add(trial)
    scheduler.report("a", 1, 0.5)
    assert scheduler.report("b", 1, 0.4).action is Action.CONTINUE
    scheduler.report("b", 2, 0.1)
    assert [scheduler.report(t, 1, m).action for t, m in (("c", 0.3), ("d", 0.2))] == [Action.CONTINUE] * 2
    assert scheduler.report("d", 2, 0.2).action is Action.PAUSE
    scheduler.close()
    reasons = {d.trial: d.reason for d in scheduler.dismiss()}
    assert reasons == {
        "a": "rank 4 of 4 at most, best 2 go on",
        "d": "rank 2 of 3 at most, best 1 go on",
    }, "c may still come, and b may go on then"


stream = st.lists(st.tuples(st.integers(0, 9), st.integers(1, 3), st.integers(0, 3)), max_size=60)


@settings(max_examples=5 * settings.default.max_examples, deadline=None)
@given(stream, st.integers(0, 10))
def test_dismissal_changes_nobody_elses_fate(reports, close_after) -> None:
    eager, patient = build("promotion", max_t=32), build("promotion", max_t=32)
    for trial in range(10):
        eager.add(str(trial)), patient.add(str(trial))
    dismissed, epochs = set(), dict.fromkeys(range(10), 0)
    for step, (trial, more, metric) in enumerate(reports):
        if step == close_after:
            eager.close()
        dismissed |= {d.trial for d in eager.dismiss()}
        if str(trial) not in dismissed:
            epochs[trial] += more
            mine, theirs = (s.report(str(trial), epochs[trial], metric) for s in (eager, patient))
            assert mine == theirs
        assert eager.resume_next() == patient.resume_next()


def test_synchronous_waits_for_the_rung_and_lets_the_best_half_on() -> None:
    scheduler = build("synchronous", num_samples=4)
    for trial in "abcd":
        scheduler.add(trial)
    assert [scheduler.report(t, 1, m).action for t, m in zip("abc", (0.3, 0.1, 0.4), strict=True)] == [
        Action.PAUSE
    ] * 3
    own = scheduler.report("d", 1, 0.2)
    assert (own.action, own.until, own.reason) == (Action.CONTINUE, 2, "rank 2 of 4, best 2 go on")
    assert scheduler.resume_next().trial == "b"
    assert scheduler.resume_next() is None
    assert {d.trial for d in scheduler.dismiss()} == {"a", "c"}


def test_synchronous_resumes_the_best_first_and_answers_the_last_loser_itself() -> None:
    scheduler = build("synchronous", num_samples=5)
    for trial, metric in zip("abcd", (0.3, 0.1, 0.4, 0.2), strict=True):
        scheduler.report(trial, 1, metric)
    assert scheduler.report("e", 1, 0.9).reason == "rank 5 of 5, best 2 go on"
    assert [scheduler.resume_next().trial for _ in range(2)] == ["b", "d"]
    assert [d.trial for d in scheduler.dismiss()] == ["a", "c"]


def test_a_failure_completes_the_rung_that_waited_for_it() -> None:
    scheduler = build("synchronous", num_samples=2)
    scheduler.add("a"), scheduler.add("b")
    scheduler.report("b", 1, 0.9)
    scheduler.remove("a")
    assert scheduler.resume_next().trial == "b"


@pytest.mark.parametrize("variant", ["promotion", "synchronous"])
def test_nobody_waits_for_a_trial_that_diverged_between_rungs(variant: str) -> None:
    scheduler = build(variant, grace_period=4, max_t=8)
    for trial in "abc":
        scheduler.add(trial)
    scheduler.close()
    scheduler.report("a", 4, 0.1)
    scheduler.report("b", 4, 0.2)
    assert scheduler.report("c", 2, math.nan).action is Action.STOP
    assert scheduler.resume_next().trial == "a"
    assert [d.trial for d in scheduler.dismiss()] == ["b"]


def test_a_survivor_that_fails_before_it_resumes_counts_as_last_at_the_next_rung() -> None:
    scheduler = build("synchronous", num_samples=5)
    for trial, metric in zip("abcde", (0.1, 0.2, 0.3, 0.4, 0.5), strict=True):
        scheduler.report(trial, 1, metric)
    scheduler.remove("a")
    assert scheduler.resume_next().trial == "b"
    assert scheduler.resume_next() is None
    assert scheduler.report("b", 2, 0.7).reason == "rank 1 of 2, best 1 go on"


def test_closing_completes_a_rung_when_the_search_space_ran_out() -> None:
    scheduler = build("synchronous", num_samples=100)
    scheduler.report("a", 1, 0.5)
    scheduler.report("b", 1, 0.4)
    assert scheduler.resume_next() is None
    scheduler.close()
    assert scheduler.resume_next().trial == "b"


def test_a_larger_budget_makes_a_new_cohort_and_leaves_the_decided_one_alone() -> None:
    scheduler = build("synchronous")
    scheduler.report("a", 1, 0.5)
    scheduler.close()
    assert scheduler.resume_next().trial == "a"
    assert scheduler.report("late", 1, 0.6).action is Action.PAUSE
    scheduler.close()
    assert scheduler.resume_next().trial == "late"


def test_a_synchronous_trial_that_overshoots_counts_at_each_milestone_it_passed() -> None:
    scheduler = build("synchronous", num_samples=4, max_t=8)
    for trial, epoch, metric in (("a", 4, 0.1), ("b", 1, 0.2), ("c", 1, 0.3)):
        assert scheduler.report(trial, epoch, metric).action is Action.PAUSE
    assert scheduler.report("d", 1, 0.4).action is Action.STOP
    assert scheduler.resume_next().trial == "b", "a is at the next rung already"
    assert scheduler.report("b", 2, 0.2).action is Action.STOP
    resumed = scheduler.resume_next()
    assert (resumed.trial, resumed.until) == ("a", 8), "alone at epoch 4, which it has passed too"


@given(st.lists(st.sampled_from([0.1, 0.2, 0.3, math.nan]), min_size=1, max_size=12), st.integers())
def test_two_orders_of_arrival_end_the_same(metrics, seed) -> None:
    def fates(order: int) -> list[tuple[str, int, bool]]:
        decisions = play(
            build("synchronous", max_t=9),
            [str(i) for i in range(len(metrics))],
            lambda trial, epoch: metrics[int(trial)] / epoch,
            random.Random(order),
        )
        return sorted((d.trial, d.until, d.completed) for d in decisions if d.action is Action.STOP)

    assert fates(seed) == fates(seed + 1)
