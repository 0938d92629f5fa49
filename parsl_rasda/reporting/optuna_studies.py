"""Searches as studies of Optuna, in a storage that may be new or have others in it.

Trials that reached the end are *complete*, stopped ones *pruned*; every epoch is an intermediate value. A
configuration outside the search space is kept as a user attribute only. A search by several metrics becomes a
study with as many directions, with what breaks its limits as Optuna's constraints: there a stopped trial is
*complete*, too, as Optuna prunes none there, and it may be on the front.

What is in the storage already stays: of a study that was exported before, the trials that have ended since
are added.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import optuna
from optuna.trial import TrialState as Optunas
from optuna.trial import create_trial

from parsl_rasda.orchestration.assembly import objectives
from parsl_rasda.scheduling.objectives import Limit, Objectives
from parsl_rasda.search.space import Choice, Constant, Float, Int, Parameter, SearchSpace
from parsl_rasda.study import TuneSpec
from parsl_rasda.tracking.base import Origin, plain_value
from parsl_rasda.types import Mode, TrialState

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

RUN: Final = "parsl_rasda.run"  # the attribute by which a study is found again
_ENDED_WELL: Final = {TrialState.COMPLETED.value, TrialState.STOPPED.value}
_KEPT: Final = ("trial", "config", "replicas", "attempts", "reason", "metrics", "state", "bracket")


class StudyWriter:
    """Adds studies to a storage; a context manager."""

    def __init__(self, url: str, *, with_running: bool = False) -> None:
        """Open a storage, or make a new one.

        Args:
            url: Its address.
            with_running: Also add trials that have not ended, as Optuna cannot go on with them later.
        """
        self._with_running = with_running
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._storage = optuna.storages.RDBStorage(url)

    def add(self, origin: Origin, summary: Mapping[str, Any], tune: TuneSpec) -> None:
        """Add what is missing of a search."""
        study = self._study(origin, tune)
        space = SearchSpace.from_mapping(tune.search_space)
        found = (t.user_attrs for t in study.get_trials(deepcopy=False))
        there = {(attributes.get("trial"), attributes.get("attempts")) for attributes in found}
        for trial in summary["trial_list"]:
            is_due = self._with_running or TrialState(trial["state"]).is_final
            if is_due and (trial["trial"], trial["attempts"]) not in there:
                study.add_trial(_optuna_trial(trial, space, objectives(tune)))

    def _study(self, origin: Origin, tune: TuneSpec) -> optuna.Study:
        """Return the study of a search: found again, or created under a name that is free."""
        names = optuna.get_all_study_names(self._storage)
        for name in (origin.name, f"{origin.name} {origin.mark}"):
            if name not in names:
                break
            found = optuna.load_study(study_name=name, storage=self._storage)
            if found.user_attrs.get(RUN) == origin.mark:
                return found
        found_by = objectives(tune)
        metrics = found_by.metrics if found_by is not None else ((tune.metric, tune.mode),)
        directions = ["minimize" if mode is Mode.MIN else "maximize" for _, mode in metrics]
        study = optuna.create_study(storage=self._storage, study_name=name, directions=directions)
        study.set_metric_names([metric for metric, _ in metrics])
        study.set_user_attr(RUN, origin.mark)
        return study

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._storage.engine.dispose()


def _optuna_trial(
    trial: Mapping[str, Any], space: SearchSpace, judged_by: Objectives | None
) -> optuna.trial.FrozenTrial:
    known = trial["config"] if space.accepts(trial["config"]) else {}
    params, distributions = optunas_parameters(known, space)
    values = [trial["metric"]] if judged_by is None else [*(trial["values"] or {}).values()]
    has_value = trial["state"] in _ENDED_WELL and bool(values) and None not in values
    with_values = Optunas.COMPLETE if has_value else Optunas.FAIL
    states = {
        TrialState.COMPLETED.value: with_values,
        TrialState.STOPPED.value: Optunas.PRUNED if judged_by is None else with_values,
        TrialState.FAILED.value: Optunas.FAIL,
    }
    limits = judged_by.limits if judged_by is not None and has_value else ()
    frozen = create_trial(
        state=states.get(trial["state"], Optunas.RUNNING),
        values=values if has_value else None,
        params=params,
        distributions=distributions,
        intermediate_values={epoch: float("nan") if m is None else m for epoch, m in trial["history"]},
        user_attrs={key: trial[key] for key in _KEPT if trial.get(key) is not None},
        constraints={_name(limit): v for limit, v in zip(limits, trial["violations"], strict=True)}
        if limits
        else None,
    )
    if trial.get("began") is not None:
        frozen.datetime_start = datetime.fromtimestamp(trial["began"])  # noqa: DTZ006  # Optuna's are local
    if trial.get("ended") is not None:
        frozen.datetime_complete = datetime.fromtimestamp(trial["ended"])  # noqa: DTZ006
    return frozen


def _name(limit: Limit) -> str:
    return f"{limit.metric} at {'most' if limit.mode is Mode.MIN else 'least'} {limit.bound:g}"


def optunas_parameters(
    config: Mapping[str, Any], space: SearchSpace
) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
    """Return the values of a configuration that vary, and where they are from, as Optuna wants them."""
    params, distributions = {}, {}
    for name, value in config.items():
        parameter = space.parameters[name]
        if not isinstance(parameter, Constant):
            params[name], distributions[name] = plain_value(value), _distribution(parameter)
    return params, distributions


def _distribution(parameter: Parameter) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    match parameter:
        case Choice(values):
            return CategoricalDistribution([plain_value(v) for v in values])
        case Int(low, _, log, step):
            return IntDistribution(low, parameter.level(parameter.count - 1), log=log, step=step)
        case Float(low, high, log, step):
            last = high if parameter.count is None else parameter.level(parameter.count - 1)
            return FloatDistribution(low, last, log=log, step=step)
        case _:
            raise AssertionError(parameter)
