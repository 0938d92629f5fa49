"""What a search would come to under its budget, and the largest search that fits into it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from parsl_rasda.errors import InvalidSettingError
from parsl_rasda.orchestration.admission import PilotShape, misfit
from parsl_rasda.orchestration.assembly import build_machine
from parsl_rasda.orchestration.machine import Machine
from parsl_rasda.simulation.costs import Costs
from parsl_rasda.simulation.rehearsal import Rehearsal, VirtualSite
from parsl_rasda.study import TuneSpec
from parsl_rasda.study.tuning import StopSpec
from parsl_rasda.types import Budget, Mode, SiteName, StudyState, TrialState

MOST = 10_000  # trials, or epochs of a trial, that are tried out


@dataclass(frozen=True, slots=True)
class BudgetForecast:
    """What the declared policy would come to under the budget.

    Attributes:
        limits: The budget; ``until`` [s] counts from now.
        is_enough: The budget lasts for the whole search.
        makespan_s: Until the search ends [s].
        trials: How many would begin.
        completed: How many would reach `max_t`.
        num_samples: The most trials that it lasts for with `max_t` as it is, if asked for; 0 for none.
        max_t: The most epochs that it lasts for with `num_samples` as it is, likewise.
    """

    limits: Budget
    is_enough: bool
    makespan_s: float
    gpu_hours: float
    node_hours: float
    trials: int
    completed: int
    num_samples: int | None = None
    max_t: int | None = None


def forecast_budget(
    tune: TuneSpec, sites: Mapping[SiteName, VirtualSite], costs: Costs, *, now: float, fit: bool = False
) -> BudgetForecast | None:
    """Return what a search would come to under its budget; None if it has none.

    Args:
        tune: What the search declares.
        sites: Where it would run.
        costs: What its training would cost.
        now: Present time [s], for a budget that ends at a time of day.
        fit: Also look for the largest search that fits.

    Raises:
        InvalidSettingError: If ``fit`` is asked for and there is no budget.
    """
    limits = tune.budget.limits(now)
    if limits is None:
        if fit:
            allowed = "at least one limit, for example --set tune.budget.gpu_hours=100"
            raise InvalidSettingError("tune.budget", "no limit", allowed)
        return None
    if limits.until is not None:
        limits = replace(limits, until=limits.until - now)
    tune = tune.model_copy(update={"mode": Mode.MIN, "stop_when": StopSpec()})  # as in any rehearsal
    shapes = [PilotShape(s.nodes, s.gpus_per_node) for s in sites.values()]

    def rehearsed(num_samples: int, max_t: int) -> Machine | None:
        scheduler = tune.scheduler.model_copy(update={"max_t": int(max_t)})  # at its longest
        machine = build_machine(tune.model_copy(update={"scheduler": scheduler}))
        if misfit(machine, shapes, "tune.scheduler") is not None:
            return None
        confirm = tune.confirm.counts if tune.confirm is not None else None
        Rehearsal(machine, sites, costs).run(num_samples, limits, confirm)
        return machine

    def fits(num_samples: int, max_t: int) -> bool:
        machine = rehearsed(num_samples, max_t)
        return machine is not None and machine.state is StudyState.DONE and not machine.stop_reason

    trials, epochs = tune.num_samples, tune.scheduler.max_t
    machine = rehearsed(trials, epochs)
    if machine is None:
        return None
    spent = machine.budget.spent()
    found = BudgetForecast(
        limits,
        not machine.stop_reason,
        spent["wall_time_s"],
        spent["gpu_hours"],
        spent["node_hours"],
        len(machine.trials),
        sum(t.state is TrialState.COMPLETED for t in machine.trials.values()),
    )
    if not fit:
        return found
    least = tune.scheduler.grace_period
    return replace(
        found,
        num_samples=largest(lambda n: fits(n, epochs), 1),
        max_t=largest(lambda t: fits(trials, t), least),
    )


def largest(fits: Callable[[int], bool], least: int) -> int:
    """Return a number that fits while the next one does not, or `MOST`; 0 if not even the least fits."""
    if not fits(least):
        return 0
    low, high = least, least
    while high == low and high < MOST:
        high = min(2 * low, MOST)
        if fits(high):
            low = high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
