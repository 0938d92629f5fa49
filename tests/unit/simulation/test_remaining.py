"""The time that is left: what a copy of the machine takes from where it stands."""

from __future__ import annotations

from typing import Any

import pytest

from parsl_rasda.orchestration.assembly import build_machine
from parsl_rasda.orchestration.events import Event, Instruction, JobEnded, PilotStarted
from parsl_rasda.orchestration.machine import Machine
from parsl_rasda.orchestration.usage import Usage
from parsl_rasda.simulation import remaining
from parsl_rasda.simulation.rehearsal import Rehearsal, VirtualSite
from parsl_rasda.simulation.remaining import remaining_s
from parsl_rasda.types import SiteName
from tests.unit.orchestration.test_machine_stories import story

QUAD = {SiteName("virtual"): VirtualSite(nodes=2, gpus_per_node=2)}


class Told:
    """Asks after every event how long the search still takes, with the usage as far as it has come."""

    def __init__(self, machine: Machine) -> None:
        self.machine, self.usage = machine, Usage()
        self.answers: list[tuple[float, float | None]] = []

    def add(self, event: Event, instructions: tuple[Instruction, ...]) -> None:
        self.usage.add(event, instructions)
        if isinstance(event, PilotStarted | JobEnded) or len(self.answers) % 3 == 0:
            self.answers.append((event.at, remaining_s(self.machine, self.usage, event.at)))
        else:
            self.answers.append((event.at, None))


def told_by(rehearsals: Any, **changes: Any) -> tuple[Told, float]:
    tune = rehearsals.study_of(**changes).tune_stages["tune"].tune
    machine = build_machine(tune)
    told = Told(machine)
    usage = Rehearsal(machine, QUAD, rehearsals.costs_of(), [told]).run(tune.num_samples)
    assert usage.finished_at is not None
    return told, usage.finished_at


@pytest.mark.parametrize("variant", ["synchronous", "stopping", "promotion"])
@pytest.mark.parametrize("growth", ["elastic", "strict", "none"])
def test_it_is_told_from_the_first_pilot_on_and_comes_true(
    rehearsals: Any, variant: str, growth: str
) -> None:
    told, end = told_by(rehearsals, num_samples=12, scheduler={"variant": variant, "growth": growth})
    answers = [(at, left) for at, left in told.answers if left is not None]
    assert answers[0][0] == 12.0, "as soon as the pilot has come"
    for at, left in answers:
        if variant == "synchronous":  # the others stop by luck
            assert left == pytest.approx(end - at, rel=0.25, abs=4)
        else:
            assert 0 <= left <= 2 * (end - at) + 60


def test_asking_changes_nothing(rehearsals: Any) -> None:
    _, asked = told_by(rehearsals, num_samples=12)
    tune = rehearsals.study_of(num_samples=12).tune_stages["tune"].tune
    usage = Rehearsal(build_machine(tune), QUAD, rehearsals.costs_of()).run(12)
    assert usage.finished_at == asked


def test_very_many_trials_are_not_rehearsed(rehearsals: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remaining, "MOST_TRIALS", 3)
    told, end = told_by(rehearsals, num_samples=12)
    answers = [(at, left) for at, left in told.answers if left is not None]
    assert answers[0][0] > 12.0, "the mean of what has ended, once something has"
    assert all(left <= 5 * (end - at) + 60 for at, left in answers)


def test_a_site_that_has_no_pilot_and_may_be_asked_again_is_not_counted_on() -> None:
    told, usage = story(max_t=8), Usage()
    told.begin(4, a=1, b=1)
    told.pilot("a-0", gpus=2)
    told.epoch("0000.1", 1, 0.5)
    told.pilot_ends("b-1", usable=False, refused=True)
    assert told.machine.wake_at is not None, "it will be asked again"
    left = remaining_s(told.machine, usage, told.now)
    assert left is not None
    assert left > 0
