"""The graph of a run: every stretch that was decided on, readable at any number of trials."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import networkx as nx
import pytest

from parsl_rasda.orchestration.assembly import build_machine
from parsl_rasda.orchestration.events import Event, Instruction
from parsl_rasda.orchestration.unfolding import Unfolding
from parsl_rasda.reporting.graph import READABLE, collapsed, graphml, mermaid, run_graph
from parsl_rasda.reporting.graph_svg import layout, svg
from parsl_rasda.reporting.runs import read_run
from parsl_rasda.simulation.rehearsal import Rehearsal, VirtualSite
from parsl_rasda.vocabulary import SiteName


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
    unfolding = Unfolding(machine)

    class Check:
        def add(self, event: Event, instructions: tuple[Instruction, ...]) -> None:
            unfolding.add(event, instructions)
            for trial in machine.trials.values():
                rungs = [d["rung"] for d in stretches(unfolding.graph).values() if d["trial"] == trial.id]
                assert sorted(rungs) == list(range(len(rungs)))
                assert max(rungs) == trial.rung

    sites = {SiteName("virtual"): VirtualSite(nodes=1, gpus_per_node=2)}
    Rehearsal(machine, sites, rehearsals.costs_of(), [Check()]).run(6)
    assert len(unfolding.graph) > 6
