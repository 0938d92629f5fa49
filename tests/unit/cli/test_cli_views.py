from __future__ import annotations

import io
import re
from itertools import islice
from pathlib import Path

import pytest
from msgspec import structs
from rich.console import Console

from parsl_rasda.display.decisions import DecisionLog
from parsl_rasda.display.line import LineView
from parsl_rasda.display.live import LiveView, search_panel
from parsl_rasda.display.plain import PlainView
from parsl_rasda.display.search_progress import SearchProgress
from parsl_rasda.orchestration.assembly import build_machine
from parsl_rasda.orchestration.events import JobEnded, PilotEnded
from parsl_rasda.orchestration.journal import read
from parsl_rasda.orchestration.summary import best, summarise, time_left
from parsl_rasda.orchestration.usage import Usage
from parsl_rasda.reporting.overview import run_view
from parsl_rasda.reporting.runs import read_run
from parsl_rasda.reporting.tables import as_text
from parsl_rasda.types import JobId, Outcome, PilotId, SiteName


def follow(directory, attach, most=None):
    """Play a run, or its first records, to a view as the driver does: machine, usage, then the view."""
    (stage,) = read_run(directory).study.tune_stages.values()
    machine, usage = build_machine(stage.tune), Usage()
    observer = attach(machine, usage)
    for record in islice(read(directory / "journal.jsonl"), most):
        machine.handle(record.event)
        usage.add(record.event, record.instructions)
        observer.add(record.event, record.instructions)
    return observer


def lines_of(directory) -> list[str]:
    output = io.StringIO()
    view = PlainView(output)
    follow(directory, lambda machine, usage: view.search("tune", machine, usage, alone=True))
    return output.getvalue().splitlines()


def test_every_decision_is_one_line_of_facts(finished) -> None:
    lines = lines_of(finished)
    assert all(re.match(r"\d\d:\d\d:\d\d [a-z-]+( \w+=(\S+|\".*\"))*$", line) for line in lines), lines
    verbs = [line.split()[1] for line in lines]
    assert verbs[:3] == ["searching", "requested", "joined"]
    assert verbs.count("started") == 8
    assert verbs.count("stopped") + verbs.count("completed") + verbs.count("failed") == 8
    assert "widened" in verbs or "promoted" in verbs
    assert lines[-1].endswith("finished state=done")


def test_of_several_searches_each_line_says_whose_it_is(finished) -> None:
    output = io.StringIO()
    view = PlainView(output)
    follow(finished, lambda machine, usage: view.search("coarse", machine, usage, alone=False))
    said = [line.split(" ", 1)[1] for line in output.getvalue().splitlines()]
    alone = [line.split(" ", 1)[1] for line in lines_of(finished)]
    assert said == [f"{line} stage=coarse" for line in alone]


def test_a_notebook_has_one_line_that_ends_with_the_outcome(finished) -> None:
    shown: list[str] = []
    view = LineView(shown.append)
    follow(finished, lambda machine, usage: view.search("tune", machine, usage, alone=True))
    view.close()
    assert len(shown) < 20, "it is not written at every event"
    assert "\n" not in "".join(shown)
    best = read_run(finished).document()["best"]
    assert shown[-1].startswith("tune: 8 of 8 trials have ended, 0 running; ")
    assert shown[-1].endswith(
        f"best val_loss {best['metric']:.5g} (trial {best['trial']}, {best['epoch']} epochs)"
    )


def test_a_failure_has_a_line_with_its_reason(finished) -> None:
    (line,) = [line for line in lines_of(finished) if " failed " in line]
    assert line.split(" ", 1)[1] == 'failed trial=0005 reason="val_loss is nan after epoch 1"'


def test_each_promotion_has_one_line_whether_or_not_it_restarts(finished) -> None:
    promoted = [line for line in lines_of(finished) if " promoted " in line]
    milestones = {1, 2, 4}
    reached = sum(
        len(milestones & t.history.keys()) - (t.state != "completed")
        for t in read_run(finished).searches["tune"].machine.trials.values()
    )
    assert len(promoted) == reached


def test_losses_and_pilots_have_lines_with_their_causes(finished) -> None:
    machine = build_machine(read_run(finished).searches["tune"].tune)
    log = DecisionLog(machine)
    lost = JobEnded(0.0, JobId.parse("0001.2"), Outcome.LOST, 'node "n1" is down')
    (line,) = log.lines(lost, ())
    assert str(line).split(" ", 1)[1] == r'lost trial=0001 attempt=2 cause="node \"n1\" is down"'
    (line,) = log.lines(PilotEnded(0.0, PilotId("a-0"), SiteName("a"), "walltime"), ())
    assert str(line).split(" ", 1)[1] == "left pilot=a-0 cause=walltime"


def test_stages_are_lines_too() -> None:
    output = io.StringIO()
    view = PlainView(output)
    view.stage_started("prepare", 4)
    view.stage_ended("prepare", 1.25, reused=True)
    view.stage_failed("evaluate", "ValueError: no field")
    view.close()
    first, second, third = output.getvalue().splitlines()
    assert third.endswith('stage-failed name=evaluate cause="ValueError: no field"')
    assert first.endswith("stage name=prepare calls=4")
    assert second.endswith("stage-done name=prepare seconds=1.25 result=reused")


def test_a_closed_terminal_does_not_end_a_run() -> None:
    output = io.StringIO()
    output.close()
    PlainView(output).stage_started("prepare", 1)


def test_progress_kept_event_by_event_equals_the_summary(finished) -> None:
    progress = follow(finished, lambda machine, usage: SearchProgress("tune", machine, usage))
    found, summary = progress.snapshot(), read_run(finished).document()
    assert found.states == {k: n for k, n in summary["trials"].items() if k != "total"}
    assert sum(found.states.values()) == found.total
    assert [(r.epochs, r.reached, r.best) for r in found.rungs] == [
        (r["epochs"], r["reached"], r["best"]) for r in summary["rungs"]
    ]
    assert (found.best.trial, found.best.epoch, found.best.metric, found.best.config) == tuple(
        summary["best"][key] for key in ("trial", "epoch", "metric", "config")
    )
    assert (found.gpus, found.busy, found.epochs) == (4, 0, summary["epochs"])
    assert found.restarts == summary["restarts"]["count"] > 0


def overtaken(rehearsals, directory, mode) -> Path:
    """A run whose trials get worse as they train on, the first ones most."""
    sign = 1 if mode == "min" else -1
    costs = rehearsals.costs_of(metric=lambda trial, epoch: sign * epoch * (9 - trial) + trial % 2)
    rehearsals.into(directory, rehearsals.study_of(mode=mode, num_samples=9), costs=costs)
    return directory


@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_best_that_is_shown_is_what_the_search_would_return(rehearsals, tmp_path, mode) -> None:
    """After every event; the best metric ever is not it: nobody can have that epoch back."""
    directory = overtaken(rehearsals, tmp_path, mode)
    seen = set()

    class Check:
        def __init__(self, machine, usage) -> None:
            self.machine, self.progress = machine, SearchProgress("tune", machine, usage)

        def add(self, event, instructions) -> None:
            self.progress.add(event, instructions)
            shown, found = self.progress.snapshot().best, best(self.machine)
            assert (shown and shown.trial, shown and shown.metric) == (
                found and found["trial"],
                found and found["metric"],
            )
            seen.add(shown and shown.trial)

    follow(directory, Check)
    assert len(seen) > 3, "the best trial changes"


def test_progress_that_begins_in_the_middle_knows_what_came_before(finished) -> None:
    history = read_run(finished).searches["tune"]
    whole = follow(finished, lambda machine, usage: SearchProgress("tune", machine, usage)).snapshot()
    late = SearchProgress("tune", history.machine, history.usage).snapshot()
    assert (late.states, late.rungs, late.best) == (whole.states, whole.rungs, whole.best)


def test_the_live_picture_shows_trials_rungs_gpus_and_the_best(finished) -> None:
    progress = follow(finished, lambda machine, usage: SearchProgress("tune", machine, usage))
    text = as_text(search_panel(progress.snapshot()), width=100)
    for part in (
        "8 of 8 trials ended",
        "1 failed",
        "0 of 4 busy",
        "best    val_loss",
        "state=done",
    ):
        assert part in text, part
    assert max(map(len, text.splitlines())) == 100


def test_a_live_view_follows_searches_and_leaves_the_screen(finished) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, legacy_windows=False)
    view = LiveView(console)
    try:
        view.stage_started("prepare", 2)
        view.stage_ended("prepare", 3.0, reused=False)
        view.stage_started("tune", 1)
        follow(finished, lambda machine, usage: view.search("tune", machine, usage, alone=True))
        text = as_text(view.render(), width=100)
        assert "✓ prepare" in text
        assert "▸ tune" in text
        view.stage_started("evaluate", 1)
        view.stage_failed("evaluate", "ValueError: no field")
        assert "✗ evaluate    ValueError: no field" in as_text(view.render(), width=100)
        assert "trials ended" in text
        view.stage_ended("tune", 9.0, reused=False)
        assert "trials ended" not in as_text(view.render())
    finally:
        view.close()


def test_a_live_view_before_its_pilot_says_what_it_waits_for(finished) -> None:
    machine = build_machine(read_run(finished).searches["tune"].tune)
    text = as_text(search_panel(SearchProgress("tune", machine, Usage()).snapshot()))
    assert "waiting for a pilot" in text
    assert "none yet" in text


@pytest.mark.parametrize("verb", ["widened", "narrowed"])
def test_a_change_of_width_has_its_own_word(verb, finished) -> None:
    from dataclasses import replace

    from parsl_rasda.orchestration.events import StartJob

    records = list(read(finished / "journal.jsonl"))
    start = next(i for r in records for i in r.instructions if isinstance(i, StartJob))
    log = DecisionLog(build_machine(read_run(finished).searches["tune"].tune))
    (node,) = start.placement.nodes
    narrow, wide = (
        structs.replace(start, placement=replace(start.placement, nodes=(replace(node, gpus=gpus),)))
        for gpus in ((0,), (0, 1))
    )
    first, second = (narrow, wide) if verb == "widened" else (wide, narrow)
    list(log.lines(records[0].event, (first,)))
    again = structs.replace(second, job=JobId(second.job.trial, 2))
    assert [t.verb for t in log.lines(PilotEnded(0.0, PilotId("x"), SiteName("x"), ""), (again,))][-1] == verb


def test_at_every_moment_the_states_of_trials_add_up(finished) -> None:
    class Check:
        def __init__(self, machine, usage) -> None:
            self.machine, self.usage = machine, usage
            self.progress = SearchProgress("tune", machine, usage)
            self.waiting = []

        def add(self, event, instructions) -> None:
            self.progress.add(event, instructions)
            trials = summarise("s", self.machine, self.usage)["trials"]
            assert sum(n for name, n in trials.items() if name != "total") == trials["total"] == 8
            assert self.progress.snapshot().states == {k: n for k, n in trials.items() if k != "total"}
            self.waiting.append(trials["waiting"])

    check = follow(finished, Check)
    assert check.waiting[0] == 8, "those that have no configuration yet wait, too"
    assert check.waiting[-1] == 0


def test_the_time_that_is_left_is_told_while_the_search_runs(finished) -> None:
    class Check:
        def __init__(self, machine, usage) -> None:
            self.machine, self.usage, self.told = machine, usage, []

        def add(self, event, instructions) -> None:
            self.told.append((event.at, time_left(self.machine, self.usage)))

    told = follow(finished, Check).told
    end = told[-1][0]
    middle = [(at, left) for at, left in told[len(told) // 2 :] if left is not None]
    assert told[0][1] is None, "nothing has ended yet"
    assert told[-1][1] is None, "nothing is left"
    assert middle
    for at, left in middle:
        assert 0 <= left <= 5 * (end - at) + 60


@pytest.mark.parametrize("count", [5, 12, 30, 10_000])
def test_the_live_view_fits_80_columns_and_24_lines_and_names_its_columns(finished, count) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80, height=24, legacy_windows=False)
    view = LiveView(console)
    try:
        view.stage_started("tune", 1)
        follow(finished, lambda machine, usage: view.search("tune", machine, usage, alone=True), count)
        lines = as_text(view.render(), width=80).splitlines()
    finally:
        view.close()
    assert len(lines) < 24
    assert max(map(len, lines)) == 80
    (heads,) = [line for line in lines if "decision" in line]
    assert heads.strip("│ ").split() == ["time", "decision", "trial", "until", "GPUs", "what"]
    (rungs,) = [line for line in lines if "replicas  " in line]
    assert rungs.strip("│ ").split() == ["epochs", "replicas", "trials", "best"]
    assert any(line.startswith("│ faults") for line in lines)


@pytest.mark.parametrize(
    ("accelerators", "word"),
    [(["cpu"], "cores"), (["cuda"], "GPUs"), (["none"], "slots"), (["cuda", "cpu"], "slots"), ([], "GPUs")],
)
def test_slots_are_called_what_they_are(finished, accelerators, word) -> None:
    sites = finished / "sites"
    for file in sites.glob("*.yaml"):
        file.unlink()
    for number, accelerator in enumerate(accelerators):
        (sites / f"{number}.yaml").write_text(f"name: x\naccelerator: {accelerator}\n")
    run = read_run(finished)
    text = as_text(run_view(run))
    assert f"{word.removesuffix('s')}-hours" in text
    assert run.document()["slot_kind"] == word
    console = Console(file=io.StringIO(), force_terminal=True, width=80, height=24, legacy_windows=False)
    view = LiveView(console, sites)
    try:
        follow(finished, lambda machine, usage: view.search("tune", machine, usage, alone=True))
        assert f"│ {word}" in as_text(view.render(), width=80)
    finally:
        view.close()


def test_of_many_rungs_the_live_view_shows_those_that_trials_are_at(rehearsals, tmp_path) -> None:
    study = rehearsals.study_of(num_samples=8, scheduler={"max_t": 4096})
    rehearsals.into(tmp_path, study, torn_after=2000.0)
    console = Console(file=io.StringIO(), force_terminal=True, width=80, height=24, legacy_windows=False)
    view = LiveView(console)
    try:
        view.stage_started("tune", 1)
        found = follow(tmp_path, lambda machine, usage: view.search("tune", machine, usage, alone=True))
        lines = as_text(view.render(), width=80).splitlines()
    finally:
        view.close()
    rungs = found.snapshot().rungs
    assert len(rungs) == 13
    reached = [r.epochs for r in rungs if r.reached]
    shown = [int(line.split()[1]) for line in lines if re.match(r"│ +\d+ +\d+ +\d+ ", line)]
    assert len(lines) < 24
    assert len(shown) == 4
    assert shown[-1] == 2 * reached[-1], "the next one that nobody has reached is the last"


def test_a_terminal_that_shows_a_typed_ctrl_c_does_not_shift_the_picture(finished) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80, height=24, legacy_windows=False)
    view = LiveView(console)
    try:
        follow(finished, lambda machine, usage: view.search("tune", machine, usage, alone=True))
        with console.capture() as captured:
            console.print(view.render())
    finally:
        view.close()
    assert captured.get().endswith("╯\x1b[0m\n\n")
