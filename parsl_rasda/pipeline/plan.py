"""The stages of a study as a graph, and the calls that each of them makes; pure."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, assert_never

import networkx as nx

from parsl_rasda.errors import InvalidSettingError
from parsl_rasda.pipeline.calls import fingerprint
from parsl_rasda.study import EACH, CommandStage, PythonStage, Stage, StudySpec, TuneStage
from parsl_rasda.vocabulary import SiteName

_BEST_TRIAL = {"trial", "config", "checkpoint"}  # keys that only what a search returns has


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a stage.

    Attributes:
        name: Of its folder and its kept result, below those of the stage.
        site: Where; None is every site, for a search.
        key: Digest of the code, the arguments and the keys of what they come from: the result
            stands as long as the key does.
    """

    name: str
    site: SiteName | None
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


def check_sites(study: StudySpec, sites: Sequence[SiteName]) -> None:
    """Refuse a stage that names a site which the run does not have.

    Raises:
        InvalidSettingError: If there is one.
    """
    for name, stage in study.stages.items():
        if stage.site not in {None, EACH, *sites}:
            allowed = f"one of the sites given: {', '.join(sites)}"
            raise InvalidSettingError(f"stages.{name}.site", stage.site, allowed)


def sites_of(
    stage: Stage, done: Mapping[str, StageResult], sites: Sequence[SiteName]
) -> tuple[SiteName, ...]:
    """Return where a stage runs: as it says, else where the checkpoint of a search lies that it needs."""
    if stage.site == EACH:
        return tuple(sites)
    if stage.site is not None:
        return (SiteName(stage.site),)
    results = [done[before].value for before in stage.needs.values()]
    kept = [r for r in results if isinstance(r, dict) and isinstance(r.get("checkpoint"), str)]
    near = [r.get("site") for r in kept if "://" not in r["checkpoint"]]
    return (next((site for site in sites if site in near), sites[0]),)


def of_site(value: Any, site: SiteName, sites: Collection[SiteName]) -> Any:
    """Return what an argument is on a site, if it is a mapping with the name of every site; else itself.

    A best trial never is one: a site may be called ``site``, as its key is that tells where it lies.
    """
    is_by_site = isinstance(value, dict) and value.keys() >= set(sites) and not value.keys() >= _BEST_TRIAL
    return value[site] if is_by_site else value


def calls_of(
    stage: Stage,
    done: Mapping[str, StageResult],
    search_path: Sequence[str],
    *,
    at: Sequence[SiteName],
    sites: Collection[SiteName],
) -> tuple[Call, ...]:
    """Return the calls of a stage whose needs are done: one per site and combination of `for_each`.

    Args:
        stage: The stage.
        done: What the stages before it have returned.
        search_path: Folders of the study's own modules.
        at: The sites it runs on; none for a search, which has one call.
        sites: Those of the run.
    """
    constants = {**stage.with_, **{a: done[s].value for a, s in stage.needs.items()}}
    lists = {a: done[v].value if isinstance(v, str) else v for a, v in stage.for_each.items()}
    seed = _digest([_code_of(stage, search_path), [done[s].key for s in stage.stages_before]])
    calls = []
    for site in at or (None,):
        if site is None:
            here, over = constants, lists
        else:
            here, over = ({a: of_site(v, site, sites) for a, v in g.items()} for g in (constants, lists))
        for index, values in enumerate(itertools.product(*over.values())):
            name = f"{site}/{index:04d}" if stage.site == EACH else f"{index:04d}"
            arguments = {**here, **dict(zip(over, values, strict=True))}
            calls.append(Call(name, site, arguments, _digest([seed, arguments])))
    return tuple(calls)


def result_of(
    stage: Stage, calls: Sequence[Call], values: Sequence[Any], at: Sequence[SiteName]
) -> StageResult:
    """Return what stages after this one receive: a list of results if it fans out, by site if on each."""
    by_site: dict[SiteName | None, list[Any]] = {site: [] for site in at or (None,)}
    for call, found in zip(calls, values, strict=True):
        by_site[call.site].append(found)
    joined = {site: list(found) if stage.for_each else found[0] for site, found in by_site.items()}
    value = joined if stage.site == EACH else next(iter(joined.values()))
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
