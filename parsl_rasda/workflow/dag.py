"""The stages of a study as a graph, and the calls that each of them makes; pure."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, assert_never

from parsl_rasda.errors import InvalidSettingError, StageFailedError
from parsl_rasda.orchestration import data_locality
from parsl_rasda.study import EACH, CommandStage, PythonStage, SiteSpec, Stage, StudySpec, TuneStage
from parsl_rasda.study.files import file_url, local_path
from parsl_rasda.study_code.code import code_of
from parsl_rasda.study_code.targets import TargetError
from parsl_rasda.types import SiteName

_BEST_TRIAL = {"trial", "config", "checkpoint"}  # keys that only what a search returns has
_MOST_FILES = 10_000  # of a folder among the arguments that are looked at


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a stage.

    Attributes:
        name: Of its folder and its kept result, below those of the stage.
        site: Where; None is every site, for a search.
        key: Digest of all that the result depends on, which stands as long as the key does: the code,
            the arguments, the files they name, and the keys of the calls they come from.
        inputs: The same without the code: what a search that goes on must have kept.
        files: URLs by argument; the arguments get the paths of what is staged.
    """

    name: str
    site: SiteName | None
    arguments: Mapping[str, Any]
    key: str
    inputs: str = ""
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StageResult:
    """What a stage returned, and the digest of how it came about.

    Attributes:
        parts: The digest of each element, if the stage has fanned out.
    """

    value: Any
    key: str
    parts: Sequence[str] = ()


def ready_stages(study: StudySpec, done: Collection[str]) -> Iterator[str]:
    """Yield the stages that are not done and whose needs are, in the order of the file."""
    for name, stage in study.stages.items():
        if name not in done and all(before in done for before in stage.stages_before):
            yield name


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


def made_by(
    study: StudySpec, name: str, done: Mapping[str, StageResult], sites: Sequence[SiteName]
) -> data_locality.Made:
    """Return what a stage that is done has made, and the only site it ran on, or None; of a search its best.

    Args:
        study: The study.
        name: The stage.
        done: Results, those of the stages it needs among them.
        sites: Those of the run.
    """
    stage, value = study.stages[name], done[name].value
    if isinstance(stage, TuneStage):
        return value["checkpoint"], next((site for site in sites if site == value["site"]), None)
    at = sites_of(stage, done, sites)
    is_by_site = of_site(value, sites[0], sites) is not value
    return value, None if is_by_site or len(at) > 1 else at[0]


def sites_of_search(
    study: StudySpec, name: str, done: Mapping[str, StageResult], sites: Sequence[SiteSpec]
) -> tuple[dict[SiteName, SiteSpec], tuple[str, ...]]:
    """Return the sites that have all inputs of a search, and a sentence about the others, if there are any.

    Raises:
        InvalidSettingError: If there is none.
    """
    stage, names = study.tune_stages[name], [SiteName(site.name) for site in sites]
    made = {before: made_by(study, before, done, names) for before in stage.needs.values()}
    bounds = [*data_locality.constants(stage, names), *data_locality.results(stage, made, sites)]
    for problem in data_locality.conflicts(name, stage, names, bounds):
        raise InvalidSettingError(".".join(map(str, problem.loc)), problem.found, problem.allowed)
    found = data_locality.usable(stage, sites, bounds)
    return {SiteName(site.name): site for site in found}, data_locality.left_out(name, stage, sites, bounds)


def of_site(value: Any, site: SiteName, sites: Collection[SiteName]) -> Any:
    """Return what an argument is on a site, if it is a mapping with the name of every site; else itself.

    A best trial never is one, although a site may have the name of one of its keys: ``site``.
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
    code = _code_of(stage, search_path)
    needed = {a: done[s].key for a, s in stage.needs.items()}
    named = files_named_in(
        [stage.with_, stage.for_each, stage.command if isinstance(stage, CommandStage) else ()]
    )
    calls = []
    for site in at or (None,):
        if site is None:
            here, over = constants, lists
        else:
            here, over = ({a: of_site(v, site, sites) for a, v in g.items()} for g in (constants, lists))
        for index, chosen in enumerate(itertools.product(*_elements(stage, over, done))):
            name = f"{site}/{index:04d}" if stage.site == EACH else f"{index:04d}"
            arguments = {**here, **{a: value for a, (value, _) in zip(over, chosen, strict=True)}}
            origins = {**needed, **{a: key for a, (_, key) in zip(over, chosen, strict=True)}}
            inputs = _digest([site, arguments, origins, named])
            files = {} if site is None else _staged(stage, arguments)
            plain = {a: value for a, value in arguments.items() if a not in files}
            calls.append(Call(name, site, plain, _digest([code, inputs]), inputs, files))
    return tuple(calls)


def _elements(
    stage: Stage, over: Mapping[str, Any], done: Mapping[str, StageResult]
) -> Iterator[Sequence[tuple[Any, str]]]:
    """Yield the values of each list of `for_each`, each with the digest of how it came about."""
    for argument, values in over.items():
        source = stage.for_each[argument]
        if not isinstance(values, list | tuple):
            kind = type(values).__name__
            cause = f"for_each: {argument}: stage {source} returned no list, but a value of type {kind}"
            raise StageFailedError(str(source), cause)
        if not isinstance(source, str):
            yield [(value, "") for value in values]
            continue
        whole, parts = done[source].key, done[source].parts
        keys = parts if len(parts) == len(values) else [whole] * len(values)
        yield list(zip(values, keys, strict=True))


def _staged(stage: Stage, arguments: Mapping[str, Any]) -> dict[str, str]:
    urls = {argument: file_url(arguments[argument]) for argument in stage.with_}
    return {argument: url for argument, url in urls.items() if url is not None}


def files_named_in(values: Any) -> list[Any]:
    """Return path, size and time of change of every file that is named among values, also in folders."""
    match values:
        case str() if path := local_path(values):
            return files_named_in(path)
        case str() if values.startswith("/") and os.path.exists(values):  # noqa: PTH110 - Path raises
            return _entry(Path(values))
        case Mapping():
            return [entry for value in values.values() for entry in files_named_in(value)]
        case list() | tuple():
            return [entry for value in values for entry in files_named_in(value)]
        case _:
            return []


def _entry(path: Path) -> list[Any]:
    files = sorted(itertools.islice(path.rglob("*"), _MOST_FILES)) if path.is_dir() else [path]
    states = ((file, file.stat()) for file in files if file.is_file())
    return [[str(file), state.st_size, state.st_mtime_ns] for file, state in states]


def under_kept_names(calls: Sequence[Call], kept: Mapping[str, str]) -> tuple[Call, ...]:
    """Return calls under the names by which they are kept, and others under names that are free.

    Args:
        calls: Calls in their order, each under the name of its place in it.
        kept: Names by keys.
    """
    taken = {kept[call.key] for call in calls if call.key in kept}
    named = []
    for call in calls:
        name = kept.get(call.key, call.name)
        if call.key not in kept:
            site, _, index = name.rpartition("/")
            free = (f"{site}/{i:04d}" if site else f"{i:04d}" for i in itertools.count(int(index)))
            name = next(n for n in free if n not in taken)
            taken.add(name)
        named.append(replace(call, name=name))
    return tuple(named)


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
    keys = [call.key for call in calls]
    return StageResult(value, _digest([keys, what]), keys if stage.for_each and stage.site != EACH else ())


def _code_of(stage: Stage, search_path: Sequence[str]) -> str:
    paths = tuple(Path(path) for path in search_path)
    match stage:
        case PythonStage():
            return f"{stage.python} {_source_of(stage.python, paths)}"
        case CommandStage():
            return json.dumps(list(stage.command))
        case TuneStage():
            training = stage.tune.training.python
            method = stage.tune.model_dump(mode="json", by_alias=True, exclude={"num_samples"})
            return f"{json.dumps(method)} {_source_of(training, paths) if training else ''}"
        case _:
            assert_never(stage)


def _source_of(target: str, paths: Sequence[Path]) -> str:
    try:
        return code_of(target, paths)
    except TargetError:
        return ""  # not here: the site that runs it will say whether it has it


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
