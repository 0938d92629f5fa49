"""`parsl-rasda plan`: what a study will take, before anything is queued."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from parsl_rasda.cli.options import DEFAULT_SITES, AsJson, Overrides, Sites, StudyFile, load_inputs
from parsl_rasda.cli.output import print_json, print_result


def plan(
    study: StudyFile,
    site: Sites = None,
    run: Annotated[
        Path | None,
        typer.Option("--from", metavar="DIR", help="Take times and metrics from this run, not estimates."),
    ] = None,
    fit_budget: Annotated[
        bool,
        typer.Option("--budget", help="Say the largest num_samples and max_t that fit into tune.budget."),
    ] = False,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Predict makespan and GPU-hours, without running anything.

    Shows the rungs, and RASDA elastic, RASDA strict and ASHA side by side.
    """
    from parsl_rasda.backends.allocation import counted_here
    from parsl_rasda.cli.forecasts import forecast_view
    from parsl_rasda.reporting.runs import read_run
    from parsl_rasda.simulation.forecast import forecast_study
    from parsl_rasda.simulation.measured import counted_gpus

    admitted = load_inputs(study, site or DEFAULT_SITES, overrides or ())
    spec, sites = admitted.study, admitted.sites
    earlier = read_run(run).searches if run is not None else {}
    counted = {**counted_here(sites), **counted_gpus(earlier.values())}
    forecasts = forecast_study(
        spec, sites, counted=counted, runs=earlier, now=time.time(), fit_budget=fit_budget
    )
    if as_json:
        stages = [asdict(f) for f in forecasts]
        print_json({"study": spec.name, "sites": [s.name for s in sites], "stages": stages})
    else:
        print_result(forecast_view(spec.name, forecasts, run))
