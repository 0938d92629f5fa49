"""A study that goes on with more trials than it began with."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from parsl_rasda.orchestration.assembly import build_machine
from parsl_rasda.orchestration.events import Event, Instruction, TrialFinished
from parsl_rasda.orchestration.machine import Machine
from parsl_rasda.simulation.costs import Costs
from parsl_rasda.simulation.rehearsal import Rehearsal, VirtualSite
from parsl_rasda.study import TuneSpec
from parsl_rasda.types import SiteName, StudyState, TrialState

FIRST, ALL = 5, 11
# Younger trials are better: whoever were compared with them would lose.
COSTS = Costs(epoch_s=lambda trial, width: (10.0 + trial) / width, metric=lambda trial, epoch: -trial)
SITES = {SiteName("here"): VirtualSite(nodes=1, gpus_per_node=4)}


class Recorder:
    """A machine whose events are kept, up to the death of its controller."""

    def __init__(self, machine: Machine) -> None:
        self.machine, self.settings = machine, machine.settings
        self.events: list[Event] = []

    @property
    def wake_at(self) -> float | None:
        return self.machine.wake_at

    def handle(self, event: Event) -> tuple[Instruction, ...]:
        self.events.append(event)
        return self.machine.handle(event)


def build(growth: str, variant: str = "synchronous") -> Machine:
    return build_machine(
        TuneSpec.model_validate(
            {
                "metric": "loss",
                "num_samples": FIRST,
                "scheduler": {"variant": variant, "max_t": 4, "max_workers": 4, "growth": growth},
                "search_space": {"lr": {"float": [0.1, 1.0]}},
                "training": {"python": "module:function"},
            }
        )
    )


def reached(machine: Machine, trials: list[str]) -> Counter[int]:
    return Counter(max(machine.trials[t].history) for t in trials)


@pytest.mark.parametrize("growth", ["elastic", "strict", "none"])
def test_trials_of_a_larger_budget_are_a_cohort_of_their_own(growth: str) -> None:
    recorder = Recorder(build(growth))
    Rehearsal(recorder, SITES, COSTS).run(FIRST)
    old = list(recorder.machine.trials)
    decided = reached(recorder.machine, old)
    assert decided == {1: 3, 2: 1, 4: 1}, "5 enter, 2 go on, then 1"
    for cut in range(len(recorder.events) + 1):
        machine = build(growth)
        for event in recorder.events[:cut]:
            machine.handle(event)
        began_together = len(machine.trials) < FIRST
        Rehearsal(machine, SITES, COSTS).run(ALL)
        assert machine.state is StudyState.DONE
        assert len(machine.trials) == ALL
        assert all(t.state in {TrialState.STOPPED, TrialState.COMPLETED} for t in machine.trials.values())
        if began_together:
            assert reached(machine, list(machine.trials)) == {1: 6, 2: 3, 4: 2}, "11 enter, 5 go on, then 2"
        else:
            assert reached(machine, old) == decided
            young = [t for t in machine.trials if t not in old]
            assert reached(machine, young) == {1: 3, 2: 2, 4: 1}, "6 enter, 3 go on, then 1"


@pytest.mark.parametrize("growth", ["elastic", "strict", "none"])
def test_nobody_who_is_paused_is_given_up_before_all_have_come(growth: str) -> None:
    recorder = Recorder(build(growth, "promotion"))
    Rehearsal(recorder, SITES, COSTS).run(FIRST)

    class Referee:
        def add(self, event: Event, instructions: tuple[Instruction, ...]) -> None:
            for instruction in instructions:
                if isinstance(instruction, TrialFinished) and instruction.state is TrialState.STOPPED:
                    assert len(machine.trials) == ALL, (cut, instruction)

    for cut in range(len(recorder.events) + 1):
        machine = build(growth, "promotion")
        for event in recorder.events[:cut]:
            machine.handle(event)
        older_are_better = replace(COSTS, metric=lambda trial, epoch: trial)
        Rehearsal(machine, SITES, older_are_better, [Referee()]).run(ALL)
        assert machine.state is StudyState.DONE
        assert all(t.state in {TrialState.STOPPED, TrialState.COMPLETED} for t in machine.trials.values())
