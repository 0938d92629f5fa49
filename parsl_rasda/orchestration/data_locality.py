"""Where the trials of a search may run: on the sites of the run that have all of its inputs. Pure.

An input is on some sites only

- if it is a constant by site, ``with: {data: {alps: /scratch/a, fjord: /work/b}}``: on those it names. A
  mapping is one by site if one of its keys is a site of the run;
- if it is the result of a stage that ran on one site, and a path: an absolute path (or ``file:///`` URL),
  or a list or mapping with one somewhere. It is on the disk of that site. The sites that see the run
  directory share one disk; each other site has its own.

Numbers, other strings, and what a stage has made on each site are everywhere.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from parsl_rasda.diagnostics import listing, shown, suggestion
from parsl_rasda.errors import Diagnostic
from parsl_rasda.study import EACH, SiteSpec, Stage, StudySpec, TuneStage
from parsl_rasda.study.files import local_path
from parsl_rasda.types import SiteName

Made: TypeAlias = tuple[object, SiteName | None]  # what a stage returned, and the only site it ran on

_SLIP = 0.8  # how alike the name of a site and a key are that was meant to be it


@dataclass(frozen=True, slots=True)
class Bound:
    """An input that not every site of the run has.

    Attributes:
        key: Where it is declared, below its stage.
        sites: Those that have it.
        words: Of what it is, and where.
    """

    key: tuple[str, str]
    sites: frozenset[SiteName]
    words: str


def constants(stage: Stage, sites: Sequence[SiteName]) -> Iterator[Bound]:
    """Yield the constants of a stage that are given for some of the sites only."""
    for argument, value in stage.with_.items():
        named = value.keys() & set(sites) if isinstance(value, Mapping) else frozenset()
        if named and len(named) < len(sites):
            here = frozenset(SiteName(site) for site in named)
            yield Bound(("with", argument), here, f"`{argument}` is given for {_listed(here)} only")


def results(stage: Stage, made: Mapping[str, Made], sites: Sequence[SiteSpec]) -> Iterator[Bound]:
    """Yield the results that a stage needs and that are on some of the sites only.

    Args:
        stage: The stage.
        made: What the stages it needs have made, by name.
        sites: Those of the run.
    """
    for argument, before in stage.needs.items():
        value, site = made[before]
        if site is not None and any(paths_in(value)):
            yield from _on_disk_of(site, sites, argument, f"which stage {before} made, is")


def expected_results(study: StudySpec, stage: Stage, sites: Sequence[SiteSpec]) -> Iterator[Bound]:
    """Yield the results that will be on some of the sites only if they are paths, before any is there."""
    for argument, before in stage.needs.items():
        site = _only_site(study, study.stages[before], [SiteName(s.name) for s in sites])
        if site is not None:
            yield from _on_disk_of(site, sites, argument, f"if stage {before} returns a path, is")


def usable(stage: Stage, sites: Sequence[SiteSpec], bounds: Iterable[Bound]) -> tuple[SiteSpec, ...]:
    """Return the sites that a search may use: those that have all of its inputs."""
    known = tuple(bounds)
    return tuple(
        s for s in sites if stage.site in {None, s.name} and all(SiteName(s.name) in b.sites for b in known)
    )


def foreseen(
    study: StudySpec, name: str, sites: Sequence[SiteSpec]
) -> tuple[tuple[SiteSpec, ...], tuple[str, ...]]:
    """Return the sites that a search will probably use, and sentences about those that it leaves out.

    Results of stages are taken for paths, unless that leaves no site.
    """
    stage = study.tune_stages[name]
    certain = list(constants(stage, [SiteName(s.name) for s in sites]))
    assumed = list(expected_results(study, stage, sites))
    found = usable(stage, sites, [*certain, *assumed])
    if not found:
        words = "; ".join(b.words for b in assumed)
        return usable(stage, sites, certain), (
            f"Search {name} may find no site that has its inputs: {words}.",
        )
    return found, left_out(name, stage, sites, [*certain, *assumed])


def left_out(name: str, stage: Stage, sites: Sequence[SiteSpec], bounds: Iterable[Bound]) -> tuple[str, ...]:
    """Return a sentence about the sites that a search does not use for want of an input, if there are any."""
    known = list(bounds)
    used = {s.name for s in usable(stage, sites, known)}
    others = [SiteName(s.name) for s in sites if s.name not in used and stage.site in {None, s.name}]
    if not others:
        return ()
    why = "; ".join(b.words for b in known if not b.sites.issuperset(others))
    return (f"Search {name} runs no trial on {_listed(others)}: {why}.",)


def site_problems(study: StudySpec, sites: Sequence[SiteName]) -> Iterator[Diagnostic]:
    """Yield what of a study does not go with the sites it shall run on.

    These are stages on a site that the run does not have, constants that are not given for each site of a
    stage, misspelt names of sites, and searches whose inputs no site has together.
    """
    for name, stage in study.stages.items():
        if stage.site not in {None, EACH, *sites}:
            allowed = f"one of the sites given: {_listed(sites)}{suggestion(stage.site, sites)}"
            yield Diagnostic(("stages", name, "site"), shown(stage.site), allowed)
            continue
        given = list(constants(stage, sites))
        for bound in given:
            slip = _slip(stage.with_[bound.key[1]], bound.sites, sites)
            if slip or not isinstance(stage, TuneStage):
                allowed = f"a value for each site: {_listed(sites)}{slip}"
                yield Diagnostic(("stages", name, *bound.key), _listed(bound.sites), allowed)
        if isinstance(stage, TuneStage):
            yield from conflicts(name, stage, sites, given)


def conflicts(
    name: str, stage: TuneStage, sites: Sequence[SiteName], bounds: Iterable[Bound]
) -> Iterator[Diagnostic]:
    """Yield the input that leaves a search without a site, if one does."""
    left = {site for site in sites if stage.site in {None, site}}
    before = [f"it runs on {stage.site} only"] if stage.site else []
    for bound in bounds:
        left &= bound.sites
        if not left:
            found = f"{_listed(bound.sites)}, but {' and '.join(before)}"
            yield Diagnostic(("stages", name, *bound.key), found, "inputs that one site has together")
            return
        before.append(bound.words)


def paths_in(value: object) -> Iterator[str]:
    """Yield the absolute paths in a value, also those in lists and mappings."""
    match value:
        case str() if value.startswith("/"):
            yield value
        case str() if path := local_path(value):
            yield path
        case Mapping():
            for part in value.values():
                yield from paths_in(part)
        case list() | tuple():
            for part in value:
                yield from paths_in(part)
        case _:
            pass


def _on_disk_of(site: SiteName, sites: Sequence[SiteSpec], argument: str, how: str) -> Iterator[Bound]:
    sharing = [SiteName(s.name) for s in sites if s.capabilities.sees_run_directory]
    here = frozenset(sharing if site in sharing else [site])
    if len(here) < len(sites):
        yield Bound(("needs", argument), here, f"`{argument}`, {how} on the disk of {_listed(here)}")


def _only_site(study: StudySpec, stage: Stage, sites: Sequence[SiteName]) -> SiteName | None:
    """Return the only site that a stage will run on, or None if it runs on each or nobody can tell yet."""
    if isinstance(stage, TuneStage) or stage.site == EACH:
        return None
    if stage.site is not None:
        return SiteName(stage.site)
    follows_a_search = any(isinstance(study.stages[before], TuneStage) for before in stage.needs.values())
    return None if follows_a_search else sites[0]


def _slip(value: object, named: frozenset[SiteName], sites: Sequence[SiteName]) -> str:
    """Return which site a key was meant to name that is not a site, in words, or nothing."""
    unknown = [str(key) for key in value if key not in sites] if isinstance(value, Mapping) else []
    missing = [site for site in sites if site not in named]
    for key in unknown:
        for site in difflib.get_close_matches(key, missing, cutoff=_SLIP):
            if re.findall(r"\d+", key) == re.findall(r"\d+", site):
                return f" (is {key} meant to be {site}?)"
    return ""


def _listed(sites: Iterable[SiteName]) -> str:
    return listing(sorted(sites) if isinstance(sites, frozenset) else sites)
