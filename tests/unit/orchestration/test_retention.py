"""Checkpoints go as trials stop; whatever a resume, a fallback or the next stage asks for is there."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parsl_rasda.orchestration.events import EpochReported, JobEnded, StartJob
from parsl_rasda.orchestration.machine import Machine
from parsl_rasda.orchestration.retention import Retention
from parsl_rasda.orchestration.summary import best, summarise
from parsl_rasda.orchestration.usage import Usage
from parsl_rasda.protocol import Checkpoint, EpochReport, JobSpec
from parsl_rasda.runtime.checkpoints.retention import spared, superseded
from parsl_rasda.types import Blame, JobId, JudgedBy, Keep, Outcome, StudyState, TrialState
from tests.unit.orchestration.random_world import Setup, Shape, World
from tests.unit.orchestration.test_machine_worlds import GROWTH, VARIANTS, setups

any_setup = st.tuples(st.sampled_from(VARIANTS), st.sampled_from(GROWTH)).flatmap(lambda k: setups(*k))


class Disk(World):
    """A world whose ranks remove what is superseded, and whose controller what its retention names."""

    keep = Keep.BEST
    judged_by = JudgedBy.LAST
    keep_rungs = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.there: dict[str, JobId] = {}  # checkpoints, oldest first, and who wrote them
        self.spared: dict[JobId, int] = {}  # the oldest attempt whose checkpoints a job leaves alone
        self.reports: dict[JobId, list[EpochReport]] = {}
        self.specs: dict[JobId, JobSpec] = {}  # as far as they say what stays
        self.bind(self.machine)

    def bind(self, machine: Machine) -> None:
        machine.settings = replace(
            machine.settings, keep=self.keep, best=self.judged_by, keep_rungs=self.keep_rungs
        )
        self.retention = Retention(machine, self.discard)

    def start_controller(self) -> None:
        self.bind(self.machine)
        super().start_controller()

    def tell(self, event):
        if isinstance(event, EpochReported) and event.checkpoint and event.job in self.jobs:
            self.write(event.job, event.checkpoint.path)
            kept = self.specs[event.job].kept
            self.end_attempts(event.job, before=self.spared[event.job], kept=kept)
            found, checkpoint = event.job, event.checkpoint
            report = EpochReport(found.trial, found.attempt, event.epoch, event.metrics, 1.0, checkpoint)
            self.reports.setdefault(event.job, []).append(report)
        elif isinstance(event, JobEnded) and event.checkpoint and event.job.trial in self.machine.trials:
            self.write(event.job, event.checkpoint)
        instructions = super().tell(event)
        self.retention.add(event, instructions)
        found = best(self.machine)
        if found is not None and found["checkpoint"] is not None:
            self.must_be_there(found["checkpoint"])
        return instructions

    def _end(self, job: JobId, outcome: Outcome, blame: Blame | None = None) -> None:
        if self.rng.random() < 0.5:  # of its last checkpoint nobody will ever hear
            self.write(job, f"{job}/{self.jobs[job].epoch + 1}")
        super()._end(job, outcome, blame)

    def write(self, job: JobId, path: str) -> None:
        if path != "stale":
            self.there.setdefault(path, job)
        places = [p for p, who in self.there.items() if who == job]
        reports = self.reports.get(job, [])
        epochs = [int(p.rpartition("/")[2]) for p in places]
        stay = spared(self.specs[job], reports, epochs, None)
        stay |= {*self.machine.scheduler.milestones} if self.keep_rungs else set()
        for old, epoch in zip(places[: superseded(places, reports, None)], epochs, strict=False):
            if epoch not in stay:
                del self.there[old]

    def end_attempts(self, job: JobId, before: int, kept: Collection[str] = ()) -> None:
        for path, who in tuple(self.there.items()):
            if who.trial == job.trial and who.attempt < before and path not in kept:
                del self.there[path]

    def discard(self, last: JobId) -> None:
        self.end_attempts(last, before=last.attempt + 1)

    def _carry_out(self, instruction) -> None:
        super()._carry_out(instruction)
        if isinstance(instruction, StartJob):
            trial = self.machine.trials[instruction.job.trial]
            asked = [instruction.resume_from, trial.previous.path if trial.previous else None]
            for path in asked:
                self.must_be_there(path)
            known = [self.there[path].attempt for path in asked if path in self.there]
            self.spared[instruction.job] = min(known, default=0)
            self.specs[instruction.job] = spec_of(instruction, self.machine, self.judged_by)
            for path in trial.kept:
                self.must_be_there(path)

    def must_be_there(self, path: str | None) -> None:
        assert path is None or path in self.there or path in self.gone, f"{path} was removed"


def spec_of(start: StartJob, machine: Machine, judged_by: JudgedBy) -> JobSpec:
    trial, settings = machine.trials[start.job.trial], machine.settings
    return JobSpec(
        *("study", trial.id, start.job.attempt, {}, "", 0, settings.metric, settings.mode.value),
        *(start.epoch, start.until, 8, start.schedule, 1),
        keeps_best=judged_by is JudgedBy.EPOCH,
        best_metric=trial.best.metric if trial.best else None,
        kept=trial.kept,
    )


@settings(max_examples=5 * settings.default.max_examples, deadline=None)
@given(
    any_setup,
    st.integers(0, 2**32),
    st.sampled_from([0.02, 0.1, 0.3]),
    st.sampled_from(Keep),
    st.sampled_from(JudgedBy),
    st.booleans(),
)
def test_what_a_resume_a_fallback_or_the_next_stage_asks_for_is_there(
    setup: Setup, seed: int, fault_rate: float, keep: Keep, judged_by: JudgedBy, keep_rungs: bool
) -> None:
    choices = {"keep": keep, "judged_by": judged_by, "keep_rungs": keep_rungs}
    disk = type("Disk", (Disk,), choices)(setup, seed, fault_rate)
    disk.unfair(120)
    disk.fair()
    if disk.finished.state is StudyState.NO_SITE:
        return
    disk.start_controller()  # nothing that was missed is left
    left = {who.trial for who in disk.there.values()}
    trials = disk.machine.trials
    found = best(disk.machine)
    completed = {t.id for t in trials.values() if t.state is TrialState.COMPLETED}
    allowed = ({found["trial"]} if found else set()) | (completed if keep is Keep.SURVIVORS else set())
    assert keep is Keep.ALL or left <= allowed
    for trial in trials.values() if keep is Keep.ALL else ():
        for path in trial.kept:
            disk.must_be_there(path)


def searched(keep: Keep) -> tuple[Machine, list[JobId]]:
    world = World(Setup("stopping", "elastic", {"a": Shape(1, 2)}, trials=8, max_t=4), 3, 0.0)
    world.machine.settings = replace(world.machine.settings, keep=keep)
    gone: list[JobId] = []
    retention = Retention(world.machine, gone.append)
    world.start_controller()
    world.fair()
    for event, instructions in world.record:
        retention.add(event, instructions)
    return world.machine, gone


def test_by_default_the_best_trial_alone_keeps_its_checkpoints() -> None:
    machine, gone = searched(Keep.BEST)
    found = best(machine)
    assert found is not None
    assert {last.trial for last in gone} == set(machine.trials) - {found["trial"]}
    assert len(gone) == len(set(gone)), "each is named once"
    assert all(machine.trials[last.trial].attempt == last.attempt for last in gone)


def test_survivors_keep_theirs() -> None:
    machine, gone = searched(Keep.SURVIVORS)
    found = best(machine)
    assert found is not None
    completed = {t.id for t in machine.trials.values() if t.state is TrialState.COMPLETED}
    assert {last.trial for last in gone} == set(machine.trials) - completed - {found["trial"]}


def test_all_keep_theirs() -> None:
    assert searched(Keep.ALL)[1] == []


@pytest.mark.parametrize("keep", Keep)
def test_the_summary_names_no_checkpoint_that_is_gone(keep: Keep) -> None:
    machine, gone = searched(keep)
    for trial in machine.trials.values():
        trial.checkpoint = trial.checkpoint or Checkpoint("somewhere", 1)
    shown = {t["trial"] for t in summarise("s", machine, Usage())["trial_list"] if t["checkpoint"]}
    assert shown == set(machine.trials) - {last.trial for last in gone}
