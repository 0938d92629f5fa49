"""The unfolded graph of a run as a picture: stages and rungs from left to right, a band for each search.

Stages have a lane of their own on top, so that no line from one to the next runs behind calls or trials. In
a band, a trial has a row: the deepest ones on top, then the better ones; groups of trials are in the order
of their fates.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

import networkx as nx

from parsl_rasda.reporting.graph import COLOURS, collapsed, fate_of, words_of
from parsl_rasda.types import Mode

_WIDTH, _HEIGHT, _GAP_X, _GAP_Y, _MARGIN, _HEAD, _LEGEND = 168, 30, 56, 10, 16, 20, 34
_LINE = "#adb5bd"
_FATES = list(COLOURS)
_UNTOLD = {"kind", "label", "mode"}  # in what a box tells when it is pointed at

Corner = tuple[int, int]


def svg(graph: nx.DiGraph[str]) -> str:
    """Return the picture; too many trials are drawn as groups (`collapsed`)."""
    drawn = collapsed(graph)
    places, heads = layout(drawn)
    width = _MARGIN * 2 + max((x for x, _ in places.values()), default=0) + _WIDTH
    bottom = _MARGIN * 2 + max((y for _, y in places.values()), default=0) + _HEIGHT
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {bottom + _LEGEND}" width="{width}" '
        f'height="{bottom + _LEGEND}" font-family="sans-serif" font-size="11">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" '
        f'orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="{_LINE}"/></marker></defs>',
    ]
    lines += [_curve(places[a], places[b]) for a, b in drawn.edges]
    for vertex, data in drawn.nodes(data=True):
        lines += _box(data, *places[vertex])
    for search, (x, y) in heads.items():
        style = 'font-weight="bold" fill="#868e96"'
        lines.append(f'<text x="{x + _MARGIN}" y="{y + _MARGIN}" {style}>{escape(search)}</text>')
    lines += _legend(
        [fate for fate in _FATES if fate in {fate_of(d) for _, d in drawn.nodes(data=True)}], bottom
    )
    return "\n".join([*lines, "</svg>"]) + "\n"


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
    path = f"M{begin[0]},{begin[1]} C{begin[0] + bend},{begin[1]} {end[0] - bend},{end[1]} {end[0]},{end[1]}"
    return f'<path d="{path}" fill="none" stroke="{_LINE}" marker-end="url(#tip)"/>'


def _box(data: Mapping[str, Any], x: int, y: int) -> list[str]:
    left, top = x + _MARGIN, y + _MARGIN
    told = "\n".join(f"{k}: {v}" for k, v in data.items() if v not in ("", None) and k not in _UNTOLD)
    lines = [
        "<g>",
        f"<title>{escape(told)}</title>",
        f'<rect x="{left}" y="{top}" width="{_WIDTH}" height="{_HEIGHT}" rx="4" '
        f'fill="{COLOURS.get(fate_of(data), "#ffffff")}" stroke="#868e96"/>',
    ]
    words = words_of(data)
    for i, text in enumerate(words):
        baseline = top + (_HEIGHT + 8) // 2 + (i * 13 - 7 * (len(words) - 1))
        lines.append(f'<text x="{left + 6}" y="{baseline}">{escape(text)}</text>')
    return [*lines, "</g>"]


def _legend(fates: list[str], top: int) -> Iterator[str]:
    for i, fate in enumerate(fates):
        x, y = _MARGIN + i * 90, top + 4
        yield f'<rect x="{x}" y="{y}" width="14" height="14" rx="3" fill="{COLOURS[fate]}" stroke="#868e96"/>'
        yield f'<text x="{x + 20}" y="{y + 11}" fill="#868e96">{fate}</text>'
