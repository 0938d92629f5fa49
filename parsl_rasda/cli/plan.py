"""`parsl-rasda plan`: what a study will take, before anything is queued."""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from parsl_rasda.cli.options import (
    DEFAULT_SITES,
    AsJson,
    Overrides,
    Sites,
    load_inputs,
    load_run_inputs,
)
from parsl_rasda.cli.output import print_json, print_message, print_result
from parsl_rasda.errors import InvalidSettingError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from parsl_rasda.simulation.outcome import Forecast
    from parsl_rasda.study import SiteSpec
    from parsl_rasda.types import SiteName

_MOST_NODES = 100_000
_PARSLS_WALLTIME = "00:10:00"  # of a batch job where the site file has none


def plan(
    study: Annotated[
        Path | None, typer.Argument(metavar="STUDY", help="Study file (YAML). Default: that of --from.")
    ] = None,
    site: Sites = None,
    run: Annotated[
        Path | None,
        typer.Option("--from", metavar="DIR", help="Take times and metrics from this run, not estimates."),
    ] = None,
    fit_budget: Annotated[
        bool,
        typer.Option("--budget", help="Say the largest num_samples and max_t that fit into tune.budget."),
    ] = False,
    nodes: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...", help="Nodes of each pilot instead of the site's; several are compared."
        ),
    ] = None,
    figure: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="With --nodes: draw makespan and node-hours over the nodes; .svg or .png."
        ),
    ] = None,
    queue_wait: Annotated[
        float | None, typer.Option(min=0, metavar="SECONDS", help="How long each pilot waits in a queue.")
    ] = None,
    queue_from: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Pilots wait as those of this run did; may be repeated."),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Draws of what is unknown. Default: 5, fewer for large studies."
        ),
    ] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Predict makespan, GPU-hours and node-hours, without running anything.

    Shows the rungs, and RASDA elastic, RASDA strict, ASHA, synchronous rungs and Hyperband side by side. With
    --from, --set and --nodes it says what a finished run would have taken with other settings.
    """
    from parsl_rasda.backends.allocation import counted_here
    from parsl_rasda.cli.forecasts import forecast_view
    from parsl_rasda.reporting.runs import read_run
    from parsl_rasda.simulation.comparison import WhatIf
    from parsl_rasda.simulation.forecast import forecast_study
    from parsl_rasda.simulation.measured import counted_gpus

    sizes = _sizes(nodes)
    _check_figure(figure, sizes)
    if study is not None:
        admitted = load_inputs(study, site or DEFAULT_SITES, overrides or ())
    elif run is not None:
        admitted = load_run_inputs(run, site or (), overrides or ())
    else:
        raise InvalidSettingError("STUDY", None, "a study file, or --from DIR")
    spec, sites = admitted.study, admitted.sites
    earlier = read_run(run).searches if run is not None else {}
    counted = {**counted_here(sites), **counted_gpus(earlier.values())}
    waits = _waits(sites, queue_wait, queue_from or ())
    what_if = WhatIf(seeds, sizes, waits, _walltimes_s(sites), time.time(), fit_budget)
    forecasts = forecast_study(spec, sites, counted=counted, runs=earlier, what_if=what_if)
    if as_json:
        stages = [asdict(f) for f in forecasts]
        print_json({"study": spec.name, "sites": [s.name for s in sites], "stages": stages})
    else:
        print_result(forecast_view(spec.name, forecasts, run))
    if figure is not None:
        _draw(figure, forecasts)


def _sizes(text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    words = text.split(",")
    if not all(w.strip().isascii() and w.strip().isdigit() and 1 <= int(w) <= _MOST_NODES for w in words):
        raise InvalidSettingError("--nodes", text, "whole numbers from 1, such as 4,8,16,32")
    return tuple(dict.fromkeys(int(word) for word in words))


def _check_figure(figure: Path | None, sizes: tuple[int, ...]) -> None:
    if figure is None:
        return
    from parsl_rasda.reporting.png import draws_png

    if figure.suffix not in {".svg", ".png"}:
        raise InvalidSettingError("--figure", str(figure), "a file that ends in .svg or .png")
    if figure.suffix == ".png" and not draws_png():
        raise InvalidSettingError(
            "--figure", str(figure), "a file that ends in .svg; for PNG: pip install 'parsl_rasda[figures]'"
        )
    if len(sizes) < 2:  # noqa: PLR2004 - a line has two ends
        raise InvalidSettingError(
            "--figure", str(figure), "it together with several --nodes, such as 4,8,16,32"
        )


def _draw(figure: Path, forecasts: Iterable[Forecast]) -> None:
    from parsl_rasda.atomic_files import replace_file
    from parsl_rasda.reporting.png import png
    from parsl_rasda.reporting.sizes_picture import sizes_picture

    picture = sizes_picture([*forecasts])
    drawn = png(picture) if figure.suffix == ".png" else None
    replace_file(figure, picture if drawn is None else drawn)
    print_message(f"wrote {figure}")


def _waits(
    sites: Iterable[SiteSpec], assumed_s: float | None, runs: Iterable[Path]
) -> dict[SiteName, list[float]]:
    """Return how long pilots of each site wait [s], as assumed, or as those of earlier runs did."""
    from parsl_rasda.reporting.runs import read_run
    from parsl_rasda.simulation.queues import pilot_waits
    from parsl_rasda.types import SiteName

    if assumed_s is not None and runs:
        raise InvalidSettingError("--queue-wait", assumed_s, "either it or --queue-from")
    if assumed_s is not None:
        if not math.isfinite(assumed_s):
            raise InvalidSettingError("--queue-wait", assumed_s, "a time in seconds")
        return {SiteName(s.name): [assumed_s] for s in sites}
    found: dict[SiteName, list[float]] = {}
    for folder in runs:
        known = pilot_waits(read_run(folder).searches.values())
        mine = {name: waits for name, waits in known.items() if name in {s.name for s in sites}}
        if not mine:
            allowed = f"a run whose pilots were of {', '.join(s.name for s in sites)}"
            raise InvalidSettingError("--queue-from", str(folder), allowed)
        for name, waits in mine.items():
            found.setdefault(name, []).extend(waits)
    return found


def _walltimes_s(sites: Iterable[SiteSpec]) -> dict[SiteName, float]:
    """Return the walltime of each site whose pilots are batch jobs [s]."""
    from parsl_rasda.study import ParslSiteSpec
    from parsl_rasda.study.pilot_counts import walltime_s
    from parsl_rasda.types import SiteName

    batch = [s for s in sites if isinstance(s, ParslSiteSpec) and not s.is_local]
    return {
        SiteName(s.name): walltime_s(str(s.provider.options.get("walltime", _PARSLS_WALLTIME))) for s in batch
    }
