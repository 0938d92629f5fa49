"""The stages of a study as a graph, and the calls that each of them makes; pure."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, assert_never

import networkx as nx

from parsl_rasda.pipeline.calls import fingerprint
from parsl_rasda.study import CommandStage, PythonStage, Stage, StudySpec, TuneStage


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a stage.

    Attributes:
        key: Digest of the code, the arguments and the keys of what they come from: the result
            stands as long as the key does.
    """

    index: int
    arguments: Mapping[str, Any]
    key: str


@dataclass(frozen=True, slots=True)
class StageResult:
    """What a stage returned, and the digest of how it came about."""

    value: Any
    key: str


def stage_graph(study: StudySpec) -> nx.DiGraph[str]:
    """Return the graph of a study: an edge from each stage to those that need it."""
    graph: nx.DiGraph[str] = nx.DiGraph(name=study.name)
    for name, stage in study.stages.items():
        graph.add_node(name, stage=stage)
        graph.add_edges_from((before, name) for before in stage.stages_before)
    return graph


def ready_stages(graph: nx.DiGraph[str], done: Mapping[str, StageResult]) -> Iterator[str]:
    """Yield the stages that are not done and whose needs are, in the order of the file."""
    for name in graph:
        if name not in done and all(before in done for before in graph.predecessors(name)):
            yield name


def calls_of(stage: Stage, done: Mapping[str, StageResult], search_path: Sequence[str]) -> tuple[Call, ...]:
    """Return the calls of a stage whose needs are done, one per combination of `for_each`."""
    constants = {**stage.with_, **{a: done[s].value for a, s in stage.needs.items()}}
    lists = {a: done[v].value if isinstance(v, str) else v for a, v in stage.for_each.items()}
    seed = _digest([_code_of(stage, search_path), [done[s].key for s in stage.stages_before]])
    combinations = itertools.product(*lists.values())
    calls = []
    for index, values in enumerate(combinations):
        arguments = {**constants, **dict(zip(lists, values, strict=True))}
        calls.append(Call(index, arguments, _digest([seed, arguments])))
    return tuple(calls)


def result_of(stage: Stage, calls: Sequence[Call], values: Sequence[Any]) -> StageResult:
    """Return what the stages after this one receive: the list of results if it fans out."""
    value = list(values) if stage.for_each else values[0]
    what = value if isinstance(stage, TuneStage) else None  # a search may go on, with more trials
    return StageResult(value, _digest([[call.key for call in calls], what]))


def _code_of(stage: Stage, search_path: Sequence[str]) -> str:
    match stage:
        case PythonStage():
            return f"{stage.python} {fingerprint(stage.python, search_path)}"
        case CommandStage():
            return json.dumps(list(stage.command))
        case TuneStage():
            return ""  # its journal knows what it was begun with
        case _:
            assert_never(stage)


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
