"""People are told of the end, of the first result of a rung, and of each trouble once."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest

from parsl_rasda.orchestration.journal import Record, read
from parsl_rasda.reporting.runs import read_run
from parsl_rasda.study.observers import NotifySpec
from parsl_rasda.tracking.notices import Notices, Notifier

MILESTONES = (1, 2, 4, 8)


@pytest.fixture
def records(finished: Path) -> list[Record]:
    return list(read(finished / "journal.jsonl"))


def test_each_thing_is_told_once(finished: Path, records: list[Record]) -> None:
    notices = Notices("val_loss", MILESTONES)
    told = [n for record in records for n in notices.of(record.event, record.instructions)]
    kinds = [n.kind for n in told]
    assert kinds.count("rung") == 4
    assert kinds[-1] == "end"
    assert told[-1].message == "the search has ended: done"
    assert [n.message for n in told if n.kind == "trouble"] == [
        "trial 0005 has failed: val_loss is nan after epoch 1"
    ]
    first = next(n for n in told if n.kind == "rung")
    assert first.message.startswith("trial 000")
    assert read_run(finished).state == "done"


def test_an_end_is_told_again_only_if_something_has_run_since(records: list[Record]) -> None:
    """A job that ended unseen may end the search on resume; the controller that starts then ends it again."""
    notices = Notices("val_loss", MILESTONES)
    told = [n for _ in range(2) for r in records for n in notices.of(r.event, r.instructions)]
    assert [n.kind for n in told].count("end") == 2, "jobs have started between the two"
    assert not notices.of(records[-1].event, records[-1].instructions)


def notified(tmp_path: Path, records: list[Record], before: int, **settings: object) -> list[str]:
    out = tmp_path / "told.txt"
    write = (
        "import os, sys; open(sys.argv[1], 'a').write(os.environ['RASDA_EVENT'] + ' ' + sys.argv[2] + '\\n')"
    )
    spec = NotifySpec.model_validate(
        {"command": [sys.executable, "-c", write.replace("{", "{{"), str(out), "{study}"], **settings}
    )
    notices = Notices("val_loss", MILESTONES)
    with Notifier(spec, notices, "mine; rm -rf", tmp_path, records[:before]) as notifier:
        for record in records[before:]:
            notifier.add(record.event, record.instructions)
    return out.read_text().splitlines() if out.exists() else []


def test_the_command_is_told_of_what_it_asked_for_and_not_again_after_a_resumption(
    records: list[Record], tmp_path: Path
) -> None:
    assert notified(tmp_path, records, 0, on=["end"]) == ["end mine; rm -rf"]
    whole = len(records)
    assert notified(tmp_path, records, whole, on=["end", "rung", "trouble"]) == ["end mine; rm -rf"]


@pytest.mark.parametrize("command", [["/nowhere/at/all"], [sys.executable, "-c", "raise SystemExit(3)"]])
def test_a_command_that_fails_costs_nothing(
    command: list[str], records: list[Record], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = NotifySpec.model_validate({"command": command, "on": ["end"]})
    notifier = Notifier(spec, Notices("val_loss", MILESTONES), "mine", tmp_path)
    with caplog.at_level(logging.WARNING), notifier:
        for record in records:
            notifier.add(record.event, record.instructions)
    assert "notify.command" in caplog.text
