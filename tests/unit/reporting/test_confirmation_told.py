"""What a run says of its confirmation: log lines, last lines, and beside ASHA."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from parsl_rasda.display.plain import PlainView
from parsl_rasda.display.search_progress import SearchProgress
from parsl_rasda.orchestration.assembly import build_machine
from parsl_rasda.orchestration.journal import read
from parsl_rasda.orchestration.run_names import OfSearch
from parsl_rasda.orchestration.usage import Usage
from parsl_rasda.reporting.overview import outcome_view, run_view
from parsl_rasda.reporting.runs import read_run
from parsl_rasda.reporting.tables import as_text
from parsl_rasda.simulation.rehearsal import VirtualSite

TWO = VirtualSite(nodes=1, gpus_per_node=2)
CONFIRM = {"top": 2, "seeds": 3}
LONG_TAIL = {"variant": "synchronous", "batch": "constant", "max_workers": 2, "max_t": 16}


def run_of(rehearsals: Any, folder: Path, scheduler: Any = LONG_TAIL, **changes: Any) -> Any:
    folder.mkdir(exist_ok=True)
    study = rehearsals.study_of(scheduler=scheduler, **{"confirm": CONFIRM, **changes})
    rehearsals.into(folder, study, site=TWO)
    return read_run(folder)


def follow(run: Any, attach: Any) -> Any:
    """Play a run to a view as the driver does."""
    machine, usage = build_machine(run.study.tune_stages["tune"].tune), Usage()
    observer = attach(machine, usage)
    for record in read(run.directory / "journal.jsonl"):
        machine.handle(record.event)
        usage.add(record.event, record.instructions)
        observer.add(record.event, record.instructions)
    return observer


def lines_of(run: Any) -> list[str]:
    output = io.StringIO()
    view = PlainView(output)
    follow(run, lambda machine, usage: view.search("tune", machine, usage, alone=True))
    return [line.split(" ", 1)[1] for line in output.getvalue().splitlines()]


def test_the_log_tells_its_begin_each_run_and_its_end(rehearsals: Any, tmp_path: Path) -> None:
    run = run_of(rehearsals, tmp_path)
    found, lines = run.document()["confirm"], lines_of(run)
    trials = [row["trial"] for row in found["candidates"]]
    begin = lines.index(f"confirming trials={','.join(trials)} runs=6")
    assert not any(" trial=c" in line for line in lines[:begin])
    names = sorted(f"c{trial}-{n}" for trial in trials for n in (1, 2, 3))
    for verb in ("started", "completed"):
        told = [
            line.split()[1].removeprefix("trial=") for line in lines[begin:] if line.startswith(f"{verb} ")
        ]
        assert sorted(told) == names, "once each"
    assert not any(line.startswith("promoted trial=c") for line in lines), "nobody judges a run"
    (row,) = [row for row in found["candidates"] if row["trial"] == found["winner"]]
    said = f"confirmed trial={row['trial']} mean={row['mean']:.6g} spread={row['spread']:.6g}"
    assert lines[-2:] == [said, "finished state=done"]


def test_a_run_in_brackets_has_no_bracket_of_its_own(rehearsals: Any, tmp_path: Path) -> None:
    run = run_of(rehearsals, tmp_path, {"brackets": 3}, num_samples=12)
    starts = [line for line in lines_of(run) if line.startswith("started trial=c")]
    assert len(starts) == 6
    assert not any("bracket=" in line for line in starts)


def test_progress_counts_the_trials_of_the_search_alone(rehearsals: Any, tmp_path: Path) -> None:
    run = run_of(rehearsals, tmp_path)
    whole = follow(run, lambda machine, usage: SearchProgress("tune", machine, usage)).snapshot()
    alone = follow(run, lambda machine, usage: OfSearch(SearchProgress("tune", machine, usage)))
    searched = alone.observer.snapshot()
    assert (whole.states, whole.total, whole.rungs, whole.best) == (
        (searched.states, searched.total, searched.rungs, searched.best)
    )


def test_the_last_lines_and_status_say_once_what_it_came_to(rehearsals: Any, tmp_path: Path) -> None:
    run, alone = run_of(rehearsals, tmp_path / "a"), run_of(rehearsals, tmp_path / "b", confirm=None)
    row = run.document()["confirm"]["candidates"][0]
    said = f"confirmed with 3 new seeds each: trial {row['trial']} stays the best (mean {row['mean']:.5g}"
    for view in (outcome_view(run), run_view(run)):
        assert " ".join(as_text(view).split()).count(said) == 1
    epochs = run.document()["epochs"]
    more = epochs - alone.document()["epochs"]
    assert f"{epochs}, {more} of them to confirm" in as_text(outcome_view(run))
    assert "confirm" not in as_text(outcome_view(alone))


def test_asha_is_rehearsed_with_the_confirmation_too(rehearsals: Any, tmp_path: Path) -> None:
    rasda = run_of(rehearsals, tmp_path / "rasda")
    asha = run_of(rehearsals, tmp_path / "asha", {**LONG_TAIL, "kind": "asha", "growth": "none"})
    found, summary = rasda.document()["asha"], rasda.document()
    assert found["makespan_s"] == pytest.approx(asha.document()["makespan_s"], rel=0.03)
    assert found["speedup"] == pytest.approx(found["makespan_s"] / summary["makespan_s"], abs=1e-3)
    assert found["confirms"] is found["same_best"] is True
    text = " ".join(as_text(outcome_view(rasda)).split())
    assert "rehearsed with the times of this run, its confirmation included" in text
    alone = run_of(rehearsals, tmp_path / "alone", confirm=None)
    assert alone.document()["asha"]["confirms"] is False
    assert alone.document()["asha"]["makespan_s"] < found["makespan_s"]
