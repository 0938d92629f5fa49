"""What every scheduler must do: a suite for the built-in ones and for plug-ins, and a study to play.

A plug-in author's whole test file::

    class TestMine(SchedulerContract):
        def build(self, **settings):
            return build_scheduler({"kind": "mine", **settings})
"""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from parsl_rasda.scheduling.base import Action, Decision, Extensible, Scheduler
from parsl_rasda.types import TrialId


def play(
    scheduler: Scheduler,
    trials: Sequence[TrialId],
    metric: Callable[[TrialId, int], float | None],
    rng: random.Random,
) -> list[Decision]:
    """Return every decision of a study whose running trials report in an order drawn from ``rng``.

    Each trial trains from milestone to milestone, as on a machine with a slot for everyone.

    Args:
        scheduler: A fresh one; all trials are added, then it is closed.
        trials: In order of age.
        metric: The result of a trial after some epochs; None if it fails there.
        rng: Draws who reports next.
    """
    first = [scheduler.add(trial) for trial in trials]
    scheduler.close()
    return [*first, *play_on(scheduler, first, metric, rng)]


def play_on(
    scheduler: Scheduler,
    first: Sequence[Decision],
    metric: Callable[[TrialId, int], float | None],
    rng: random.Random,
) -> list[Decision]:
    """Return what is decided from the first stretches of trials on; see `play`."""
    running = {decision.trial: decision for decision in first}
    decisions: list[Decision] = []
    while running:
        trial = rng.choice(sorted(running))
        value = metric(trial, running[trial].until)
        answers = []
        if value is None:
            scheduler.remove(trial)
        else:
            answers.append(scheduler.report(trial, running[trial].until, value))
        del running[trial]
        while (resumed := scheduler.resume_next()) is not None:
            answers.append(resumed)
        running |= {answer.trial: answer for answer in answers if answer.action is Action.CONTINUE}
        decisions += [*answers, *scheduler.dismiss()]
    return decisions


class SchedulerContract(ABC):
    """Inherit and write `build`; pytest finds the rest.

    The contract is about any scheduler of the port `Scheduler`, whatever its rule: stretches follow
    the milestones, ends are final, nobody is left waiting, and the same calls give the same answers.
    """

    @abstractmethod
    def build(self, **settings: object) -> Scheduler:
        """Return a fresh scheduler with these keys of the study's ``scheduler`` block."""

    def test_milestones_ascend_to_max_t(self) -> None:
        milestones = self.build(grace_period=1, max_t=9).milestones
        assert list(milestones) == sorted(set(milestones))
        assert milestones[0] >= 1
        assert milestones[-1] == 9

    def test_the_first_stretch_ends_at_the_first_milestone(self) -> None:
        scheduler = self.build(max_t=9)
        first = scheduler.add(_named(0))
        assert (first.trial, first.action, first.rung) == (_named(0), Action.CONTINUE, 0)
        assert (first.until, first.replicas) == (scheduler.milestones[0], scheduler.replicas(0))

    def test_between_rungs_a_trial_continues_to_the_same_milestone(self) -> None:
        scheduler = self.build(grace_period=3, max_t=9)
        first = scheduler.add(_named(0))
        between = scheduler.report(_named(0), 1, 0.5)
        assert (between.action, between.until) == (Action.CONTINUE, first.until)

    def test_a_report_of_an_unknown_trial_adds_it(self) -> None:
        decision = self.build(grace_period=3, max_t=9).report(_named(7), 1, 0.5)
        assert (decision.trial, decision.action, decision.until) == (_named(7), Action.CONTINUE, 3)

    def test_a_metric_that_is_not_finite_stops_a_trial_at_any_epoch(self) -> None:
        for mode in ("min", "max"):
            for value in (math.nan, math.inf, -math.inf):
                for epoch in (1, 3, 9):
                    decision = self.build(mode=mode, grace_period=3, max_t=9).report(_named(0), epoch, value)
                    assert (decision.action, decision.completed) == (Action.STOP, False)

    def test_a_trial_that_has_ended_gets_its_stop_again(self) -> None:
        scheduler = self.build(grace_period=3, max_t=9)
        stop = scheduler.report(_named(0), 1, math.nan)
        assert scheduler.report(_named(0), 2, 0.1) == stop
        scheduler.add(_named(1))
        scheduler.remove(_named(1))
        scheduler.remove(_named(1))
        assert scheduler.report(_named(1), 3, 0.1).action is Action.STOP

    def test_every_continuation_leads_to_the_next_milestone_with_its_replicas(self) -> None:
        scheduler, decisions = self._played(seed=1)
        for decision in decisions:
            if decision.action is Action.CONTINUE:
                assert decision.until == scheduler.milestones[decision.rung]
                assert decision.replicas == scheduler.replicas(decision.rung)

    def test_every_trial_ends_exactly_once_and_says_why(self) -> None:
        for seed in range(20):
            _, decisions = self._played(seed)
            stops = [d.trial for d in decisions if d.action is Action.STOP]
            failed = {_named(i) for i in range(20) if _result(seed)(_named(i), 1) is None}
            assert len(stops) == len(set(stops))
            assert set(stops) >= {_named(i) for i in range(20)} - failed
            assert all(d.reason for d in decisions)

    def test_only_trials_that_reached_max_t_are_completed(self) -> None:
        for seed in range(20):
            scheduler, decisions = self._played(seed)
            for decision in decisions:
                at_the_end = decision.action is Action.STOP and decision.until == scheduler.milestones[-1]
                assert decision.completed == at_the_end

    def test_a_removed_trial_never_goes_on(self) -> None:
        gone: set[TrialId] = set()

        def result(trial: TrialId, epoch: int) -> float | None:
            assert trial not in gone
            value = _result(seed=5)(trial, epoch)
            if value is None:
                gone.add(trial)
            return value

        play(self.build(max_t=9), _named_range(), result, random.Random(5))  # noqa: S311 - a test
        assert gone, "the results must contain failures"

    def test_a_removed_trial_that_is_readmitted_starts_again(self) -> None:
        scheduler = self.build(max_t=9)
        first = scheduler.add(_named(0))
        scheduler.remove(_named(0))
        again = scheduler.readmit(_named(0))
        assert (again.trial, again.action, again.rung) == (_named(0), Action.CONTINUE, 0)
        assert (again.until, again.replicas) == (first.until, first.replicas)

    def test_readmitted_trials_end_like_any_other_and_nobody_else_comes_back(self) -> None:
        for seed in range(20):
            scheduler, decisions = self._played(seed)
            removed = [t for t in _named_range() if _result(seed)(t, 1) is None]
            ended = [d for d in decisions if d.action is Action.STOP]
            first = [scheduler.readmit(trial) for trial in removed]
            scheduler.close()
            rng = random.Random(seed)  # noqa: S311 - a test
            after = play_on(scheduler, first, lambda trial, epoch: 1.0 / epoch, rng)
            assert sorted(d.trial for d in after if d.action is Action.STOP) == removed
            assert [scheduler.report(d.trial, 9, 0.0) for d in ended] == ended

    def test_a_longer_ladder_is_climbed_by_those_who_had_completed_the_shorter_one(self) -> None:
        for seed in range(20):
            scheduler, decisions = self._played(seed)
            if not isinstance(scheduler, Extensible):
                return  # its search stays as long as it was
            completed = [d.trial for d in decisions if d.completed]
            again = [*scheduler.extend((*scheduler.milestones, 20, 40, 80), None)]
            assert [d.trial for d in again] == completed
            while (resumed := scheduler.resume_next()) is not None:
                again.append(resumed)
            again += scheduler.dismiss()
            going = [d for d in again if d.action is Action.CONTINUE]
            assert all((d.until, d.rung) == (20, len(scheduler.milestones) - 3) for d in going)
            rng = random.Random(seed)  # noqa: S311 - a test
            after = play_on(scheduler, going, lambda trial, epoch: 1.0 / epoch, rng)
            ends = [d for d in (*again, *after) if d.action is Action.STOP]
            assert sorted(d.trial for d in ends) == sorted(completed)
            assert all(d.completed == (d.until == 80) for d in ends)

    def test_the_same_calls_give_the_same_decisions(self) -> None:
        assert self._played(seed=3)[1] == self._played(seed=3)[1]

    def test_asking_again_changes_nothing(self) -> None:
        scheduler, _ = self._played(seed=4)
        scheduler.close()
        assert scheduler.resume_next() is None
        assert scheduler.dismiss() == ()

    def _played(self, seed: int) -> tuple[Scheduler, list[Decision]]:
        scheduler = self.build(grace_period=1, max_t=9, reduction_factor=2)
        rng = random.Random(seed)  # noqa: S311 - a test
        return scheduler, play(scheduler, _named_range(), _result(seed), rng)


def _named(index: int) -> TrialId:
    return TrialId(f"t{index:02d}")


def _named_range() -> list[TrialId]:
    return [_named(i) for i in range(20)]


def _result(seed: int) -> Callable[[TrialId, int], float | None]:
    """Return results of which one in ten is missing (a failure, at any epoch) and many are equal."""

    def result(trial: TrialId, epoch: int) -> float | None:
        rng = random.Random(f"{seed} {trial}")  # noqa: S311 - a test
        if rng.random() < 0.1:
            return None
        return round(rng.random(), 1) / epoch

    return result
