"""What people are told may be said in other words by a later version; what is decided may not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec import structs

from parsl_rasda.errors import OtherDecisionError
from parsl_rasda.orchestration.assembly import build_machine
from parsl_rasda.orchestration.driver import replay
from parsl_rasda.orchestration.events import Instruction, TrialFinished
from parsl_rasda.orchestration.journal import Record, read
from parsl_rasda.orchestration.machine import Machine
from parsl_rasda.orchestration.replay import NoSearcher, load_run_study
from parsl_rasda.orchestration.run_directory import RunDirectory


def replayed(directory: Path, change: Callable[[TrialFinished], Instruction]) -> Machine:
    """The machine after a journal whose ends of trials are changed."""
    (stage,) = load_run_study(RunDirectory(directory)).tune_stages.values()
    records: list[Record] = [
        structs.replace(
            record,
            instructions=tuple(change(i) if isinstance(i, TrialFinished) else i for i in record.instructions),
        )
        for record in read(directory / "journal.jsonl")
    ]
    machine = build_machine(stage.tune)
    replay(records, machine, NoSearcher(), [])
    return machine


def test_a_journal_in_other_words_is_the_same_search(finished: Path) -> None:
    machine = replayed(finished, lambda end: structs.replace(end, reason="loss 0.8 misses 0.4"))
    reasons = [trial.reason for trial in machine.trials.values()]
    assert len(reasons) == 8
    assert "loss 0.8 misses 0.4" not in reasons, "it is told as this version tells it"


def test_a_journal_with_another_end_is_another_search(finished: Path) -> None:
    with pytest.raises(OtherDecisionError):
        replayed(finished, lambda end: structs.replace(end, metric=-1.0))
