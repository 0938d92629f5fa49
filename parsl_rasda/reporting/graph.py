"""The decision graph of a run, as GraphML for tools and Mermaid for pages; `graph_svg` draws it.

Up to `READABLE` trials, each stretch is drawn; above, stretches that share a rung and a fate are drawn
as one. Up to `READABLE_CALLS` calls of a stage, each is drawn; above, the stage shows their number.
GraphML always holds everything.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from html import escape
from typing import Any

import networkx as nx

from parsl_rasda.orchestration.decision_graph import graph_of_decisions, last_stretch
from parsl_rasda.plain_text import printable
from parsl_rasda.reporting.graph_calls import add_stage
from parsl_rasda.reporting.runs import Run
from parsl_rasda.types import Mode

READABLE, READABLE_CALLS = 64, 16
COLOURS = {
    "stage": "#d9e2ec",
    "continue": "#c6e5c3",
    "completed": "#7cc47f",
    "running": "#fff3bf",
    "pause": "#ffe8cc",
    "stopped": "#f1f3f5",
    "failed": "#ffc9c9",
    "unfinished": "#ffffff",
}
_SHARED = ("kind", "search", "mode", "rung", "until", "replicas", "decision")  # by all vertices of a group

_STAGE_FATES = {"running": "running", "failed": "failed", "no_site": "failed", "unfinished": "unfinished"}


def run_graph(run: Run) -> nx.DiGraph[str]:
    """Return the graph of a whole run: its stages, their calls, and every stretch of training."""
    whole: nx.DiGraph[str] = nx.DiGraph(name=run.study.name)
    ends: dict[str, str] = {}
    for name in run.order:
        before = [ends.get(s, s) for s in run.study.stages[name].stages_before]
        history = run.searches.get(name)
        if history is not None:
            part = graph_of_decisions(history, before)
            prefix = "" if len(run.searches) == 1 else f"{name}:"
            names = {v: prefix + v for v, data in part.nodes(data=True) if data.get("kind") == "stretch"}
            nx.set_node_attributes(part, dict.fromkeys(names, name), "search")
            nx.set_node_attributes(part, dict.fromkeys(names, history.tune.mode.value), "mode")
            whole = nx.compose(nx.relabel_nodes(part, names), whole)
            best = history.summary()["best"]
            last = last_stretch(part, best["trial"]) if best else None
            if last:
                ends[name] = names[last]
                continue
        add_stage(whole, run, name, ends)  # also a search without a best trial: later stages depend on it
    return whole


def graphml(graph: nx.DiGraph[str]) -> str:
    """Return the graph with all attributes as GraphML."""
    plain = nx.relabel_nodes(graph, {vertex: printable(vertex) for vertex in graph})
    for data in (plain.graph, *(data for _, data in plain.nodes(data=True))):
        data.update({key: printable(value) for key, value in data.items() if isinstance(value, str)})
    return "\n".join(nx.generate_graphml(plain)) + "\n"


def mermaid(graph: nx.DiGraph[str]) -> str:
    """Return the graph as a Mermaid flowchart."""
    drawn = collapsed(graph)
    names = {vertex: f"v{i}" for i, vertex in enumerate(drawn)}
    lines = ["flowchart LR"]
    for vertex, data in drawn.nodes(data=True):
        text = escape(" ".join(" ".join(lines_of(data)).split()), quote=False).replace('"', "'")
        lines.append(f'  {names[vertex]}["{text}"]:::{fate_of(data)}')
    lines += [f"  {names[a]} --> {names[b]}" for a, b in drawn.edges]
    lines += [f"  classDef {fate} fill:{colour},stroke:#868e96" for fate, colour in COLOURS.items()]
    return printable("\n".join(lines) + "\n")


def collapsed(graph: nx.DiGraph[str]) -> nx.DiGraph[str]:
    """Return the graph with groups of vertices as one, where there are too many.

    A group is the stretches of one rung and one fate, or a stage with its calls.
    """
    trials = {data["trial"] for _, data in graph.nodes(data=True) if data.get("kind") == "stretch"}
    calls = Counter(data["stage"] for _, data in graph.nodes(data=True) if data.get("kind") == "call")
    group: dict[str, str] = {}
    for vertex, data in graph.nodes(data=True):
        match data.get("kind"):
            case "stretch" if len(trials) > READABLE:
                search = vertex.partition(data["trial"])[0]
                group[vertex] = f"{search}{data['rung']}/{data['decision']}"
            case "call" if calls[data["stage"]] > READABLE_CALLS:
                group[vertex] = data["stage"]
            case _:
                group[vertex] = vertex
    small: nx.DiGraph[str] = nx.DiGraph()
    for vertex, data in graph.nodes(data=True):
        name = group[vertex]
        if name == vertex:
            small.add_node(name, **data)
        elif data["kind"] == "call":
            small.add_node(name)  # the stage itself has its attributes
        else:
            if name not in small:
                shared = {key: data[key] for key in _SHARED if key in data}
                small.add_node(name, **shared, count=0, best="", worst="")
            _count(small.nodes[name], data)
    small.add_edges_from((group[a], group[b]) for a, b in graph.edges if group[a] != group[b])
    return small


def _count(node: dict[str, Any], data: Mapping[str, Any]) -> None:
    node["count"] += 1
    metric = data.get("metric")
    if isinstance(metric, float) and math.isfinite(metric):
        better, worse = (min, max) if data.get("mode") == Mode.MIN else (max, min)
        node["best"] = metric if node["best"] == "" else better(node["best"], metric)
        node["worst"] = metric if node["worst"] == "" else worse(node["worst"], metric)


def fate_of(data: Mapping[str, Any]) -> str:
    """Return the fate of a vertex: a decision, the end of a stage, or just ``stage``."""
    if data.get("kind") == "stretch":
        return str(data["decision"])
    return _STAGE_FATES.get(data.get("state", ""), "stage")


def lines_of(data: Mapping[str, Any]) -> list[str]:
    """Return the one or two lines of a box."""
    if data.get("kind") == "stage":
        return [str(data["label"]), *([_calls(data)] if "calls" in data else [])]
    if data.get("kind") == "call":
        return [str(data["label"]), *filter(None, [str(data["given"])])]
    if "count" in data:
        spread = "" if data["best"] == "" else f"{data['best']:.4g} to {data['worst']:.4g}"
        trials = "1 trial" if data["count"] == 1 else f"{data['count']} trials"
        return [f"{trials} to epoch {data['until']}", f"{data['decision']} {spread}".strip()]
    metric = data["metric"]
    shown = f"{metric:.4g}" if isinstance(metric, float) else "..."
    return [
        f"{data['trial']} to epoch {data['until']}, replicas: {data['replicas']}",
        f"{shown} {data['decision']}",
    ]


def _calls(data: Mapping[str, Any]) -> str:
    calls = "1 call" if data["calls"] == 1 else f"{data['calls']} calls"
    return calls if data["ended"] == data["calls"] else f"{data['ended']} of {calls}"
