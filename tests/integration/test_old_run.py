"""Run directories that an earlier version wrote are opened as before: one killed in the middle, one finished.

Both are the same study. `tests/data/old_run` holds them with ``@HERE@`` for the folder that they lay in.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from command_line import finish, start

from parsl_rasda.orchestration.events import SiteDegraded, TimerFired, TrialFinished
from parsl_rasda.orchestration.journal import read

pytestmark = pytest.mark.parsl

DATA = Path(__file__).parents[1] / "data" / "old_run"
BEST = ("0005", 0.1112027343593017, 8)
TRIALS = {"waiting": 0, "running": 0, "paused": 0, "stopped": 7, "completed": 1, "failed": 0, "not_tried": 0}
RUNGS = [(1, 8, 0.42538295978210916), (2, 4, 0.22590106431996396), (4, 2, 0.11984924451523318)]


def opened(name: str, folder: Path) -> Path:
    """Return a copy of a run that lies as the run once did, and whose controller has long been silent."""
    run = shutil.copytree(DATA / name, folder / name)
    for file in run.rglob("*"):
        if file.is_file():
            file.write_text(file.read_text().replace("@HERE@", str(folder)))
            os.utime(file, (0, 0))
    return run


def told(folder: Path, *words: str | Path) -> tuple[str, str]:
    code, out, err = finish(start(folder, *words))
    assert code == 0, out + err
    return out, err


def document(folder: Path, *words: str | Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(told(folder, *words, "--json")[0])
    return found


def best_of(found: dict[str, Any]) -> tuple[str, float, int]:
    return found["best"]["trial"], found["best"]["metric"], found["best"]["epoch"]


def assert_finished(found: dict[str, Any]) -> None:
    assert (found["state"], found["cause"], best_of(found)) == ("done", "", BEST)
    assert found["trials"] == {"total": 8, **TRIALS}
    assert [(r["epochs"], r["reached"], r["best"]) for r in found["rungs"]] == [*RUNGS, (8, 1, BEST[1])]


def test_a_killed_run_tells_where_it_stood(tmp_path: Path) -> None:
    run = opened("killed", tmp_path)
    found = document(tmp_path, "status", run)
    assert (found["state"], found["controller"]) == ("interrupted", None)
    assert best_of(found) == ("0005", 0.22590106431996396, 2)
    assert found["best"]["checkpoint"] == str(run / "trials/0005/attempt-2/epoch-000002")
    assert found["trials"] == {"total": 8, **TRIALS, "waiting": 2, "paused": 2, "stopped": 4, "completed": 0}
    told(tmp_path, "report", run)
    assert "0005" in (run / "report.html").read_text()


@pytest.mark.slow
def test_a_killed_run_resumes_and_ends_as_the_undisturbed_one(tmp_path: Path) -> None:
    run = opened("killed", tmp_path)
    found = document(tmp_path, "resume", run)
    assert_finished(found)
    assert Path(found["best"]["checkpoint"]).is_relative_to(run)
    assert Path(found["best"]["checkpoint"]).is_dir()
    first = {
        t["trial"]: t["config"]
        for t in document(tmp_path, "status", opened("finished", tmp_path))["trial_list"]
    }
    assert {t["trial"]: t["config"] for t in found["trial_list"]} == first


@pytest.mark.slow
def test_a_killed_run_of_a_version_that_decided_otherwise_goes_on_from_there(tmp_path: Path) -> None:
    run = opened("killed", tmp_path)
    journal = run / "journal.jsonl"
    old = journal.read_text()
    journal.write_text(old.replace('"reason": "rank 5', '"reason": "once rank 5', 1))
    assert journal.read_text() != old
    assert document(tmp_path, "status", run)["trials"]["stopped"] == 4
    out, err = told(tmp_path, "resume", run, "--json")
    assert_finished(json.loads(out))
    assert err.count("an earlier version of parsl_rasda wrote this") == 1
    assert "the search goes on from what was decided" in err
    out, err = told(tmp_path, "resume", run, "--json")
    assert_finished(json.loads(out))
    assert "wrote this" not in err


@pytest.mark.parametrize("command", ["status", "resume", "report"])
def test_a_damaged_journal_is_told_with_its_line_and_left_alone(tmp_path: Path, command: str) -> None:
    run = opened("killed", tmp_path)
    lines = (run / "journal.jsonl").read_bytes().splitlines(keepends=True)
    damages = {5: lines[4][:30] + b"\n", 7: lines[6].replace(b'"at"', b'"bt"'), 9: lines[7]}
    for number, damage in damages.items():
        damaged = b"".join([*lines[: number - 1], damage, *lines[number:]])
        (run / "journal.jsonl").write_bytes(damaged)
        code, out, err = finish(start(tmp_path, command, run))
        assert code == 2, out + err
        assert f"journal.jsonl:{number}: " in err
        assert "put a sound copy of the file in its place" in err
        assert "Traceback" not in err
        assert (run / "journal.jsonl").read_bytes() == damaged


def test_a_finished_run_is_told_reported_and_done(tmp_path: Path) -> None:
    run = opened("finished", tmp_path)
    assert_finished(document(tmp_path, "status", run))
    told(tmp_path, "report", run)
    assert best_of(json.loads((run / "best.json").read_text())) == BEST
    assert len((run / "results.csv").read_text().splitlines()) == 1 + 8
    journal = (run / "journal.jsonl").read_bytes()
    assert_finished(document(tmp_path, "resume", run))
    assert (run / "journal.jsonl").read_bytes() == journal, "nothing was left to do"


def test_records_under_their_old_names_are_read(tmp_path: Path) -> None:
    concluded = {
        "type": "ConcludeTrial",
        "trial": "0000",
        "state": "stopped",
        "metric": 0.5,
        "reason": "rank 2",
    }
    records = [
        {"type": "SiteTroubled", "at": 1.0, "site": "a", "cause": "its disk is full"},
        {"type": "TimePassed", "at": 2.0},
    ]
    lines: list[dict[str, Any]] = [{"format": 1, "study": "old"}]
    lines += [{"n": n, "event": event, "instructions": [concluded]} for n, event in enumerate(records)]
    file = tmp_path / "journal.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    first, second = read(file)
    assert isinstance(first.event, SiteDegraded)
    assert isinstance(second.event, TimerFired)
    assert isinstance(first.instructions[0], TrialFinished)
