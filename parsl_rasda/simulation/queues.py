"""How long pilots wait in a queue: assumed, or as earlier ones did."""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from parsl_rasda.orchestration.events import PilotStarted, RequestPilot
from parsl_rasda.orchestration.replay import ReplayedSearch
from parsl_rasda.simulation.rehearsal import VirtualSite
from parsl_rasda.types import PilotId, SiteName

Waits = Mapping[SiteName, Sequence[float]]  # of pilots of a site [s]


def pilot_waits(searches: Iterable[ReplayedSearch]) -> dict[SiteName, list[float]]:
    """Return how long each pilot of some searches waited [s], by site; those that never came are left out."""
    found: dict[SiteName, list[float]] = {}
    for search in searches:
        asked: dict[PilotId, float] = {}
        for record in search.records:
            event = record.event
            if isinstance(event, PilotStarted) and event.pilot in asked:
                found.setdefault(event.site, []).append(event.at - asked.pop(event.pilot))
            for instruction in record.instructions:
                if isinstance(instruction, RequestPilot):
                    asked[instruction.pilot] = event.at
    return found


def with_waits(sites: Mapping[SiteName, VirtualSite], waits: Waits, draw: int) -> dict[SiteName, VirtualSite]:
    """Return sites whose pilots wait: the median time in the first draw, in others as one of the earlier.

    Args:
        sites: Their shapes.
        waits: How long earlier pilots waited [s], by site; a site without any stays as it is.
        draw: Its number, from 0.
    """
    found = dict(sites)
    for name, known in waits.items():
        if name not in sites or not known:
            continue
        pilots, rng = sites[name].pilots, random.Random(f"{draw}/queue/{name}")  # noqa: S311 - no secret
        queue_s = [rng.choice(known) for _ in range(pilots)] if draw else [statistics.median(known)] * pilots
        found[name] = replace(sites[name], queue_s=tuple(queue_s))
    return found
