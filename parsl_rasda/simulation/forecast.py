"""Predicts the time and GPUs of a study: the same machine rehearsed under three policies.

RASDA that grows into idle GPUs, RASDA that waits for its full world size, and ASHA train the same trials
with the same metrics on the same virtual sites, so that only their schedules differ.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from parsl_rasda.errors import InvalidSettingError
from parsl_rasda.orchestration.admission import PilotShape, check_fit, misfit, slots_per_node, widths_needed
from parsl_rasda.orchestration.assembly import assumed_times, build_machine
from parsl_rasda.orchestration.batch_limits import limits_of_batches
from parsl_rasda.orchestration.data_locality import foreseen
from parsl_rasda.orchestration.machine import Machine
from parsl_rasda.orchestration.replay import ReplayedSearch
from parsl_rasda.plugins import kind_of
from parsl_rasda.simulation.costs import Costs, assumed_costs
from parsl_rasda.simulation.measured import measured_costs
from parsl_rasda.simulation.rehearsal import Rehearsal, VirtualSite
from parsl_rasda.study import SchedulerSpec, SiteSpec, StudySpec, TuneSpec
from parsl_rasda.study.tuning import StopSpec
from parsl_rasda.types import Mode, SiteName

ASHA = "ASHA"
_ASHA = {"kind": "asha", "growth": "none"}
WORTH_IT = 1.05  # speed-up over ASHA below which RASDA does not pay
_MUCH_QUEUE = 2.0  # trials per slot from which ASHA leaves no GPU idle until its end
_MUCH_RESTART = 0.2  # restart in epochs from which widening is expensive


@dataclass(frozen=True, slots=True)
class PolicyForecast:
    """The forecast of one policy; times are None if a trial would never get its GPUs.

    Attributes:
        is_declared: The study asks for this one.
        needed_gpus: GPUs without which a trial of this policy cannot start.
        gpu_hours: Held, busy or not.
        speedup: Over ASHA.
    """

    name: str
    is_declared: bool
    needed_gpus: int
    makespan_s: float | None = None
    gpu_hours: float | None = None
    node_hours: float | None = None
    gpu_busy_fraction: float | None = None
    restarts: int | None = None
    epochs: int | None = None
    speedup: float | None = None


@dataclass(frozen=True, slots=True)
class RungForecast:
    """One rung: ``trials`` is how many reach it under the declared policy.

    Attributes:
        workers: GPUs that the method gives on the way to it.
        batches: How many `batch_size` made a step on the way to it, each number once.
    """

    rung: int
    epochs: int
    replicas: int
    workers: int
    trials: int
    batches: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Forecast:
    """What one `tune` stage will take.

    Attributes:
        sites: Where its trials run.
        epoch_s: Median epoch of a trial on `num_workers` GPUs [s].
        is_measured: Costs come from a run, not from `tune.estimates`.
        advice: Sentences for the user, if there is something to say.
    """

    stage: str
    trials: int
    sites: tuple[str, ...]
    gpus: int
    nodes: int
    epoch_s: float
    restart_s: float
    is_measured: bool
    rungs: tuple[RungForecast, ...]
    policies: tuple[PolicyForecast, ...]
    advice: tuple[str, ...] = ()


def forecast_study(
    study: StudySpec,
    sites: Sequence[SiteSpec],
    *,
    counted: Mapping[str, int],
    runs: Mapping[str, ReplayedSearch],
) -> tuple[Forecast, ...]:
    """Return what each `tune` stage of a study will take.

    Args:
        study: What would run.
        sites: Where.
        counted: GPUs per node of sites with ``gpus_per_node: auto``, by name.
        runs: Searches of an earlier run, by stage, whose times and metrics stand in for the estimates.

    Raises:
        InvalidSettingError: If nobody knows how many GPUs the nodes of a site have.
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
        here = forecast(name, stage.tune, shapes, seed=study.seed, measured=runs.get(name, only))
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
) -> Forecast:
    """Return what a `tune` stage will take on some sites.

    Args:
        stage: Its name.
        tune: What it declares.
        sites: Where it would run.
        seed: Seed of what cannot be known before: the ranking of trials and the spread of epoch times.
        measured: A run whose times and metrics stand in for the estimates.

    Raises:
        PlacementImpossibleError: If the declared policy needs more GPUs than any pilot will have.
    """
    run = measured if measured is not None and measured.usage.epochs else None
    if run is not None:
        costs = measured_costs(run, seed=seed)
    else:
        costs = assumed_costs(assumed_times(tune), seed=seed, spread=tune.estimates.spread)
        noise = tune.estimates.noise
        costs = replace(costs, samples=tune.estimates.samples, noise=lambda *_: noise)
    policies, rungs = _rehearse_all(tune, sites, costs)
    result = Forecast(
        stage=stage,
        trials=tune.num_samples,
        sites=tuple(sites),
        gpus=sum(s.pilots * s.nodes * s.gpus_per_node for s in sites.values()),
        nodes=sum(s.pilots * s.nodes for s in sites.values()),
        epoch_s=_median_epoch_s(tune, costs),
        restart_s=costs.restart_s,
        is_measured=run is not None,
        rungs=rungs,
        policies=policies,
    )
    return replace(result, advice=(*limits_of_batches(tune, costs.samples), *_advice(tune, result)))


def _changed(method: SchedulerSpec, changes: Mapping[str, str]) -> SchedulerSpec:
    """Return a method with another scheduler; options are those of the one that was declared."""
    if not changes:
        return method
    return SchedulerSpec.model_validate({**method.model_dump(exclude={*method.options}), **changes})


def as_asha(tune: TuneSpec) -> TuneSpec:
    """Return a stage that trains the same trials under ASHA, at a world size that never changes."""
    return tune.model_copy(update={"scheduler": _changed(tune.scheduler, _ASHA)})


def _policies(tune: TuneSpec) -> tuple[str, dict[str, TuneSpec]]:
    """Return the name of the declared policy, and what is compared by name."""
    method = tune.scheduler
    variants = {
        "RASDA elastic": {"kind": "rasda", "growth": "elastic"},
        "RASDA strict": {"kind": "rasda", "growth": "strict"},
        ASHA: _ASHA,
    }
    declared = ASHA if method.kind == "asha" else f"{method.kind.upper()} {kind_of(method.growth)}"
    if declared not in variants:
        variants = {declared: {}, **variants}
    # Virtual metrics are smaller where a trial is better.
    return declared, {
        name: tune.model_copy(update={"mode": Mode.MIN, "scheduler": _changed(method, changes)})
        for name, changes in variants.items()
    }


def _median_epoch_s(tune: TuneSpec, costs: Costs) -> float:
    workers = tune.scheduler.num_workers
    return statistics.median(costs.epoch_s(i, workers) for i in range(tune.num_samples))


def _rehearse_all(
    tune: TuneSpec, sites: Mapping[SiteName, VirtualSite], costs: Costs
) -> tuple[tuple[PolicyForecast, ...], tuple[RungForecast, ...]]:
    """Return each policy compared with ASHA, and the rungs of the declared one."""
    shapes = [PilotShape(s.nodes, s.gpus_per_node) for s in sites.values()]
    tune = tune.model_copy(update={"stop_when": StopSpec()})  # nobody knows yet what will be found
    declared, variants = _policies(tune)
    policies: list[PolicyForecast] = []
    rungs: tuple[RungForecast, ...] = ()
    for name, variant in variants.items():
        machine = build_machine(variant)
        policy = PolicyForecast(name, name == declared, max(widths_needed(machine)))
        refusal = misfit(machine, shapes, "tune.scheduler")
        if refusal is None:
            policy = _rehearsed(policy, machine, tune.num_samples, sites, costs)
        elif policy.is_declared:
            raise refusal
        if policy.is_declared:
            rungs = _rungs(machine)
        policies.append(policy)
    return _compared(policies), rungs


def _rehearsed(
    policy: PolicyForecast,
    machine: Machine,
    num_samples: int,
    sites: Mapping[SiteName, VirtualSite],
    costs: Costs,
) -> PolicyForecast:
    usage = Rehearsal(machine, sites, costs).run(num_samples)
    held_gpu_s = usage.held_gpu_s()
    pilots = [(s.nodes, s.nodes * s.gpus_per_node) for s in sites.values() for _ in range(s.pilots)]
    nodes, gpus = (sum(column) for column in zip(*pilots, strict=True))
    return replace(
        policy,
        makespan_s=usage.makespan_s(),
        gpu_hours=held_gpu_s / 3600,
        node_hours=held_gpu_s / 3600 * nodes / gpus,
        gpu_busy_fraction=usage.busy_gpu_s / held_gpu_s,
        restarts=len(usage.restarts_s),
        epochs=usage.epochs,
    )


def _compared(policies: Sequence[PolicyForecast]) -> tuple[PolicyForecast, ...]:
    """Return the policies with their speed-ups over ASHA."""
    asha_s = next(p.makespan_s for p in policies if p.name == ASHA)
    return tuple(
        replace(p, speedup=asha_s / p.makespan_s) if asha_s and p.makespan_s else p for p in policies
    )


def _rungs(machine: Machine) -> tuple[RungForecast, ...]:
    return tuple(_rung(machine, rung, until) for rung, until in enumerate(machine.scheduler.milestones))


def _rung(machine: Machine, rung: int, until: int) -> RungForecast:
    reached = [t for t in machine.trials.values() if until in t.history]
    batches = tuple(sorted({t.batches_of(until) for t in reached}))
    return RungForecast(rung, until, *machine.split(rung)[:2], len(reached), batches)


def _advice(tune: TuneSpec, found: Forecast) -> Iterator[str]:
    if not found.is_measured and "estimates" not in tune.model_fields_set:
        yield (
            f"An epoch of {tune.estimates.epoch_s:g} s and a restart of {tune.estimates.restart_s:g} s are "
            "guesses: compare the policies, but believe no hour. Set `tune.estimates`, or use --from DIR."
        )
    yield from tune.advice
    policies = {p.name: p for p in found.policies}
    declared = next(p for p in found.policies if p.is_declared)
    elastic = policies["RASDA elastic"]
    rasda = elastic if declared.name == ASHA else declared
    if tune.scheduler.growth == "none" and declared.name != ASHA:
        pass  # it is ASHA but for the replicas
    elif rasda.speedup is not None and rasda.speedup < WORTH_IT:
        reasons = "; ".join(_reasons(tune.scheduler, found)) or "its GPUs are hardly ever idle"
        yield f"{rasda.name} will not pay here ({rasda.speedup:.2f} x ASHA): {reasons}."
    elif declared.name == ASHA and rasda.speedup is not None:
        yield f"`kind: rasda` would be {rasda.speedup:.2f} x as fast."
    if declared is not elastic and declared.name != ASHA and _gain(elastic, declared) >= WORTH_IT:
        yield f"`growth: elastic` would be {_gain(elastic, declared):.2f} x as fast as what is declared."


def _gain(one: PolicyForecast, other: PolicyForecast) -> float:
    return other.makespan_s / one.makespan_s if one.makespan_s and other.makespan_s else 1.0


def _reasons(method: SchedulerSpec, found: Forecast) -> Iterator[str]:
    """Yield why trials hardly grow."""
    slots = max(1, found.gpus // method.num_workers)
    if len(found.rungs) == 1 or found.rungs[-1].workers == method.num_workers:
        yield "trials never grow (`scaling_factor`, `max_workers`, `max_t`)"
        return
    if found.gpus < method.num_workers * 2:
        yield f"{found.gpus} GPUs leave nothing to grow into"
    elif found.trials >= _MUCH_QUEUE * slots:
        yield (
            f"{found.trials} trials queue for {slots} places, {found.trials / slots:.1f} each, so that GPUs "
            "are idle only at the end (more GPUs or fewer trials would change that)"
        )
    if found.restart_s >= _MUCH_RESTART * found.epoch_s:
        yield f"a restart takes {found.restart_s / found.epoch_s:.1f} epochs"
