"""The graph of a run: every stretch that was decided on, readable at any number of trials."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import networkx as nx
import pytest

from parsl_rasda.orchestration.assembly import build_machine
from parsl_rasda.orchestration.decision_graph import DecisionGraph
from parsl_rasda.orchestration.events import Event, Instruction
from parsl_rasda.orchestration.stage_records import StageRecord, keep_result, write_record
from parsl_rasda.reporting.graph import READABLE, READABLE_CALLS, collapsed, graphml, mermaid, run_graph
from parsl_rasda.reporting.graph_svg import layout, svg
from parsl_rasda.reporting.runs import read_run
from parsl_rasda.simulation.rehearsal import Rehearsal, VirtualSite
from parsl_rasda.study import StudySpec
from parsl_rasda.types import SiteName, StageState


@pytest.fixture
def graph(rehearsals: Any, tmp_path: Path) -> nx.DiGraph:
    rehearsals.into(tmp_path, rehearsals.study_of(num_samples=16))
    return run_graph(read_run(tmp_path))


def stretches(graph: nx.DiGraph) -> dict[str, dict[str, Any]]:
    return {v: d for v, d in graph.nodes(data=True) if d.get("kind") == "stretch"}


def test_each_stretch_of_each_trial_is_a_vertex_after_the_one_before(graph: nx.DiGraph) -> None:
    found = stretches(graph)
    assert {d["trial"] for d in found.values()} == {f"{i:04d}" for i in range(16)}
    for vertex, data in found.items():
        assert data["until"] == (1, 2, 4, 8)[data["rung"]]
        assert data["decision"] in {"continue", "stopped", "completed"}
        placements = data["placements"].split("; ")
        assert all(placements), "it was trained somewhere"
        assert all(a != b for a, b in itertools.pairwise(placements)), "each place once"
        before = list(graph.predecessors(vertex))
        assert before == ([f"{data['trial']}/{data['rung'] - 1}"] if data["rung"] else [])
        assert (graph.out_degree(vertex) == 1) == (data["decision"] == "continue")
    assert nx.is_directed_acyclic_graph(graph)


def test_a_stretch_names_the_trials_it_was_compared_with(graph: nx.DiGraph) -> None:
    at_first_rung = [d for d in stretches(graph).values() if d["rung"] == 0]
    compared = sorted((d["compared_with"].split() for d in at_first_rung), key=len)
    assert [len(c) for c in compared] == list(range(16)), "each against all that were there before"
    for earlier, later in itertools.pairwise(compared):
        assert later[: len(earlier)] == earlier


def test_the_exports_are_whole_and_well_formed(graph: nx.DiGraph, tmp_path: Path) -> None:
    again = nx.parse_graphml(graphml(graph))
    assert set(again) == set(graph)
    assert set(again.edges) == set(graph.edges)
    picture = ElementTree.fromstring(svg(graph))  # a picture of our own
    boxes = picture.findall("{http://www.w3.org/2000/svg}g")
    assert len(boxes) == len(graph)
    assert len(set(layout(graph)[0].values())) == len(graph), "no box hides another"
    assert mermaid(graph).count("-->") == graph.number_of_edges()


def test_a_thousand_trials_are_drawn_as_one_box_a_rung_and_fate(rehearsals: Any, tmp_path: Path) -> None:
    rehearsals.into(tmp_path, rehearsals.study_of(num_samples=READABLE + 36))
    graph = run_graph(read_run(tmp_path))
    small = collapsed(graph)
    assert len(small) <= 4 * 3
    assert sum(d["count"] for _, d in small.nodes(data=True)) == len(stretches(graph))
    assert "trials to epoch 8" in svg(graph)


def test_two_searches_and_their_stages_hide_nobody() -> None:
    graph: nx.DiGraph = nx.DiGraph()
    graph.add_nodes_from([("prepare", {"kind": "stage"}), ("evaluate", {"kind": "stage"})])
    for search, trial, rung in itertools.product(("first", "second"), ("0000", "0001"), (0, 1)):
        vertex = f"{search}:{trial}/{rung}"
        known = {"search": search, "trial": trial, "rung": rung, "metric": 0.5, "decision": "stopped"}
        graph.add_node(vertex, kind="stretch", **known)
        graph.add_edge(f"{search}:{trial}/{rung - 1}" if rung else "prepare", vertex)
    graph.add_edges_from([("first:0000/1", "evaluate"), ("prepare", "evaluate")])
    places, heads = layout(graph)
    assert len(set(places.values())) == len(graph)
    assert set(heads) == {"first", "second"}
    lane = {places["prepare"][1], places["evaluate"][1]}
    assert lane == {0}
    assert all(y > 0 for v, (_, y) in places.items() if ":" in v), "lines between stages cross no trial"


def test_a_vertex_appears_the_moment_it_is_decided(rehearsals: Any) -> None:
    """After every event there is a stretch for each trial that exists, and none beyond its present rung."""
    tune = next(iter(rehearsals.study_of(num_samples=6).tune_stages.values())).tune
    machine = build_machine(tune)
    decisions = DecisionGraph(machine)

    class Check:
        def add(self, event: Event, instructions: tuple[Instruction, ...]) -> None:
            decisions.add(event, instructions)
            for trial in machine.trials.values():
                rungs = [d["rung"] for d in stretches(decisions.graph).values() if d["trial"] == trial.id]
                assert sorted(rungs) == list(range(len(rungs)))
                assert max(rungs) == trial.rung

    sites = {SiteName("virtual"): VirtualSite(nodes=1, gpus_per_node=2)}
    Rehearsal(machine, sites, rehearsals.costs_of(), [Check()]).run(6)
    assert len(decisions.graph) > 6


# ------------------------------------------------------------------------------------ calls of stages

PYTHON = "workflows.emulated.train:train"


def fanned_out(rehearsals: Any, directory: Path, seeds: int, *, done: int | None = None) -> nx.DiGraph:
    """Two stages that fan out, the second over the first, before a search; some calls have ended."""
    study = rehearsals.study_of().model_dump(mode="json", by_alias=True, exclude_unset=True)
    study["stages"] = {
        "simulate": {"python": PYTHON, "for_each": {"seed": list(range(seeds)), "grid": [64]}},
        "render": {"python": PYTHON, "for_each": {"field": "simulate"}},
        "prepare": {"python": PYTHON, "needs": {"clips": "render"}},
        "tune": {**study["stages"]["tune"], "needs": {"data": "prepare"}},
    }
    rehearsals.into(directory, StudySpec.model_validate(study))
    calls = {f"{n:04d}": str(n) for n in range(seeds)}
    for stage in ("simulate", "render"):
        folder = directory / "stages" / stage
        for call in list(calls)[: done if stage == "render" else None]:
            keep_result(folder, call, calls[call], {"result": call, "seconds": 1.5})
        state = StageState.DONE if stage == "simulate" or done is None else StageState.RUNNING
        write_record(folder, StageRecord(state, at=1.0, calls=calls, result=list(calls)))
    return run_graph(read_run(directory))


def test_the_calls_of_a_stage_are_vertices_between_what_they_need_and_their_stage(
    rehearsals: Any, tmp_path: Path
) -> None:
    graph = fanned_out(rehearsals, tmp_path, 4, done=3)
    for n in range(4):
        assert list(graph.predecessors(f"simulate {n:04d}")) == []
        assert list(graph.predecessors(f"render {n:04d}")) == [f"simulate {n:04d}"], "of its own element"
    assert set(graph.predecessors("simulate")) == {f"simulate {n:04d}" for n in range(4)}
    assert list(graph.predecessors("prepare")) == ["render"]
    ended = [graph.nodes[f"render {n:04d}"]["state"] for n in range(4)]
    assert ended == ["done", "done", "done", "unfinished"]
    assert graph.nodes["simulate 0002"]["given"] == "seed=2, grid=64"
    assert set(nx.parse_graphml(graphml(graph))) == set(graph)
    assert len(set(layout(graph)[0].values())) == len(graph), "no box hides another"
    picture = svg(graph)
    assert "seed=2, grid=64" in picture
    assert "3 of 4 calls" in picture
    assert "unfinished" in picture


@pytest.mark.slow
def test_calls_of_a_stage_with_few_are_drawn_and_with_many_counted(rehearsals: Any, tmp_path: Path) -> None:
    for calls in (READABLE_CALLS, READABLE_CALLS + 1, 1000):
        whole = fanned_out(rehearsals, tmp_path / str(calls), calls)
        drawn = collapsed(whole)
        assert sum(d.get("kind") == "call" for _, d in whole.nodes(data=True)) == 2 * calls
        found = [d for _, d in drawn.nodes(data=True) if d.get("kind") == "call"]
        assert len(found) == (2 * calls if calls == READABLE_CALLS else 0)
        assert f"{calls} calls" in svg(whole)
        assert f"{calls} calls" in mermaid(whole)
        assert nx.is_directed_acyclic_graph(drawn)
        assert nx.has_path(drawn, "simulate" if not found else "simulate 0000", "prepare")
        assert len(stretches(drawn)) == len(stretches(whole))


def test_calls_beside_a_search_are_above_it_and_others_at_its_side() -> None:
    for is_beside in (True, False):
        graph: nx.DiGraph = nx.DiGraph()
        graph.add_nodes_from([("prepare", {"kind": "stage"}), ("work", {"kind": "stage"})])
        known = {"search": "tune", "trial": "0000", "rung": 0, "metric": 0.5, "decision": "stopped"}
        graph.add_node("0000/0", kind="stretch", **known)
        graph.add_edge("prepare", "0000/0")
        for call in ("work 0000", "work 0001"):
            graph.add_node(call, kind="call", stage="work")
            graph.add_edges_from([("prepare" if is_beside else "0000/0", call), (call, "work")])
        places, _ = layout(graph)
        assert len(set(places.values())) == len(graph)
        lowest = max(places["work 0000"][1], places["work 0001"][1])
        assert (places["0000/0"][1] > lowest) == is_beside


def test_calls_that_need_a_list_hang_on_its_stage_and_each_site_has_its_own(
    rehearsals: Any, tmp_path: Path
) -> None:
    study = rehearsals.study_of().model_dump(mode="json", by_alias=True, exclude_unset=True)
    study["stages"] = {
        "list": {"python": PYTHON},
        "copy": {"python": PYTHON, "site": "each", "needs": {"file": "list"}},
        "work": {"python": PYTHON, "for_each": {"file": "list", "twice": [1, 2]}},
        **study["stages"],
    }
    rehearsals.into(tmp_path, StudySpec.model_validate(study))
    for stage, calls in (("copy", ["a/0000", "b/0000"]), ("work", ["0000", "0001"])):
        record = StageRecord(StageState.RUNNING, at=1.0, calls=dict.fromkeys(calls, "k"))
        write_record(tmp_path / "stages" / stage, record)
    graph = run_graph(read_run(tmp_path))
    for call in ("copy a/0000", "copy b/0000", "work 0000", "work 0001"):
        assert list(graph.predecessors(call)) == ["list"]
        assert graph.nodes[call]["given"] == ""
