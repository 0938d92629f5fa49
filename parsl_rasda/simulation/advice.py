"""What a plan advises: whether RASDA pays; if it does not, which change would make it pay, and its gain."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from parsl_rasda.simulation.comparison import Comparison
from parsl_rasda.simulation.outcome import Forecast, PolicyForecast
from parsl_rasda.simulation.policies import ASHA, ELASTIC
from parsl_rasda.simulation.rehearsal import VirtualSite
from parsl_rasda.simulation.sizes import of_size
from parsl_rasda.study import SchedulerSpec, TuneSpec
from parsl_rasda.types import SiteName

WORTH_IT = 1.05  # speed-up over ASHA below which RASDA does not pay
_MUCH_QUEUE = 2.0  # trials per slot from which ASHA leaves no GPU idle until its end
_MUCH_RESTART = 0.2  # restart in epochs from which widening is expensive
_NAMED = 2  # changes
_TRIED_UP_TO = 1_000  # trials of a study whose changes are rehearsed

Sites = Mapping[SiteName, VirtualSite]


class _Change(NamedTuple):
    """A study or sites in which one setting is another; ``words`` say which, as a file has it."""

    words: str
    tune: TuneSpec
    sites: Sites


def advice_on(comparison: Comparison, tune: TuneSpec, sites: Sites, found: Forecast) -> Iterator[str]:
    """Yield sentences for the user.

    Args:
        comparison: Rehearses the study with changes.
        tune: The stage as it is declared.
        sites: Where it runs.
        found: Its forecast.
    """
    yield from _unknown(found.declared)
    yield from tune.advice
    policies = {p.name: p for p in found.policies}
    declared, elastic = found.declared, policies[ELASTIC]
    rasda = elastic if declared.name == ASHA else declared
    if tune.scheduler.growth == "none" and declared.name != ASHA:
        pass  # it is ASHA but for the replicas
    elif rasda.speedup is not None and rasda.speedup < WORTH_IT:
        reasons = "; ".join(_reasons(tune.scheduler, found)) or "its GPUs are hardly ever idle"
        remedy = _remedy(comparison, tune, sites, rasda)
        yield f"{rasda.name} will not pay here ({rasda.speedup:.2f} x ASHA): {reasons}. {remedy}"
    elif declared.name == ASHA and rasda.speedup is not None:
        yield f"`kind: rasda` would be {rasda.speedup:.2f} x as fast."
    if declared is not elastic and declared.name != ASHA and _gain(elastic, declared) >= WORTH_IT:
        yield f"`growth: elastic` would be {_gain(elastic, declared):.2f} x as fast as what is declared."


def _unknown(declared: PolicyForecast) -> Iterator[str]:
    """Yield how much of a plan from a run lies beyond what that run has seen."""
    if declared.unknown_epochs:
        trials = f"{declared.unknown_trials} trial{'s' * (declared.unknown_trials != 1)}"
        yield (
            f"{declared.unknown_epochs} of {declared.epochs} epochs, of {trials}, lie beyond where the run "
            "stopped them. Their curves are unknown there and taken as flat: who passes a rung is a guess."
        )


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
            "are idle only at the end"
        )
    if found.restart_s >= _MUCH_RESTART * found.epoch_s:
        yield f"a restart takes {found.restart_s / found.epoch_s:.1f} epochs"


def _remedy(comparison: Comparison, tune: TuneSpec, sites: Sites, now: PolicyForecast) -> str:
    """Return which change of one setting would make RASDA pay, and what that gains."""
    if tune.num_samples > _TRIED_UP_TO:
        return "`--nodes` and `--set` show what other settings would do."
    gains = []
    for change in _changes(tune, sites):
        policies = comparison.declared(change.tune, change.sites, now.name) or {}
        there = policies.get(now.name)
        if there is not None and (there.speedup or 0.0) >= WORTH_IT and there.makespan_s and now.makespan_s:
            share = there.makespan_s / now.makespan_s
            gains.append(
                (
                    -(there.speedup or 0.0),
                    f"{change.words}: {there.speedup:.2f} x ASHA, in {share:.0%} of the time",
                )
            )
    if not gains:
        return "No other single setting that was rehearsed changes that; `kind: asha` needs no restarts."
    return f"It would with {', or with '.join(words for _, words in sorted(gains)[:_NAMED])}."


def _changes(tune: TuneSpec, sites: Sites) -> Iterator[_Change]:
    """Yield the study and its sites with one setting changed at a time."""
    method = tune.scheduler

    def other(words: str, **changes: int | None) -> _Change:
        scheduler = SchedulerSpec.model_validate({**method.model_dump(), **changes})
        return _Change(words, tune.model_copy(update={"scheduler": scheduler}), sites)

    if len(sites) == 1:
        (nodes,) = (s.nodes for s in sites.values())
        for factor in (2, 4):
            yield _Change(f"`--nodes {factor * nodes}`", tune, of_size(sites, factor * nodes))
    if tune.num_samples > 1:
        fewer = tune.num_samples // 2
        yield _Change(f"`num_samples: {fewer}`", tune.model_copy(update={"num_samples": fewer}), sites)
    if method.scaling_factor == 1:
        yield other("`scaling_factor: 2`", scaling_factor=2)
    elif method.max_workers is not None:
        wider = method.max_workers * method.scaling_factor
        yield other(f"`max_workers: {wider}`", max_workers=wider)
    later = method.grace_period * method.reduction_factor
    if later < method.max_t:
        yield other(f"`grace_period: {later}`", grace_period=later)
