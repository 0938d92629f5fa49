"""The best trials of a search are trained again with new seeds, and the search does not notice."""

from __future__ import annotations

import math
import random
import statistics
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parsl_rasda.cli.forecasts import forecast_view
from parsl_rasda.orchestration.assembly import build_machine
from parsl_rasda.orchestration.confirmed import chances_of_best, confirmation_document, confirmed_winner
from parsl_rasda.orchestration.driver import replay
from parsl_rasda.orchestration.events import (
    ContinueJob,
    EndJob,
    EpochReported,
    Event,
    FinishStudy,
    Instruction,
    JobEnded,
    PilotEnded,
    PilotStarted,
    ProposeTrial,
    RequestPilot,
    StartJob,
    StudyInterrupted,
    StudyStarted,
    TimerFired,
    TrialProposed,
    UserTold,
)
from parsl_rasda.orchestration.job_specs import trial_seed
from parsl_rasda.orchestration.journal import Record
from parsl_rasda.orchestration.machine import Machine
from parsl_rasda.orchestration.replay import NoSearcher
from parsl_rasda.orchestration.retention import Retention
from parsl_rasda.orchestration.run_names import SearchRecords, is_run
from parsl_rasda.orchestration.summary import summarise
from parsl_rasda.orchestration.usage import Usage
from parsl_rasda.protocol import Checkpoint
from parsl_rasda.reporting.tables import as_text, status_view
from parsl_rasda.simulation.costs import Costs
from parsl_rasda.simulation.forecast import forecast
from parsl_rasda.simulation.rehearsal import Rehearsal, VirtualSite
from parsl_rasda.study import TuneSpec
from parsl_rasda.testing.backends import FakeBackend
from parsl_rasda.types import (
    Budget,
    Confirm,
    JobId,
    Mode,
    NodeName,
    NodeSlots,
    Outcome,
    SiteName,
    StudyState,
    TrialId,
    TrialState,
)
from tests.unit.orchestration import small_study

A = SiteName("a")


def study(**values: Any) -> TuneSpec:
    return small_study.tune(num_samples=values.pop("num_samples", 6), **values)


class World:
    """Answers a machine at random; it may lose jobs, pilots and the controller."""

    def __init__(self, tune: TuneSpec, seed: int, *, faults: float = 0.0, gpus: int = 4) -> None:
        self.tune, self.rng, self.faults, self.gpus = tune, random.Random(seed), faults, gpus
        self.machine = build_machine(tune)
        self.machine = Machine(
            self.machine.settings, self.machine.scheduler, self.machine.growth, validate=True
        )
        self.now = 0.0
        self.records: list[Record] = []
        self.jobs: dict[JobId, list[int]] = {}  # epoch and until
        self.leaving: set[JobId] = set()
        self.requested: list[RequestPilot] = []
        self.pilots: dict[Any, SiteName] = {}
        self.finish: FinishStudy | None = None
        self.failing: set[str] = set()

    def tell(self, event: Event) -> None:
        instructions = self.machine.handle(event)
        self.records.append(Record(event, instructions))
        asked = [self.carry_out(i) for i in instructions]
        for trial in (t for t in asked if t is not None):
            self.tell(TrialProposed(self.now, trial, {"lr": 0.1 + int(trial)}))

    def carry_out(self, instruction: Instruction) -> TrialId | None:
        match instruction:
            case StartJob():
                assert instruction.job not in self.jobs
                self.jobs[instruction.job] = [instruction.epoch, instruction.until]
            case ContinueJob(job, until):
                self.jobs[job][1] = until
            case EndJob(job):
                self.leaving.add(job)
            case RequestPilot():
                self.requested.append(instruction)
            case ProposeTrial(trial):
                return trial
            case FinishStudy():
                self.finish = instruction
            case _:
                pass
        return None

    def start(self, confirm: Confirm | None, **more: Any) -> None:
        self.jobs, self.leaving, self.requested, self.pilots = {}, set(), [], {}
        self.finish = None
        self.tell(StudyStarted(self.now, self.tune.num_samples, {A: 1}, confirm=confirm, **more))

    def metric(self, trial: TrialId, epoch: int) -> float:
        if trial in self.failing and epoch > 1:
            return math.nan
        return random.Random(trial).random() + 1.0 / epoch

    def step(self) -> None:
        self.now += 1.0
        if self.machine.wake_at is not None and self.now >= self.machine.wake_at:
            self.tell(TimerFired(self.now))
        elif self.requested:
            asked = self.requested.pop()
            self.pilots[asked.pilot] = asked.site
            nodes = (NodeSlots(NodeName("n"), tuple(range(self.gpus))),)
            self.tell(PilotStarted(self.now, asked.pilot, asked.site, nodes))
        elif self.jobs:
            self.advance(self.rng.choice(list(self.jobs)))
        elif self.machine.wake_at is not None:
            self.now = self.machine.wake_at
            self.tell(TimerFired(self.now))
        else:
            raise AssertionError("nothing runs, nothing is awaited, and the search has not ended")

    def advance(self, job: JobId) -> None:
        epoch, until = self.jobs[job]
        if job in self.leaving or epoch >= until:
            self.end(job, Outcome.REACHED)
        elif self.rng.random() < self.faults:
            self.end(job, self.rng.choice([Outcome.LOST, Outcome.PREEMPTED, Outcome.FAILED]))
        else:
            self.jobs[job][0] = epoch + 1
            metrics = {"loss": self.metric(job.trial, epoch + 1)}
            kept = Checkpoint(f"{job}/{epoch + 1}", epoch + 1)
            self.tell(EpochReported(self.now, job, epoch + 1, metrics, 1.0, kept, test=float(epoch)))

    def end(self, job: JobId, outcome: Outcome) -> None:
        del self.jobs[job]
        self.leaving.discard(job)
        self.tell(JobEnded(self.now, job, outcome, "it ended"))

    def mishap(self, confirm: Confirm | None) -> None:
        what = self.rng.choice(["death", "pilot", "ctrl-c"])
        if what == "death":
            self.start(confirm)
        elif what == "ctrl-c":
            self.tell(StudyInterrupted(self.now))
        elif self.pilots:
            pilot, site = self.pilots.popitem()
            for job in list(self.jobs):
                self.end(job, Outcome.PREEMPTED)
            self.tell(PilotEnded(self.now, pilot, site, "walltime"))

    def run(self, confirm: Confirm | None, steps: int = 3000, **more: Any) -> None:
        self.start(confirm, **more)
        for _ in range(steps):
            if self.finish is not None:
                if self.finish.state not in {StudyState.INTERRUPTED, StudyState.NO_SITE}:
                    return
                self.start(confirm)
            if self.faults and self.rng.random() < self.faults / 4:
                self.mishap(confirm)
            else:
                self.step()
        raise AssertionError("it does not end")

    def outcome(self) -> dict[TrialId, tuple[Any, ...]]:
        return {
            t.id: (t.state, t.reason, t.history, t.attempt, tuple(map(str, t.schedule)))
            for t in self.machine.trials.values()
        }


def test_the_best_are_trained_again_for_as_long_and_as_wide_and_then_the_best_mean_wins() -> None:
    world = World(study(), 1)
    world.run(Confirm(2, 3))
    machine, best = world.machine, [*world.machine.confirmation.candidates]
    assert machine.state is StudyState.DONE
    assert list(machine.confirmation.runs) == [TrialId(f"c{t}-{n}") for n in (1, 2, 3) for t in best]
    for run in machine.confirmation.runs.values():
        trial = machine.trials[TrialId(run.id[1:5])]
        assert run.config == trial.config
        assert max(run.history) == max(trial.history)
        told = [r.instructions for r in world.records]
        last = [
            i.schedule for group in told for i in group if isinstance(i, StartJob) and i.job.trial == run.id
        ]
        assert last
        assert [s.entry for s in run.schedule] == [s.entry for s in trial.schedule][: len(run.schedule)]
    found = confirmation_document(machine)
    assert found is not None
    means = {c["trial"]: c["mean"] for c in found["candidates"]}
    assert found["winner"] == min(means, key=means.__getitem__)
    assert all(c["spread"] == statistics.stdev(c["results"]) for c in found["candidates"])
    document = summarise("s", machine, Usage())
    assert document["best"]["trial"] == found["winner"]
    assert document["best"]["confirmed"] == means[found["winner"]]
    assert len(document["trial_list"]) == 6
    assert document["trials"]["total"] == 6


def test_seeds_of_runs_differ_from_each_other_and_from_their_candidate() -> None:
    names = [TrialId("0003"), *(TrialId(f"c0003-{n}") for n in range(1, 6))]
    assert len({trial_seed(7, name) for name in names}) == 6


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    variant=st.sampled_from(["stopping", "promotion", "synchronous"]),
    growth=st.sampled_from(["elastic", "none", "strict"]),
    top=st.integers(1, 8),
    seeds=st.integers(1, 3),
)
def test_in_any_world_it_ends_with_each_run_there_or_failed_and_replays(
    seed: int, variant: str, growth: str, top: int, seeds: int
) -> None:
    tune = study(scheduler={"variant": variant, "growth": growth})
    world = World(tune, seed, faults=0.05)
    confirm = Confirm(top, seeds)
    world.run(confirm)
    machine = world.machine
    if machine.state is StudyState.DONE:
        runs = machine.confirmation.runs.values()
        assert len(runs) == len(machine.confirmation.candidates) * seeds
        assert all(run.state in {TrialState.COMPLETED, TrialState.FAILED} for run in runs)
        assert all(run.reason for run in runs if run.state is TrialState.FAILED)
        document = confirmation_document(machine)
        assert document is not None
        assert sum(c["missing"] for c in document["candidates"]) == sum(r.state == "failed" for r in runs)
    again, heard = build_machine(tune), _Heard()
    replay(world.records, again, NoSearcher(), [heard])
    assert summarise("s", again, Usage()) == summarise("s", machine, Usage())
    assert not any(is_run(t) for t in machine.trials)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), variant=st.sampled_from(["stopping", "promotion", "synchronous"]))
def test_the_search_decides_as_without_it(seed: int, variant: str) -> None:
    tune = study(scheduler={"variant": variant}, num_samples=7)
    alone, with_runs = World(tune, seed), World(tune, seed)
    alone.run(None)
    with_runs.run(Confirm(3, 2))
    assert with_runs.outcome() == alone.outcome()
    searched = [*SearchRecords(with_runs.records)][: len(alone.records)]
    theirs = [r.instructions for r in searched[1:-1]]
    assert theirs == [r.instructions for r in alone.records[1:-1]]


class _Heard:
    def add(self, event: Event, instructions: tuple[Instruction, ...]) -> None:
        del event, instructions


def test_a_run_that_diverges_has_failed_is_told_and_is_in_no_mean() -> None:
    world = World(study(), 1)
    world.run(None)
    best = summarise("s", world.machine, Usage())["best"]["trial"]
    world = World(study(), 1)
    world.failing = {f"c{best}-1"}
    world.run(Confirm(1, 3))
    found = confirmation_document(world.machine)
    assert found is not None
    (row,) = found["candidates"]
    assert (len(row["results"]), row["missing"], found["state"]) == (2, 1, "done")
    assert "nan" in next(r["reason"] for r in row["runs"] if r["state"] == "failed")
    assert world.machine.state is StudyState.DONE, "the search has found a best trial all the same"


def test_all_runs_failing_alike_do_not_fail_the_search() -> None:
    world = World(study(), 1)
    world.run(None)
    names = world.machine.trials
    world = World(study(), 1)
    world.failing = {f"c{t}-{n}" for t in names for n in range(1, 4)}
    world.run(Confirm(3, 3))
    assert world.machine.state is StudyState.DONE
    assert confirmed_winner(world.machine) is None
    assert summarise("s", world.machine, Usage())["best"] is not None


def test_a_budget_that_is_spent_ends_it_with_what_is_there_and_a_larger_one_goes_on() -> None:
    world = World(study(), 1)
    world.run(None)
    world2 = World(study(), 1)
    world2.run(Confirm(3, 3), budget=Budget(wall_time_s=world.now + 30.0))
    machine = world2.machine
    assert machine.state is StudyState.DONE
    assert "wall_time" in machine.stop_reason
    found = confirmation_document(machine)
    assert found is not None
    assert (found["state"], found["winner"]) == ("incomplete", None)
    best = summarise("s", machine, Usage())["best"]
    assert best["trial"] == machine.confirmation.candidates[0], "that of the search"
    world2.run(Confirm(3, 3))
    found = confirmation_document(machine)
    assert found is not None
    assert found["state"] == "done"
    assert len(machine.confirmation.runs) == 9


def test_a_search_that_has_ended_is_confirmed_by_a_later_start_and_more_seeds_add_runs() -> None:
    world = World(study(), 1)
    world.run(None)
    assert world.machine.confirmation.is_due(Confirm(2, 1))
    world.run(Confirm(2, 1))
    assert not world.machine.confirmation.is_due(Confirm(2, 1))
    attempts = {name: run.attempt for name, run in world.machine.confirmation.runs.items()}
    world.run(Confirm(2, 2))
    runs = world.machine.confirmation.runs
    assert len(runs) == 4
    assert all(runs[name].attempt == n for name, n in attempts.items()), "those that there are stay"


def test_stop_when_and_the_user_do_not_disturb_it() -> None:
    world = World(study(stop_when={"no_improvement": 1}), 3)
    world.start(Confirm(2, 2))
    while not world.machine.is_confirming:
        world.step()
    world.tell(UserTold(world.now, 1, at_most=1, retry_failed=True))
    assert world.machine.told == 0, "the next start takes it up"
    assert world.machine.at_most == 1
    before = len(world.machine.trials)
    world.tell(TrialProposed(world.now, TrialId("9999"), {"lr": 1.0}, told=1))
    assert len(world.machine.trials) == before
    while world.finish is None:
        world.step()
    assert world.machine.state is StudyState.DONE
    assert len(world.machine.confirmation.runs) == 4


def test_a_plan_rehearses_it_with_its_cost() -> None:
    costs = Costs(lambda _, width: 4.0 / width, lambda trial, epoch: trial + 1.0 / epoch)
    spent = []
    for confirm in (None, Confirm(2, 3)):
        machine = build_machine(study())
        usage = Rehearsal(machine, {A: VirtualSite(1, 4)}, costs).run(6, confirm=confirm)
        spent.append((usage.makespan_s(), usage.epochs))
    assert spent[1][0] > spent[0][0]
    assert spent[1][1] == spent[0][1] + 3 * sum(
        max(machine.trials[t].history) for t in machine.confirmation.candidates
    )


def test_checkpoints_of_runs_go_and_those_of_the_candidates_stay() -> None:
    tune = study(confirm={"top": 2, "seeds": 2})
    world, gone = World(tune, 1), list[JobId]()
    retention = Retention(world.machine, gone.append)
    handle = world.machine.handle

    def handled(event: Event) -> tuple[Instruction, ...]:
        found = handle(event)
        retention.add(event, found)
        return found

    world.machine.handle = handled  # type: ignore[method-assign]  # an observer, as the driver has them
    world.run(Confirm(2, 2))
    names = {job.trial for job in gone}
    assert names >= set(world.machine.confirmation.runs)
    assert not names & set(world.machine.confirmation.candidates)


def test_the_test_metric_is_in_no_report_and_shown_of_the_winner_at_the_end_alone() -> None:
    world = World(study(test_metric="test_loss"), 1)
    world.start(Confirm(1, 2))
    while world.finish is None:
        shown = str(summarise("s", world.machine, Usage()))
        assert "test_loss" not in shown
        world.step()
    document = summarise("s", world.machine, Usage())
    best = document["best"]
    assert best["test"] == {"metric": "test_loss", "value": best["epoch"] - 1.0}
    assert document["confirm"]["candidates"][0]["test"]["n"] == 2


def test_the_driver_takes_the_test_metric_out_of_what_is_reported(tmp_path: Path) -> None:
    def curve(order: Any, epoch: int) -> dict[str, float]:
        return {**small_study.curve(order, epoch), "test_loss": 9.0}

    spec = study(test_metric="test_loss")
    driver = small_study.driver(tmp_path, FakeBackend(curve), spec)
    driver.run(6, {small_study.SITE: 1})
    told = [e for line in (tmp_path / "journal.jsonl").read_text().splitlines() for e in [line]]
    assert not any("test_loss" in line for line in told)
    assert all(set(t.tests.values()) == {9.0} for t in driver.machine.trials.values())


@given(
    st.lists(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=6), min_size=1, max_size=4),
    st.sampled_from(list(Mode)),
)
@settings(max_examples=20, deadline=None)
def test_chances_add_up_and_are_the_same_each_time(results: list[list[float]], mode: Mode) -> None:
    frozen = tuple(map(tuple, results))
    chances = chances_of_best(frozen, mode)
    assert chances is not None
    assert sum(chances) == pytest.approx(1.0)
    chances_of_best.cache_clear()
    assert chances_of_best(frozen, mode) == chances


def test_a_chance_is_near_what_students_t_says_and_unknown_of_one_result() -> None:
    assert chances_of_best(((1.0, 2.0), (3.0,)), Mode.MIN) is None
    first, _ = chances_of_best(((1.0, 1.1, 0.9), (3.0, 3.1, 2.9)), Mode.MIN) or (0.0, 0.0)
    assert first > 0.97
    even = chances_of_best(((1.0, 2.0, 3.0), (1.0, 2.0, 3.0)), Mode.MAX) or (0.0, 0.0)
    assert even[0] == pytest.approx(0.5, abs=0.03)
    # One mean against a certain number: P(t_2 < 1.8856) is 0.9.
    one, _ = chances_of_best(((-1.0, 0.0, 1.0), (1.8856 / 3**0.5,) * 3), Mode.MIN) or (0.0, 0.0)
    assert one == pytest.approx(0.9, abs=0.02)


def test_runs_that_have_failed_start_afresh_if_the_user_wants_failed_ones_retried() -> None:
    world = World(study(), 1)
    world.run(None)
    best = summarise("s", world.machine, Usage())["best"]["trial"]
    world = World(study(), 1)
    world.failing = {f"c{best}-1"}
    world.run(Confirm(1, 2))
    world.failing = set()
    world.run(Confirm(1, 2), retry_failed=True)
    found = confirmation_document(world.machine)
    assert found is not None
    assert [c["missing"] for c in found["candidates"]] == [0]


def test_with_more_trials_the_search_goes_on_first_and_only_new_candidates_are_trained() -> None:
    world = World(study(num_samples=4), 1)
    world.run(Confirm(3, 1))
    before = {name: run.attempt for name, run in world.machine.confirmation.runs.items()}
    world.tune = study(num_samples=12)
    world.run(Confirm(3, 1))
    machine = world.machine
    assert len(machine.trials) == 12
    assert len(machine.confirmation.candidates) == 3
    assert machine.confirmation.is_settled
    stayed = [n for n in before if TrialId(n[1:5]) in machine.confirmation.candidates]
    assert stayed or not set(machine.confirmation.candidates) & {TrialId(n[1:5]) for n in before}
    assert all(machine.confirmation.runs[n].attempt == before[n] for n in stayed)


def test_what_decides_is_no_test_metric_and_a_front_has_no_mean() -> None:
    with pytest.raises(ValueError, match="by which trials are judged"):
        study(test_metric="loss")
    with pytest.raises(ValueError, match="no mean of a front"):
        study(confirm={"top": 2}, constraints=[{"metric": "latency", "at_most": 1.0}])


def test_a_plan_says_what_the_runs_add() -> None:
    tune = study(confirm={"top": 2, "seeds": 3})
    found = forecast("tune", tune, {A: VirtualSite(1, 4)}, seed=1)
    assert found.confirm is not None
    assert found.confirm.runs == 6
    assert found.confirm.epochs >= 6
    assert found.confirm.makespan_s > 0
    shown = as_text(forecast_view("s", [found], None))
    assert "confirm: 6 trainings on top of that" in shown


def test_people_are_told_who_is_the_best_and_which_run_has_failed() -> None:
    world = World(study(test_metric="test_loss"), 1)
    world.run(Confirm(2, 2))
    document = summarise("s", world.machine, Usage())
    shown = as_text(status_view(document))
    assert "confirmed with 2 new seeds each" in shown
    assert "test_loss" in shown
    assert all(c["trial"] in shown for c in document["confirm"]["candidates"])
