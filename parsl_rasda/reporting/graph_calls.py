"""Calls of stages that fan out, as vertices: each after what it was given, its stage after all of them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import networkx as nx

from parsl_rasda.reporting.runs import Run
from parsl_rasda.study import EACH, Stage

_SHOWN = 26  # characters of what a call was given


def add_stage(whole: nx.DiGraph[str], run: Run, name: str, ends: Mapping[str, str]) -> None:
    """Add a stage that is not a search, or is a search without a result, and its calls once they are known.

    Args:
        whole: The graph so far, with all stages before this one.
        run: What is known.
        name: The stage.
        ends: The vertex that holds the result of a stage, if it is not the stage's own.
    """
    stage, found = run.study.stages[name], run.stages[name]
    before = [ends.get(s, s) for s in stage.stages_before]
    whole.add_node(name, kind="stage", label=name, state=found.state.value, reason=found.cause)
    calls = list(run.records[name].calls)
    if not calls or not (stage.for_each or stage.site == EACH):
        whole.add_edges_from((b, name) for b in before)
        return
    whole.nodes[name].update(calls=len(calls), ended=found.ended)
    needed = [ends.get(s, s) for s in stage.needs.values()]
    for call, given, elements in zip(
        calls, _given(stage, calls), _elements(whole, stage, calls), strict=True
    ):
        vertex, seconds = vertex_of(name, call), run.kept[name].get(call)
        whole.add_node(
            vertex,
            kind="call",
            label=vertex,
            stage=name,
            given=given,
            state="unfinished" if seconds is None else "done",
            seconds="" if seconds is None else seconds,
        )
        whole.add_edges_from((b, vertex) for b in dict.fromkeys([*needed, *elements]))
        whole.add_edge(vertex, name)


def vertex_of(stage: str, call: str) -> str:
    """Return the vertex of a call."""
    return f"{stage} {call}"


def _elements(whole: nx.DiGraph[str], stage: Stage, calls: Sequence[str]) -> Iterator[list[str]]:
    """Yield where each call has its values from: calls of another stage one by one, else whole stages."""
    sources = [s for s in stage.for_each.values() if isinstance(s, str)]
    if len(stage.for_each) == 1 and sources and stage.site != EACH:
        earlier = [b for b in whole.predecessors(sources[0]) if whole.nodes[b].get("stage") == sources[0]]
        if len(earlier) == len(calls):
            yield from ([vertex] for vertex in earlier)
            return
    yield from ([*sources] for _ in calls)


def _given(stage: Stage, calls: Sequence[str]) -> list[str]:
    """Return the values of each call as a string, as far as the study lists them."""
    lists = [[(a, v) for v in values] for a, values in stage.for_each.items() if not isinstance(values, str)]
    chosen = list(itertools.product(*lists))
    if len(lists) < len(stage.for_each) or len(chosen) != len(calls):
        return [""] * len(calls)
    return [_short(", ".join(f"{a}={_text(v)}" for a, v in values)) for values in chosen]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
