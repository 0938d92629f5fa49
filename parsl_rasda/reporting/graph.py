"""The unfolded graph of a run as GraphML (for tools), Mermaid (for pages) and SVG (for eyes).

Up to `READABLE` trials each stretch is drawn; above, those that share a rung and a fate are drawn
as one. GraphML always holds everything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from typing import Any

import networkx as nx

from parsl_rasda.orchestration.unfolding import last_stretch, unfold
from parsl_rasda.reporting.runs import Run

READABLE = 64

_COLOURS = {
    "stage": "#d9e2ec",
    "continue": "#c6e5c3",
    "completed": "#7cc47f",
    "running": "#fff3bf",
    "pause": "#ffe8cc",
    "stopped": "#f1f3f5",
    "failed": "#ffc9c9",
}
_STAGE_FATES = {"running": "running", "failed": "failed", "no_site": "failed"}
_WIDTH, _HEIGHT, _GAP_X, _GAP_Y, _MARGIN = 168, 30, 56, 10, 16


def run_graph(run: Run) -> nx.DiGraph[str]:
    """Return the graph of a whole run: its stages, and every stretch that its searches decided on."""
    whole: nx.DiGraph[str] = nx.DiGraph(name=run.study.name)
    ends: dict[str, str] = {}
    standings = run.stages
    for name in run.order:
        before = [ends.get(s, s) for s in run.study.stages[name].stages_before]
        history = run.searches.get(name)
        if history is not None:
            part = unfold(history, before)
            prefix = "" if len(run.searches) == 1 else f"{name}:"
            names = {v: prefix + v for v, data in part.nodes(data=True) if data.get("kind") == "stretch"}
            nx.set_node_attributes(part, dict.fromkeys(names, name), "search")
            whole = nx.compose(nx.relabel_nodes(part, names), whole)
            best = history.summary()["best"]
            last = last_stretch(part, best["trial"]) if best else None
            if last:
                ends[name] = names[last]
                continue
        # A stage of one vertex, as is a search without a best trial: later stages hang on it.
        found = standings[name]
        whole.add_node(name, kind="stage", label=name, state=found.state.value, reason=found.cause)
        whole.add_edges_from((b, name) for b in before)
    return whole


def graphml(graph: nx.DiGraph[str]) -> str:
    """Return the graph with all attributes as GraphML."""
    return "\n".join(nx.generate_graphml(graph)) + "\n"


def mermaid(graph: nx.DiGraph[str]) -> str:
    """Return the graph as a Mermaid flowchart."""
    drawn = collapsed(graph)
    names = {vertex: f"v{i}" for i, vertex in enumerate(drawn)}
    lines = ["flowchart LR"]
    for vertex, data in drawn.nodes(data=True):
        text = " ".join(_words(data)).replace('"', "'")
        lines.append(f'  {names[vertex]}["{text}"]:::{_fate(data)}')
    lines += [f"  {names[a]} --> {names[b]}" for a, b in drawn.edges]
    lines += [f"  classDef {fate} fill:{colour},stroke:#868e96" for fate, colour in _COLOURS.items()]
    return "\n".join(lines) + "\n"


def svg(graph: nx.DiGraph[str]) -> str:
    """Return the graph as a picture: stages and rungs from left to right, the deepest trials on top."""
    drawn = collapsed(graph)
    places = _layout(drawn)
    width = _MARGIN * 2 + max((x for x, _ in places.values()), default=0) + _WIDTH
    height = _MARGIN * 2 + max((y for _, y in places.values()), default=0) + _HEIGHT
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="sans-serif" font-size="11">'
    ]
    for a, b in drawn.edges:
        (xa, ya), (xb, yb) = places[a], places[b]
        begin, end = (
            (xa + _MARGIN + _WIDTH, ya + _MARGIN + _HEIGHT // 2),
            (xb + _MARGIN, yb + _MARGIN + _HEIGHT // 2),
        )
        middle = (begin[0] + end[0]) // 2
        path = f"M{begin[0]},{begin[1]} C{middle},{begin[1]} {middle},{end[1]} {end[0]},{end[1]}"
        lines.append(f'<path d="{path}" fill="none" stroke="#adb5bd"/>')
    for vertex, data in drawn.nodes(data=True):
        lines += _box(data, *places[vertex])
    return "\n".join([*lines, "</svg>"]) + "\n"


def collapsed(graph: nx.DiGraph[str]) -> nx.DiGraph[str]:
    """Return the graph, with stretches of one rung and one fate as a single vertex if there are too many."""
    trials = {data["trial"] for _, data in graph.nodes(data=True) if data.get("kind") == "stretch"}
    if len(trials) <= READABLE:
        return graph
    small: nx.DiGraph[str] = nx.DiGraph()
    group = {v: _group(v, data) for v, data in graph.nodes(data=True)}
    for vertex, data in graph.nodes(data=True):
        name = group[vertex]
        if name not in small:
            small.add_node(name, **{**data, "count": 0, "metrics": []})
        small.nodes[name]["count"] += 1
        if isinstance(data.get("metric"), float) and math.isfinite(data["metric"]):
            small.nodes[name]["metrics"].append(data["metric"])
    small.add_edges_from((group[a], group[b]) for a, b in graph.edges if group[a] != group[b])
    return small


def _group(vertex: str, data: Mapping[str, Any]) -> str:
    if data.get("kind") == "stage":
        return vertex
    search = vertex.partition(data["trial"])[0]
    return f"{search}{data['rung']}/{data['decision']}"


def _fate(data: Mapping[str, Any]) -> str:
    if data.get("kind") == "stretch":
        return str(data["decision"])
    return _STAGE_FATES.get(data.get("state", ""), "stage")


def _words(data: Mapping[str, Any]) -> list[str]:
    """Return the two lines of a box."""
    if data.get("kind") == "stage":
        return [str(data["label"])]
    if "count" in data:
        found = data["metrics"]
        spread = f"{min(found):.4g} to {max(found):.4g}" if found else ""
        return [f"{data['count']} trials to epoch {data['until']}", f"{data['decision']} {spread}".strip()]
    metric = data["metric"]
    shown = f"{metric:.4g}" if isinstance(metric, float) else "..."
    return [
        f"{data['trial']} to epoch {data['until']}, replicas: {data['replicas']}",
        f"{shown} {data['decision']}",
    ]


def _layout(graph: nx.DiGraph[str]) -> dict[str, tuple[int, int]]:
    """Return the upper left corner of each box: a column a generation, a row a trial."""
    column = {v: i for i, layer in enumerate(nx.topological_generations(graph)) for v in layer}
    depth: dict[str, tuple[int, float]] = {}
    for _, data in graph.nodes(data=True):
        if data.get("kind") == "stretch" and "count" not in data:
            metric = data["metric"] if isinstance(data["metric"], float) else math.inf
            depth[data["trial"]] = max(depth.get(data["trial"], (-1, 0.0)), (data["rung"], -metric))
    order = {
        trial: i
        for i, trial in enumerate(sorted(depth, key=lambda t: (depth[t][0], depth[t][1]), reverse=True))
    }
    used: dict[int, int] = {}
    places = {}
    for vertex, data in graph.nodes(data=True):
        at = column[vertex]
        row = order.get(data.get("trial", ""), used.get(at, 0)) if "count" not in data else used.get(at, 0)
        used[at] = used.get(at, 0) + 1
        places[vertex] = (at * (_WIDTH + _GAP_X), row * (_HEIGHT + _GAP_Y))
    return places


def _box(data: Mapping[str, Any], x: int, y: int) -> list[str]:
    left, top = x + _MARGIN, y + _MARGIN
    told = "\n".join(
        f"{k}: {v}" for k, v in data.items() if v not in ("", None) and k not in {"kind", "label"}
    )
    lines = [
        "<g>",
        f"<title>{escape(told)}</title>",
        f'<rect x="{left}" y="{top}" width="{_WIDTH}" height="{_HEIGHT}" rx="4" '
        f'fill="{_COLOURS.get(_fate(data), "#ffffff")}" stroke="#868e96"/>',
    ]
    words = _words(data)
    for i, text in enumerate(words):
        baseline = top + (_HEIGHT + 8) // 2 + (i * 13 - 6 * (len(words) - 1))
        lines.append(f'<text x="{left + 6}" y="{baseline}">{escape(text)}</text>')
    return [*lines, "</g>"]
