"""From what the user declared to the objects that decide: the only place that builds a machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from parsl_rasda.errors import InvalidSettingError
from parsl_rasda.orchestration.machine import Machine, MachineSettings
from parsl_rasda.orchestration.stopping import StopWhen
from parsl_rasda.placement.growth import build_growth
from parsl_rasda.placement.times import Assumed
from parsl_rasda.scheduling import build_scheduler
from parsl_rasda.scheduling.base import Multiobjective
from parsl_rasda.scheduling.batching import Batching
from parsl_rasda.scheduling.objectives import Limit, Objectives
from parsl_rasda.search import build_searcher
from parsl_rasda.search.base import Searcher
from parsl_rasda.search.space import SearchSpace
from parsl_rasda.search.warm import WarmStarted
from parsl_rasda.study import TuneSpec
from parsl_rasda.types import JSON, Mode


def build_machine(tune: TuneSpec) -> Machine:
    """Return the machine of a `tune` stage that has not begun.

    Raises:
        InvalidSettingError: If a setting is out of range or names a plug-in that is not installed.
    """
    method, found = tune.scheduler, objectives(tune)
    scheduler = build_scheduler(
        {
            **method.model_dump(exclude={"growth"}),
            "mode": tune.mode.value,
            "metric": tune.metric,
        },
        found,
    )
    if found is not None and not isinstance(scheduler, Multiobjective):
        raise InvalidSettingError(
            "scheduler.kind", method.kind, "one that judges by several metrics: rasda, asha"
        )
    settings = MachineSettings(
        metric=tune.metric,
        mode=tune.mode,
        num_workers=method.num_workers,
        world_size_step=_smallest_prime(method.scaling_factor),
        max_retries=tune.max_retries,
        assumed=assumed_times(tune),
        checkpoints_shared=tune.checkpoints is not None,
        interactive=tune.training.command is None,
        batching=batching(tune),
        keep=tune.training.keep_checkpoints.whose,
        keep_best=max(tune.training.keep_checkpoints.best, tune.confirm.top if tune.confirm else 1),
        keep_rungs=tune.training.keep_checkpoints.rungs,
        best=tune.best,
        stop_when=_stop_when(tune),
        objectives=found,
        test_metric=tune.test_metric,
    )
    return Machine(settings, scheduler, build_growth(method.growth))


def objectives(tune: TuneSpec) -> Objectives | None:
    """Return by what trials are judged, or None if that is one metric alone."""
    if tune.metrics is None and not tune.constraints:
        return None
    others = [(one.name, one.mode) for one in (tune.metrics or ())[1:]]
    limits = []
    for one in tune.constraints:
        if one.at_most is not None:
            limits.append(Limit(one.metric, one.at_most, Mode.MIN))
        elif one.at_least is not None:
            limits.append(Limit(one.metric, one.at_least, Mode.MAX))
    return Objectives(((tune.metric, tune.mode), *others), tuple(limits))


def _stop_when(tune: TuneSpec) -> StopWhen:
    found = tune.stop_when
    target = found.metric_below if tune.mode is Mode.MIN else found.metric_above
    return StopWhen(found.no_improvement, target)


def batching(tune: TuneSpec) -> Batching:
    """Return how many replicas share a step of a `tune` stage: under ASHA as many as under RASDA."""
    method = tune.scheduler
    constant = None if method.batch == "doubling" else method.most_workers
    is_measured = method.batch == "measured"
    return Batching(constant, method.min_steps_per_epoch, tune.training.batch_size, is_measured)


def assumed_times(tune: TuneSpec) -> Assumed:
    """Return what is believed of epoch and restart times before anything is measured."""
    given = tune.estimates
    start = Assumed(efficiency=given.efficiency).speedup(tune.scheduler.num_workers)
    return Assumed(given.epoch_s * start, given.restart_s, given.efficiency)


def build_study_searcher(tune: TuneSpec, seed: int, known: Sequence[Mapping[str, JSON]] = ()) -> Searcher:
    """Return the searcher of a `tune` stage, which tries known configurations first: its own, then others."""
    space = SearchSpace.from_mapping(tune.search_space)
    settings = {
        "kind": tune.searcher.kind,
        **tune.searcher.options,
        "num_samples": tune.num_samples,
    }
    found = objectives(tune)
    others = tuple(mode for _, mode in found.metrics[1:]) if found else ()
    limits = len(found.limits) if found else 0
    searcher = build_searcher(
        settings, space, mode=tune.mode.value, seed=seed, other_modes=others, limits=limits
    )
    first = [*tune.searcher.first, *known]
    return WarmStarted(searcher, space, first) if first else searcher


def _smallest_prime(number: int) -> int:
    return next((f for f in range(2, number + 1) if number % f == 0), 2)
