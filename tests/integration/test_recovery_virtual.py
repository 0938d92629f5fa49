"""Deaths of the controller in virtual time: journal, replay and resume together, at every record."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path

import pytest

from parsl_rasda.orchestration.driver import replay
from parsl_rasda.orchestration.events import Event, Instruction
from parsl_rasda.orchestration.journal import Journal, Record, read
from parsl_rasda.orchestration.machine import Machine, MachineSettings
from parsl_rasda.orchestration.summary import best, summarise
from parsl_rasda.orchestration.usage import Usage
from parsl_rasda.placement.growth import build_growth
from parsl_rasda.placement.times import Assumed
from parsl_rasda.scheduling import build_scheduler
from parsl_rasda.simulation.costs import Costs, assumed_costs
from parsl_rasda.simulation.rehearsal import Rehearsal, VirtualSite
from parsl_rasda.types import Mode, SiteName, StudyState

ASSUMED = Assumed(60.0, 8.0, 0.9)
TRIALS = 9


class Recorder:
    """A machine whose records are kept."""

    def __init__(self, machine: Machine) -> None:
        self.machine, self.settings = machine, machine.settings
        self.records: list[Record] = []

    @property
    def wake_at(self) -> float | None:
        return self.machine.wake_at

    def handle(self, event: Event) -> tuple[Instruction, ...]:
        instructions = self.machine.handle(event)
        self.records.append(Record(event, instructions))
        return instructions


class NoSearcher:
    def restore(self, trial, config) -> None: ...

    def observe(self, trial, epoch, metric) -> None: ...

    def conclude(self, trial, metric) -> None: ...


def build(variant: str, growth: str) -> Machine:
    settings = MachineSettings("loss", Mode.MIN, assumed=ASSUMED)
    scheduler = build_scheduler({"variant": variant, "max_t": 4, "max_workers": 4})
    return Machine(settings, scheduler, build_growth(growth))


def costs(seed: int) -> Costs:
    return assumed_costs(ASSUMED, seed=seed, spread=0.3)


def sites(seed: int) -> dict[SiteName, VirtualSite]:
    rng = random.Random(seed)
    number, interactive = rng.choice([1, 2]), rng.random() < 0.7
    shape = VirtualSite(rng.choice([1, 2]), rng.choice([2, 4]), interactive=interactive)
    return {SiteName(f"s{i}"): shape for i in range(number)}


def carry_on(machine: Machine, seed: int) -> list[Record]:
    """Let a controller run the study from where the machine stands to its end."""
    recorder = Recorder(machine)
    Rehearsal(recorder, sites(seed), costs(seed)).run(TRIALS)
    assert machine.state is StudyState.DONE
    return recorder.records


def recover(records: Iterable[Record], variant: str, growth: str) -> tuple[Machine, Usage]:
    machine, usage = build(variant, growth), Usage()
    replay(records, machine, NoSearcher(), [usage])
    return machine, usage


def result(machine: Machine) -> object:
    found = best(machine)
    assert found is not None
    trials = {t.id: (t.state, t.last) for t in machine.trials.values()}
    return found["trial"], found["metric"], found["epoch"], trials


@pytest.mark.parametrize("variant", ["stopping", "promotion", "synchronous"])
@pytest.mark.parametrize("growth", ["elastic", "strict", "none"])
def test_a_journal_read_back_tells_the_same_story(tmp_path: Path, variant: str, growth: str) -> None:
    for seed in range(5):
        machine = build(variant, growth)
        records, usage = carry_on(machine, seed), Usage()
        for record in records:
            usage.add(record.event, record.instructions)
        path = tmp_path / f"{seed}.jsonl"
        with Journal(path, "study") as journal:
            journal.append(records)
        again, books = recover(read(path), variant, growth)
        assert summarise("study", again, books) == summarise("study", machine, usage)


@pytest.mark.parametrize("growth", ["elastic", "strict", "none"])
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_a_synchronous_study_comes_to_the_same_end_wherever_its_controller_died(
    growth: str, seed: int
) -> None:
    undisturbed = build("synchronous", growth)
    records = carry_on(undisturbed, seed)
    for cut in range(len(records)):
        machine, _ = recover(records[:cut], "synchronous", growth)
        carry_on(machine, seed)
        assert result(machine) == result(undisturbed), f"died after record {cut} of {len(records)}"


@pytest.mark.parametrize("variant", ["stopping", "promotion", "synchronous"])
@pytest.mark.parametrize("growth", ["elastic", "strict"])
def test_ten_deaths_in_a_row_end_every_study(tmp_path: Path, variant: str, growth: str) -> None:
    for seed in range(6):
        rng, path = random.Random(seed), tmp_path / f"{seed}.jsonl"
        written: list[Record] = []
        for _ in range(10):
            machine, _ = recover(read(path) if path.exists() else (), variant, growth)
            fresh = carry_on(machine, seed)
            fresh = fresh[: rng.randint(1, max(1, len(fresh) // 2))]
            with Journal(path, "study") as journal:
                journal.append(fresh)
            tail = path.read_bytes()
            path.write_bytes(tail + b'{"n": 99, "event": {"type"'[: rng.randint(0, 20)])
            written += fresh
            assert list(read(path)) == written
        machine, _ = recover(read(path), variant, growth)
        carry_on(machine, seed)
        attempts = [t.attempt for t in machine.trials.values()]
        assert len(attempts) == TRIALS
        assert max(attempts) > 1
        assert all(t.retries == 0 for t in machine.trials.values()), "a controller's death costs no retry"
        assert all(t.state.is_final for t in machine.trials.values())


def test_a_torn_batch_is_as_if_its_records_had_never_been(tmp_path: Path) -> None:
    """Records of one batch are synced together: cut anywhere, what is left is a beginning of the study."""
    machine = build("synchronous", "elastic")
    records = carry_on(machine, 1)
    path, torn = tmp_path / "whole.jsonl", tmp_path / "torn.jsonl"
    with Journal(path, "study") as journal:
        journal.append(records)
    data = path.read_bytes()
    for cut in range(0, len(data), 997):
        torn.write_bytes(data[:cut])
        with Journal(torn, "study"):
            pass
        left = list(read(torn))
        assert left == records[: len(left)]
        again, _ = recover(left, "synchronous", "elastic")
        carry_on(again, 1)
        assert result(again) == result(machine)
