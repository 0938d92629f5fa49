"""Predicts the time and GPUs of a study: the same machine rehearsed under several policies.

RASDA that grows into idle GPUs, RASDA that waits for its full world size, and ASHA train the same trials
with the same metrics on the same virtual sites, so that only their schedules differ. What cannot be known
before is drawn anew by each seed; figures are medians.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from parsl_rasda.errors import InvalidSettingError
from parsl_rasda.orchestration.admission import check_fit, slots_per_node
from parsl_rasda.orchestration.assembly import build_machine
from parsl_rasda.orchestration.batch_limits import limits_of_batches
from parsl_rasda.orchestration.data_locality import foreseen
from parsl_rasda.orchestration.replay import ReplayedSearch
from parsl_rasda.simulation.advice import advice_on
from parsl_rasda.simulation.budgets import forecast_budget
from parsl_rasda.simulation.comparison import Comparison, WhatIf
from parsl_rasda.simulation.costs import Costs
from parsl_rasda.simulation.outcome import ConfirmForecast, Forecast
from parsl_rasda.simulation.queues import with_waits
from parsl_rasda.simulation.rehearsal import Rehearsal, VirtualSite
from parsl_rasda.simulation.sizes import gpus_of, of_size, pilots_that_do, sizes_of
from parsl_rasda.study import SiteSpec, StudySpec, TuneSpec
from parsl_rasda.study.estimates import EstimateSpec
from parsl_rasda.study.tuning import StopSpec
from parsl_rasda.types import Mode, SiteName


def forecast_study(
    study: StudySpec,
    sites: Sequence[SiteSpec],
    *,
    counted: Mapping[str, int],
    runs: Mapping[str, ReplayedSearch],
    what_if: WhatIf = WhatIf(),  # noqa: B008 - frozen
) -> tuple[Forecast, ...]:
    """Return what each `tune` stage of a study will take.

    Args:
        study: What would run.
        sites: Where.
        counted: GPUs per node of sites with ``gpus_per_node: auto``, by name.
        runs: Searches of an earlier run, by stage, whose times and metrics stand in for the estimates.
        what_if: What else is assumed.

    Raises:
        InvalidSettingError: If nobody knows how many GPUs the nodes of a site have, or if there is no budget
            to fit into.
        PlacementImpossibleError: If a trial needs more GPUs than any pilot will have.
    """
    check_fit(study, sites, counted)
    found = []
    for name, stage in study.tune_stages.items():
        usable, sentences = foreseen(study, name, sites)
        if not usable:
            allowed = f"one of the sites given: {', '.join(s.name for s in sites)}"
            raise InvalidSettingError(f"stages.{name}.site", stage.site, allowed)
        shapes = {SiteName(s.name): virtual_site(s, counted) for s in usable}
        only = next(iter(runs.values())) if len(runs) == len(study.tune_stages) == 1 else None
        measured = runs.get(name, only)
        here = forecast(name, stage.tune, shapes, seed=study.seed, measured=measured, what_if=what_if)
        found.append(replace(here, advice=(*sentences, *here.advice)))
    return tuple(found)


def virtual_site(site: SiteSpec, counted: Mapping[str, int]) -> VirtualSite:
    """Return the shape of a site.

    Args:
        site: What its file declares.
        counted: GPUs per node of sites with ``gpus_per_node: auto``, by name.

    Raises:
        InvalidSettingError: If nobody knows how many GPUs its nodes have.
    """
    gpus = slots_per_node(site, counted)
    if not gpus:
        why = (
            f"this machine shows no {site.accelerator} device"
            if site.is_local
            else "`plan` asks no batch system, so it cannot count the GPUs of a node there"
        )
        allowed = f"a number: {why}"
        raise InvalidSettingError(f"site {site.name}: gpus_per_node", site.gpus_per_node, allowed)
    return VirtualSite(
        site.nodes_per_pilot,
        gpus,
        site.most_pilots,
        site.capabilities.has_control,
        later=site.most_pilots - site.least_pilots,
    )


def forecast(
    stage: str,
    tune: TuneSpec,
    sites: Mapping[SiteName, VirtualSite],
    *,
    seed: int,
    measured: ReplayedSearch | None = None,
    what_if: WhatIf = WhatIf(seeds=1),  # noqa: B008 - frozen
) -> Forecast:
    """Return what a `tune` stage will take on some sites.

    Args:
        stage: Its name.
        tune: What it declares.
        sites: Where it would run.
        seed: Seed of what cannot be known before: the ranking of trials and the spread of epoch times.
        measured: A run whose times and metrics stand in for the estimates.
        what_if: What else is assumed.

    Raises:
        InvalidSettingError: If there is no budget to fit into.
        PlacementImpossibleError: If the declared policy needs more GPUs than any pilot will have.
    """
    if len(what_if.nodes) == 1:
        sites = of_size(sites, what_if.nodes[0])
    run = measured if measured is not None and measured.usage.epochs else None
    comparison = Comparison(tune, seed, run, what_if)
    policies, rungs = comparison.policies(tune, sites)
    costs, queued = comparison.costs[0], with_waits(sites, what_if.waits, 0)
    found = Forecast(
        stage=stage,
        trials=tune.num_samples,
        sites=tuple(sites),
        gpus=gpus_of(sites),
        nodes=sum(s.pilots * s.nodes for s in sites.values()),
        epoch_s=_median_epoch_s(tune, costs),
        restart_s=costs.restart_s,
        is_measured=run is not None,
        rungs=rungs,
        policies=policies,
        guessed=() if run is not None else tuple(_guesses(tune.estimates)),
        seeds=len(comparison.costs),
        budget=forecast_budget(tune, queued, costs, now=what_if.now, fit=what_if.fit_budget),
    )
    found = replace(
        found,
        sizes=sizes_of(comparison, tune, sites, what_if.nodes) if len(what_if.nodes) > 1 else (),
        pilots=pilots_that_do(comparison, tune, sites, found.declared, what_if.walltimes_s),
    )
    found = replace(found, confirm=_confirm(tune, queued, costs))
    limits = limits_of_batches(tune, costs.samples)
    return replace(found, advice=(*limits, *advice_on(comparison, tune, sites, found)))


def _confirm(tune: TuneSpec, sites: Mapping[SiteName, VirtualSite], costs: Costs) -> ConfirmForecast | None:
    """Return what the confirmation adds: the search is rehearsed with it and without."""
    confirm = tune.confirm.counts if tune.confirm is not None else None
    if confirm is None:
        return None
    tune = tune.model_copy(update={"mode": Mode.MIN, "stop_when": StopSpec()})  # as in any rehearsal
    machine = build_machine(tune)
    alone = Rehearsal(build_machine(tune), sites, costs).run(tune.num_samples)
    both = Rehearsal(machine, sites, costs).run(tune.num_samples, confirm=confirm)
    return ConfirmForecast(
        len(machine.confirmation.runs),
        both.epochs - alone.epochs,
        both.makespan_s() - alone.makespan_s(),
        (both.held_gpu_s() - alone.held_gpu_s()) / 3600,
    )


def _guesses(given: EstimateSpec) -> Iterator[str]:
    if "epoch_s" not in given.model_fields_set:
        yield f"an epoch of {given.epoch_s:g} s"
    if "restart_s" not in given.model_fields_set:
        yield f"a restart of {given.restart_s:g} s"


def _median_epoch_s(tune: TuneSpec, costs: Costs) -> float:
    workers = tune.scheduler.num_workers
    return statistics.median(costs.epoch_s(i, workers) for i in range(tune.num_samples))
