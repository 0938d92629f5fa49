"""Rehearses a stage under each policy, once for each draw of what cannot be known before."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from parsl_rasda.errors import PlacementImpossibleError
from parsl_rasda.orchestration.admission import PilotShape, misfit, widths_needed
from parsl_rasda.orchestration.assembly import assumed_times
from parsl_rasda.orchestration.events import Event, Instruction, PilotStarted
from parsl_rasda.orchestration.machine import Machine
from parsl_rasda.orchestration.replay import ReplayedSearch
from parsl_rasda.simulation.costs import Costs, assumed_costs
from parsl_rasda.simulation.measured import measured_costs
from parsl_rasda.simulation.outcome import PolicyForecast, RungForecast
from parsl_rasda.simulation.policies import ASHA, machine_of, policies_of
from parsl_rasda.simulation.queues import Waits, with_waits
from parsl_rasda.simulation.rehearsal import Rehearsal, VirtualSite
from parsl_rasda.study import TuneSpec
from parsl_rasda.study.scheduler import SchedulerSpec
from parsl_rasda.study.tuning import StopSpec
from parsl_rasda.types import SiteName

SEEDS = 5
_REHEARSED = 2_000  # trials under each policy, which a large study has in fewer draws
_RANGED = ("makespan_s", "gpu_hours", "node_hours", "speedup")
_COUNTS = ("restarts", "epochs", "unknown_epochs", "unknown_trials")


@dataclass(frozen=True, slots=True)
class WhatIf:
    """What a plan may assume besides the study and its sites.

    Attributes:
        seeds: Draws of what cannot be known before; None for five, or fewer in large studies.
        nodes: Nodes of each pilot instead of the site's; several are compared.
        waits: How long pilots of a site wait [s], by site.
        walltimes_s: What site files declare [s], by site.
        now: Present time [s], for a budget that ends at a time of day.
        fit_budget: Look for the largest search that fits into the budget.
    """

    seeds: int | None = None
    nodes: tuple[int, ...] = ()
    waits: Waits = field(default_factory=dict)
    walltimes_s: Mapping[SiteName, float] = field(default_factory=dict)
    now: float = 0.0
    fit_budget: bool = False


@dataclass(frozen=True, slots=True)
class _Rehearsed:
    """One policy in one draw."""

    machine: Machine
    figures: dict[str, float]


class Comparison:
    """Rehearses a stage as it is and with changes, always with the same draws."""

    def __init__(self, tune: TuneSpec, seed: int, run: ReplayedSearch | None, what_if: WhatIf) -> None:
        """Draw the costs.

        Args:
            tune: The stage as it is declared.
            seed: Of the first draw; later ones count on.
            run: A run whose times and metrics stand in for the estimates.
            what_if: Number of draws, and how long pilots wait.
        """
        draws = what_if.seeds or min(SEEDS, max(1, _REHEARSED // tune.num_samples))
        self.costs = [_costs(tune, seed + draw, run) for draw in range(draws)]
        self._waits = what_if.waits

    def policies(
        self, tune: TuneSpec, sites: Mapping[SiteName, VirtualSite], *, only: Iterable[str] | None = None
    ) -> tuple[tuple[PolicyForecast, ...], tuple[RungForecast, ...]]:
        """Return each policy compared with ASHA, and the rungs of the declared one in the first draw.

        Args:
            tune: The stage.
            sites: Where it runs.
            only: Names of the policies, besides the declared one and ASHA.

        Raises:
            PlacementImpossibleError: If the declared policy needs more GPUs than any pilot will have.
        """
        tune = tune.model_copy(update={"stop_when": StopSpec()})  # nobody knows yet what will be found
        declared, variants = policies_of(tune)
        if only is not None:
            variants = {n: v for n, v in variants.items() if n in {declared, ASHA, *only}}
        shapes = [PilotShape(s.nodes, s.gpus_per_node) for s in sites.values()]
        found: dict[str, list[_Rehearsed]] = {}
        policies: dict[str, PolicyForecast] = {}
        for name, variant in variants.items():
            machine = machine_of(name, variant)
            policies[name] = PolicyForecast(name, name == declared, max(widths_needed(machine)))
            refusal = misfit(machine, shapes, "tune.scheduler")
            if refusal is None:
                found[name] = [*self._draws(name, variant, sites)]
            elif name == declared:
                raise refusal
        baseline = found.get(ASHA)
        compared = (_summed(policies[name], found.get(name), baseline) for name in variants)
        return tuple(compared), _rungs(found[declared][0].machine, tune.scheduler)

    def declared(
        self, tune: TuneSpec, sites: Mapping[SiteName, VirtualSite], *only: str
    ) -> dict[str, PolicyForecast] | None:
        """Return the declared policy, ASHA and some others by name; None if a trial would never fit."""
        try:
            policies, _ = self.policies(tune, sites, only=only)
        except PlacementImpossibleError:
            return None
        return {p.name: p for p in policies}

    def _draws(
        self, name: str, tune: TuneSpec, sites: Mapping[SiteName, VirtualSite]
    ) -> Iterator[_Rehearsed]:
        for draw, costs in enumerate(self.costs):
            machine, shapes = machine_of(name, tune), with_waits(sites, self._waits, draw)
            yield _Rehearsed(machine, _figures(machine, tune.num_samples, shapes, costs))


def _costs(tune: TuneSpec, seed: int, run: ReplayedSearch | None) -> Costs:
    if run is not None:
        return measured_costs(run, seed=seed)
    costs = assumed_costs(assumed_times(tune), seed=seed, spread=tune.estimates.spread)
    noise = tune.estimates.noise
    return replace(costs, samples=tune.estimates.samples, noise=lambda *_: noise)


def _figures(
    machine: Machine, num_samples: int, sites: Mapping[SiteName, VirtualSite], costs: Costs
) -> dict[str, float]:
    """Rehearse one machine to its end; return what it took."""
    began = _FirstPilot()
    usage = Rehearsal(machine, sites, costs, [began]).run(num_samples)
    held_gpu_s = usage.held_gpu_s()
    pilots = [(s.nodes, s.nodes * s.gpus_per_node) for s in sites.values() for _ in range(s.pilots)]
    nodes, gpus = (sum(column) for column in zip(*pilots, strict=True))
    beyond = [t.epoch - costs.known_until(int(t.id)) for t in machine.trials.values()]
    unknown = [int(epochs) for epochs in beyond if epochs > 0]
    return {
        "makespan_s": usage.makespan_s(),
        "gpu_hours": held_gpu_s / 3600,
        "node_hours": held_gpu_s / 3600 * nodes / gpus,
        "gpu_busy_fraction": usage.busy_gpu_s / held_gpu_s,
        "restarts": len(usage.restarts_s),
        "epochs": usage.epochs,
        "queue_s": began.at,
        "unknown_epochs": sum(unknown),
        "unknown_trials": len(unknown),
    }


@dataclass(slots=True)
class _FirstPilot:
    """Notes when the first pilot of a rehearsal started [s]."""

    at: float = math.inf

    def add(self, event: Event, _: tuple[Instruction, ...]) -> None:
        """Take note of an event."""
        if isinstance(event, PilotStarted):
            self.at = min(self.at, event.at)


def _summed(
    policy: PolicyForecast, draws: Sequence[_Rehearsed] | None, baseline: Sequence[_Rehearsed] | None
) -> PolicyForecast:
    """Return a policy with the medians and ranges of its draws."""
    if draws is None:
        return policy
    figures = [d.figures for d in draws]
    if baseline is not None:
        pairs = zip(figures, baseline, strict=True)
        figures = [{**f, "speedup": _under_way_s(b.figures) / _under_way_s(f)} for f, b in pairs]
    values = {key: [f[key] for f in figures] for key in figures[0]}
    found: dict[str, Any] = {  # Any: floats and whole numbers, as the record has them
        key: int(statistics.median_low(each)) if key in _COUNTS else statistics.median(each)
        for key, each in values.items()
    }
    ranges = {key: (min(values[key]), max(values[key])) for key in _RANGED if key in values}
    return replace(policy, **found, ranges=ranges)


def _under_way_s(figures: Mapping[str, float]) -> float:
    """Return the makespan from the first pilot on [s]: waiting for it is not the policy's."""
    return figures["makespan_s"] - figures["queue_s"]


def _rungs(machine: Machine, method: SchedulerSpec) -> tuple[RungForecast, ...]:
    *below, last = (_rung(machine, k, until) for k, until in enumerate(machine.scheduler.milestones))
    if method.variant == "stopping":
        below = [replace(r, meant=r.trials and max(1, r.trials // method.reduction_factor)) for r in below]
    return (*below, last)


def _rung(machine: Machine, rung: int, until: int) -> RungForecast:
    reached = [t for t in machine.trials.values() if until in t.history]
    batches = tuple(sorted({t.batches_of(until) for t in reached}))
    return RungForecast(rung, until, *machine.split(rung)[:2], len(reached), batches)
