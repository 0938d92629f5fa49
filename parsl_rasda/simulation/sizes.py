"""The same study on pilots of other sizes, and the pilots and walltimes that would do."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from parsl_rasda.errors import InvalidSettingError
from parsl_rasda.simulation.comparison import Comparison
from parsl_rasda.simulation.outcome import PilotForecast, PolicyForecast, SizeForecast
from parsl_rasda.simulation.rehearsal import VirtualSite
from parsl_rasda.study import TuneSpec
from parsl_rasda.types import SiteName

_SPARE = 1.2  # of the time that a pilot should live
_ROUNDED_S = 300.0  # to which a walltime is rounded up
_AS_GOOD = 1.05  # times the makespan, with which fewer pilots are enough

Sites = Mapping[SiteName, VirtualSite]


def gpus_of(sites: Sites) -> int:
    """Return the GPUs of all pilots."""
    return sum(s.pilots * s.nodes * s.gpus_per_node for s in sites.values())


def of_size(sites: Sites, nodes: int) -> dict[SiteName, VirtualSite]:
    """Return a site with pilots of so many nodes.

    Raises:
        InvalidSettingError: If there are several sites, whose pilots differ.
    """
    if len(sites) > 1:
        raise InvalidSettingError("--nodes", nodes, f"one site; this study has {', '.join(sites)}")
    return {name: replace(site, nodes=nodes, names=()) for name, site in sites.items()}


def sizes_of(
    comparison: Comparison, tune: TuneSpec, sites: Sites, nodes: Sequence[int]
) -> tuple[SizeForecast, ...]:
    """Return the policies on pilots of each size; none where a trial of the declared policy would not fit."""
    found = []
    for number in nodes:
        here = of_size(sites, number)
        policies = comparison.declared(tune, here, "RASDA elastic", "RASDA strict") or {}
        found.append(SizeForecast(number, gpus_of(here), tuple(policies.values())))
    return tuple(found)


def pilots_that_do(
    comparison: Comparison,
    tune: TuneSpec,
    sites: Sites,
    declared: PolicyForecast,
    walltimes_s: Mapping[SiteName, float],
) -> tuple[PilotForecast, ...]:
    """Return the number and walltime of the pilots of each site that would do.

    Args:
        comparison: Rehearses the study with fewer pilots.
        tune: The study's stage.
        sites: Where it runs.
        declared: The forecast of what it declares.
        walltimes_s: Of pilots, as site files declare them [s].
    """
    queue_s = declared.queue_s or 0.0
    longest_s = declared.ranges["makespan_s"][1]
    live_s = max(0.0, longest_s - queue_s)
    found = []
    for name, site in sites.items():
        enough = next(
            (n for n in _fewer(site.pilots) if _is_enough(comparison, tune, sites, name, n, declared)), None
        )
        limit_s = walltimes_s.get(name)
        in_turn = 1 if limit_s is None else max(1, math.ceil(live_s / limit_s))
        walltime_s = math.ceil(live_s * _SPARE / _ROUNDED_S) * _ROUNDED_S
        fewest = site.pilots if enough is None else enough
        found.append(
            PilotForecast(name, site.nodes, site.pilots, fewest, walltime_s, limit_s, queue_s, in_turn)
        )
    return tuple(found)


def _fewer(pilots: int) -> Iterator[int]:
    """Yield numbers of pilots below one, doubling from 1."""
    number = 1
    while number < pilots:
        yield number
        number *= 2


def _is_enough(
    comparison: Comparison,
    tune: TuneSpec,
    sites: Sites,
    site: SiteName,
    pilots: int,
    declared: PolicyForecast,
) -> bool:
    declared_site = sites[site]
    at_once = declared_site.pilots - declared_site.later
    smaller = replace(declared_site, pilots=pilots, later=max(0, pilots - at_once))
    fewer = {**sites, site: smaller}
    found = comparison.declared(tune, fewer)
    makespan_s = found[declared.name].makespan_s if found is not None else None
    return makespan_s is not None and makespan_s <= _AS_GOOD * (declared.makespan_s or 0.0)
