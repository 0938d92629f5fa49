"""The decision graph of a run as a picture: stages and rungs from left to right, a band for each search.

Stages have a lane of their own on top, so that no line from one to the next runs behind calls or trials.
In a band, each trial has a row: those that came farthest are on top, better ones above worse ones. Groups
of trials are in the order of their fates.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import networkx as nx

from parsl_rasda.reporting.graph import COLOURS, collapsed, fate_of, lines_of
from parsl_rasda.reporting.templates import render
from parsl_rasda.types import Mode

_WIDTH, _HEIGHT, _GAP_X, _GAP_Y, _MARGIN, _HEAD, _LEGEND = 168, 30, 56, 10, 16, 20, 34
_UNSHOWN = {"kind", "label", "mode"}  # in the facts under the mouse

Corner = tuple[int, int]


def svg(graph: nx.DiGraph[str]) -> str:
    """Return the picture; too many trials are drawn as groups (`collapsed`)."""
    drawn = collapsed(graph)
    places, heads = layout(drawn)
    bottom = _MARGIN * 2 + max((y for _, y in places.values()), default=0) + _HEIGHT
    fates = {fate_of(data) for _, data in drawn.nodes(data=True)}
    legend = [(fate, colour) for fate, colour in COLOURS.items() if fate in fates]
    return render(
        "graph.svg",
        width=_MARGIN * 2 + max((x for x, _ in places.values()), default=0) + _WIDTH,
        height=bottom + _LEGEND,
        curves=[_curve(places[a], places[b]) for a, b in drawn.edges],
        boxes=[_box(data, *places[vertex]) for vertex, data in drawn.nodes(data=True)],
        heads={search: (x + _MARGIN, y + _MARGIN) for search, (x, y) in heads.items()},
        legend=[(_MARGIN + i * 90, bottom + 4, *entry) for i, entry in enumerate(legend)],
    )


def layout(graph: nx.DiGraph[str]) -> tuple[dict[str, Corner], dict[str, Corner]]:
    """Return the upper left corner of each box, no two the same, and where the name of each search goes."""
    column = {v: i for i, layer in enumerate(nx.topological_generations(graph)) for v in layer}
    kinds: dict[str, list[str]] = {"stage": [], "call": []}
    bands: dict[str, list[str]] = defaultdict(list)
    for vertex, data in graph.nodes(data=True):
        kind = data.get("kind")
        (kinds[kind] if kind in kinds else bands[str(data.get("search", "search"))]).append(vertex)
    places, top = _rows_by_column(kinds["stage"], column, 0)
    calls, below = _rows_by_column(kinds["call"], column, top)
    places |= calls
    searched = {column[v] for vertices in bands.values() for v in vertices}
    if any(min(searched) <= column[v] <= max(searched) for v in calls if searched):
        top = below  # else they stand side by side
    heads: dict[str, Corner] = {}
    for search, vertices in bands.items():
        if len(bands) > 1:
            heads[search] = (min(column[v] for v in vertices) * (_WIDTH + _GAP_X), top + _HEAD // 2)
            top += _HEAD
        band, top = _band(graph, vertices, column, top)
        places |= band
    return places, heads


def _rows_by_column(
    vertices: list[str], column: Mapping[str, int], top: int
) -> tuple[dict[str, Corner], int]:
    """Return the corners of boxes, one below the other in each column, and where the next lane begins."""
    used: dict[int, int] = defaultdict(int)
    places = {}
    for vertex in vertices:
        places[vertex] = (column[vertex] * (_WIDTH + _GAP_X), top + used[column[vertex]] * (_HEIGHT + _GAP_Y))
        used[column[vertex]] += 1
    return places, top + max(used.values(), default=0) * (_HEIGHT + _GAP_Y)


def _band(
    graph: nx.DiGraph[str], vertices: list[str], column: Mapping[str, int], top: int
) -> tuple[dict[str, Corner], int]:
    """Return the corners of one search and where the next band begins."""
    if any("count" in graph.nodes[v] for v in vertices):
        ordered = sorted(vertices, key=lambda v: _order_of_fate(graph.nodes[v]["decision"]))
        return _rows_by_column(ordered, column, top)
    rows = _rows(graph, vertices)
    step = _HEIGHT + _GAP_Y
    return {
        v: (column[v] * (_WIDTH + _GAP_X), top + rows[graph.nodes[v]["trial"]] * step) for v in vertices
    }, top + len(rows) * step


def _order_of_fate(fate: str) -> int:
    order = ("completed", "continue", "running", "pause", "stopped", "failed")
    return order.index(fate) if fate in order else len(order)


def _rows(graph: nx.DiGraph[str], vertices: list[str]) -> dict[str, int]:
    """Return the row of each trial: the deepest first, then the better one."""
    depth: dict[str, tuple[int, float]] = {}
    for vertex in vertices:
        data = graph.nodes[vertex]
        metric = data["metric"] if isinstance(data["metric"], float) else math.nan
        cost = metric if data.get("mode", Mode.MIN) == Mode.MIN else -metric
        depth[data["trial"]] = max(
            depth.get(data["trial"], (-1, 0.0)), (data["rung"], -cost if math.isfinite(cost) else -math.inf)
        )
    return {trial: row for row, trial in enumerate(sorted(depth, key=lambda t: depth[t], reverse=True))}


def _curve(source: Corner, target: Corner) -> str:
    (xa, ya), (xb, yb) = source, target
    begin = (xa + _MARGIN + _WIDTH, ya + _MARGIN + _HEIGHT // 2)
    end = (xb + _MARGIN, yb + _MARGIN + _HEIGHT // 2)
    bend = _GAP_X if end[0] - begin[0] > _GAP_X else (end[0] - begin[0]) // 2
    return f"M{begin[0]},{begin[1]} C{begin[0] + bend},{begin[1]} {end[0] - bend},{end[1]} {end[0]},{end[1]}"


def _box(data: Mapping[str, Any], x: int, y: int) -> dict[str, Any]:
    left, top = x + _MARGIN, y + _MARGIN
    lines = lines_of(data)
    first = top + (_HEIGHT + 8) // 2 - 7 * (len(lines) - 1)  # baseline
    return {
        "x": left,
        "y": top,
        "width": _WIDTH,
        "height": _HEIGHT,
        "colour": COLOURS[fate_of(data)],
        "facts": "\n".join(f"{k}: {v}" for k, v in data.items() if v not in ("", None) and k not in _UNSHOWN),
        "lines": [(first + i * 13, text) for i, text in enumerate(lines)],
    }
