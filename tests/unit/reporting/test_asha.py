from __future__ import annotations

import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from parsl_rasda.orchestration.events import PilotStarted
from parsl_rasda.reporting.asha import asha_lines
from parsl_rasda.reporting.files import write_report
from parsl_rasda.reporting.overview import outcome_view, run_view
from parsl_rasda.reporting.runs import Run, read_run
from parsl_rasda.reporting.tables import as_text
from parsl_rasda.simulation.rehearsal import VirtualSite

TWO = VirtualSite(nodes=1, gpus_per_node=2)
LONG_TAIL = {"variant": "synchronous", "batch": "constant", "max_workers": 2, "max_t": 16}


@pytest.fixture
def ran(rehearsals: Any, tmp_path: Path) -> Any:
    """Return a run of the study whose `scheduler` and `tune` blocks have some keys changed."""

    def run_of(scheduler: Any, *, costs: Any = None, torn_after: float | None = None, **changes: Any) -> Run:
        study = rehearsals.study_of(scheduler=scheduler, **changes)
        rehearsals.into(tmp_path, study, costs=costs, site=TWO, torn_after=torn_after)
        return read_run(tmp_path)

    return run_of


def asha_in(view: Any) -> list[str]:
    """Return the two lines of a view that say what ASHA would have taken."""
    lines = [line.strip() for line in as_text(view).splitlines()]
    found = [i for i, line in enumerate(lines) if line.startswith("ASHA ")]
    return [" ".join(line.split()) for i in found for line in lines[i : i + 2]]


def test_a_constant_batch_that_is_judged_synchronously_has_the_same_best_sooner(ran: Any) -> None:
    run = ran(LONG_TAIL)
    asha = run.document()["asha"]
    assert asha["same_best"] is True
    assert asha["speedup"] > 1.25
    assert asha["speedup"] == pytest.approx(asha["makespan_s"] / run.document()["makespan_s"], abs=1e-3)
    said = [
        "ASHA would have found the same best in 4 min 5 s, 58.2 s later: RASDA was 1.31 x as fast",
        "rehearsed with the times of this run",
    ]
    assert asha_in(outcome_view(run)) == said
    assert asha_in(run_view(run)) == said, "`status` says it, too"


def test_a_search_of_very_many_trials_is_not_compared(ran: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parsl_rasda.reporting.asha.MOST_TRIALS", 3)
    assert ran(LONG_TAIL).document()["asha"] is None


def test_the_same_trials_go_as_far_in_the_rehearsal(ran: Any) -> None:
    run = ran(LONG_TAIL)
    ends = [{t["trial"]: (t["state"], t["epoch"]) for t in s["trial_list"]} for s in both(run)]
    assert ends[0] == ends[1]
    bests = [s["best"]["trial"] for s in both(run)]
    assert bests[0] == bests[1]


def both(run: Run) -> tuple[Any, Any]:
    compared = run.asha["tune"]
    assert compared is not None
    return run.document(), compared.summary


def test_the_rehearsal_of_a_run_under_asha_takes_as_long_as_that_run(rehearsals: Any, tmp_path: Path) -> None:
    runs = {}
    for kind, growth in (("rasda", "elastic"), ("asha", "none")):
        folder = tmp_path / kind
        folder.mkdir()
        method = {**LONG_TAIL, "kind": kind, "growth": growth}
        rehearsals.into(folder, rehearsals.study_of(scheduler=method), site=TWO)
        runs[kind] = read_run(folder).document()
    assert runs["rasda"]["asha"]["makespan_s"] == pytest.approx(runs["asha"]["makespan_s"], rel=0.03)
    assert runs["rasda"]["best"]["trial"] == runs["asha"]["best"]["trial"]


@pytest.mark.parametrize(
    "scheduler",
    [{}, {**LONG_TAIL, "batch": "doubling"}, {**LONG_TAIL, "variant": "stopping"}],
    ids=["doubling, stopping", "doubling", "stopping"],
)
def test_elsewhere_only_times_are_compared(ran: Any, scheduler: Any) -> None:
    run = ran(scheduler)
    assert run.document()["asha"]["same_best"] is False
    first, second = asha_in(outcome_view(run))
    assert "would have taken " in first
    assert second == "rehearsed with the times of this run; its best may differ"


@pytest.mark.parametrize(
    "changes",
    [
        {"training": {"python": "a:b", "reduce": "ddp"}},
        {"training": {"python": "a:b", "sharding": "fsdp"}},
        {"training": {"command": ["train", "{replicas}"]}},
        {"searcher": {"kind": "tpe"}},
        {"stop_when": {"no_improvement": 50}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_no_best_is_promised_where_bits_or_decisions_depend_on_the_schedule(ran: Any, changes: Any) -> None:
    assert ran(LONG_TAIL, **changes).document()["asha"]["same_best"] is False


def test_a_trial_that_diverged_would_have_diverged_under_asha(ran: Any, rehearsals: Any) -> None:
    good = rehearsals.costs_of().metric
    bad = rehearsals.costs_of(metric=lambda trial, epoch: math.nan if trial == 5 else good(trial, epoch))
    assert ran(LONG_TAIL, costs=bad).document()["asha"]["same_best"] is True


def test_a_search_that_was_slower_says_so(ran: Any, rehearsals: Any) -> None:
    run = ran(
        {"growth": "strict", "max_workers": 2}, num_samples=33, costs=rehearsals.costs_of(restart_s=9.0)
    )
    assert run.document()["asha"]["speedup"] < 0.95
    assert " less: RASDA was slower, 0." in asha_in(outcome_view(run))[0]


@pytest.mark.parametrize(
    ("makespan_s", "same_best", "faults", "text"),
    [
        (
            100.5,
            True,
            0,
            "would have found the same best in 1 min 40 s, as soon; rehearsed with the",
        ),
        (
            99.5,
            False,
            0,
            "1 min 40 s, as long; rehearsed with the times of this run; its best m",
        ),
        (90.0, True, 1, "in 1 min 30 s, 10.0 s sooner: RASDA was slower, 0.90 x; rehearsed"),
        (90.0, True, 1, "with the times of this run, without its 1 fault"),
        (90.0, False, 0, "would have taken 1 min 30 s, 10.0 s less: RASDA was slower, 0.90 x; rehearsed"),
        (130.0, True, 2, "in 2 min 10 s, 30.0 s later: RASDA was 1.30 x as fast; rehearsed"),
        (130.0, False, 2, "with the times of this run, without its 2 faults; its best may differ"),
    ],
)
def test_the_sentence_fits_each_case(makespan_s: float, same_best: bool, faults: int, text: str) -> None:
    asha = {"makespan_s": makespan_s, "speedup": makespan_s / 100, "same_best": same_best, "faults": faults}
    assert text in "; ".join(asha_lines(asha, 100.0))


def test_epochs_beyond_a_stop_are_said_to_be_unknown() -> None:
    asha = {"makespan_s": 90.0, "speedup": 0.9, "same_best": False, "faults": 0, "unknown_epochs": 1}
    said = asha_lines(asha, 100.0)[1]
    assert said.endswith("; its best may differ: curves of 1 epoch beyond a stop are unknown")


@pytest.mark.parametrize(
    "scheduler", [{"kind": "asha"}, {"growth": "none"}, {"kind": "asha", "growth": "none"}]
)
def test_nothing_is_said_of_asha_where_nothing_grows(ran: Any, scheduler: Any) -> None:
    run = ran({**LONG_TAIL, **scheduler})
    assert run.document()["asha"] is None
    assert asha_in(outcome_view(run)) == []
    assert not [file for file in write_report(run) if file.name == "asha.svg"]


@pytest.mark.parametrize("torn_after", [0.0, 13.0, 60.0], ids=["no pilot", "no epoch", "not at its end"])
def test_nothing_is_said_before_the_end(ran: Any, torn_after: float) -> None:
    run = ran(LONG_TAIL, torn_after=torn_after)
    assert run.document()["asha"] is None
    assert asha_in(outcome_view(run)) == []
    write_report(run)
    assert "ASHA" not in (run.directory / "report.html").read_text(encoding="utf-8")


def test_a_larger_metric_that_is_good_enough_ends_the_rehearsal_too(ran: Any, rehearsals: Any) -> None:
    upward = rehearsals.costs_of(metric=lambda trial, epoch: trial + 0.01 * epoch)
    run = ran(LONG_TAIL, mode="max", stop_when={"metric_above": 5.0}, costs=upward)
    assert run.document()["stopped"]
    summary = both(run)[1]
    assert summary["stopped"]
    assert run.document()["asha"]["makespan_s"] < 150


def test_the_page_and_the_picture_show_both_charts_on_one_time_axis(ran: Any) -> None:
    run = ran(LONG_TAIL)
    files = {file.name: file.read_text(encoding="utf-8") for file in write_report(run)}
    page, picture = files["report.html"], files["asha.svg"]
    assert page.count('aria-label="Which trial held which GPUs when"') == 4, (
        "each for wide and narrow windows"
    )
    assert "<b>ASHA</b>, rehearsed: 4 min 5 s" in page
    assert "1.31 x this run" in page
    assert "ASHA would have found the same best in 4 min 5 s" in page
    svg = ElementTree.fromstring(picture)
    charts = list(svg.iter("{http://www.w3.org/2000/svg}g"))
    assert len(charts) == 2
    ticks = [[t.text for t in g if t.get("class") == "tick" and t.text != "n0000"] for g in charts]
    assert ticks[0] == ticks[1]
    assert svg.get("aria-label") == (
        "RASDA as it ran: 3 min 7 s; ASHA as rehearsed: 4 min 5 s, the same best, 58.2 s later"
    )


def test_asha_is_rehearsed_on_the_nodes_that_the_run_had(rehearsals: Any, tmp_path: Path) -> None:
    site = VirtualSite(nodes=2, gpus_per_node=2, pilots=2)
    rehearsals.into(tmp_path, rehearsals.study_of(scheduler={**LONG_TAIL, "max_workers": 4}), site=site)
    run = read_run(tmp_path)
    started = [r.event for r in run.searches["tune"].records if isinstance(r.event, PilotStarted)]
    assert [[n.node for n in e.nodes] for e in started] == [["n0000", "n0001"], ["n0002", "n0003"]]
    compared = run.asha["tune"]
    assert compared is not None
    assert {slot[1] for slot in compared.occupancy.slots} == {"n0000", "n0001", "n0002", "n0003"}
