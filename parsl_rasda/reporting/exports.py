"""A run as files that other tools open: Optuna's dashboard, MLflow's, a spreadsheet.

Each export replaces the one before; the run itself is never changed.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from parsl_rasda.atomic_files import replace_file
from parsl_rasda.errors import InvalidSettingError
from parsl_rasda.reporting.files import results_csv
from parsl_rasda.reporting.runs import Run
from parsl_rasda.search.space import Choice, Constant, Float, Int, Parameter, SearchSpace
from parsl_rasda.types import JSON, Mode, TrialState

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Summary: TypeAlias = Mapping[str, Any]  # of one search, as `status --json` has it

_ENDED_WELL: Final = {TrialState.COMPLETED.value, TrialState.STOPPED.value}


def to_csv(run: Run) -> tuple[Path, ...]:
    """Write results.csv of each search, one row a trial; return the files."""
    tables = {run.directories[stage] / "results.csv": results_csv(s) for stage, s in _begun(run)}
    for file, table in tables.items():
        replace_file(file, table)
    return tuple(tables)


def to_optuna(run: Run) -> tuple[Path, ...]:
    """Write optuna.db, a study of Optuna for each search; return it.

    Trials that reached the end are *complete*, stopped ones *pruned*; every epoch is an intermediate
    value. A configuration outside the search space is kept as a user attribute only.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with _database(run.directory / "optuna.db") as url:
        storage = optuna.storages.RDBStorage(url)
        for stage, summary in _begun(run):
            study = optuna.create_study(
                storage=storage,
                study_name=_name(run, stage),
                direction="minimize" if summary["mode"] == Mode.MIN else "maximize",
            )
            study.set_metric_names([summary["metric"]])
            space = SearchSpace.from_mapping(run.study.tune_stages[stage].tune.search_space)
            for trial in summary["trial_list"]:
                study.add_trial(_optuna_trial(trial, space))
        storage.engine.dispose()
    return (run.directory / "optuna.db",)


def to_mlflow(run: Run) -> tuple[Path, ...]:
    """Write mlflow.db, an experiment of MLflow for each search and a run for each trial; return it.

    Raises:
        InvalidSettingError: If MLflow is not installed.
    """
    try:
        from mlflow.tracking import MlflowClient
    except ImportError:
        allowed = "optuna, csv; mlflow after pip install 'parsl_rasda[mlflow]'"
        raise InvalidSettingError("--to", "mlflow", allowed) from None
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    with _database(run.directory / "mlflow.db") as url:
        client = MlflowClient(tracking_uri=url)
        for stage, summary in _begun(run):
            artifacts = (run.directory / "mlflow").absolute().as_uri()
            experiment = client.create_experiment(_name(run, stage), artifacts)
            for trial in summary["trial_list"]:
                _log_to_mlflow(client, experiment, trial, summary["metric"])
    return (run.directory / "mlflow.db",)


_EXPORTS: Final = {"optuna": to_optuna, "csv": to_csv, "mlflow": to_mlflow}


def export_run(run: Run, target: str) -> tuple[Path, ...]:
    """Write a run for ``optuna``, ``csv`` or ``mlflow``; return the files; none if no search has begun.

    Raises:
        InvalidSettingError: If the target is MLflow, and it is not installed.
    """
    return _EXPORTS[target](run) if any(_begun(run)) else ()


def _begun(run: Run) -> Iterator[tuple[str, Summary]]:
    for stage, summary in run.summaries().items():
        if run.searches[stage].records:
            yield stage, summary


@contextmanager
def _database(file: Path) -> Iterator[str]:
    """Give the address of a new SQLite file; it replaces the old one when it is complete."""
    beside = file.with_name(file.name + ".new")
    beside.unlink(missing_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of SQLAlchemy, about Optuna and MLflow
        yield f"sqlite:///{beside}"
    beside.replace(file)


def _name(run: Run, stage: str) -> str:
    return run.study.name if len(run.searches) == 1 else f"{run.study.name}.{stage}"


def _optuna_trial(trial: Mapping[str, Any], space: SearchSpace) -> Any:
    from optuna.trial import TrialState as Optunas
    from optuna.trial import create_trial

    params, distributions = {}, {}
    if space.accepts(trial["config"]):
        for name, value in trial["config"].items():
            parameter = space.parameters[name]
            if not isinstance(parameter, Constant):
                params[name], distributions[name] = _plain(value), _distribution(parameter)
    has_value = trial["state"] in _ENDED_WELL and trial["metric"] is not None
    states = {
        TrialState.COMPLETED.value: Optunas.COMPLETE if has_value else Optunas.FAIL,
        TrialState.STOPPED.value: Optunas.PRUNED,
        TrialState.FAILED.value: Optunas.FAIL,
    }
    return create_trial(
        state=states.get(trial["state"], Optunas.RUNNING),
        value=trial["metric"] if has_value else None,
        params=params,
        distributions=distributions,
        intermediate_values={epoch: float("nan") if m is None else m for epoch, m in trial["history"]},
        user_attrs={key: trial[key] for key in ("trial", "config", "replicas", "attempts", "reason")},
    )


def _distribution(parameter: Parameter) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    match parameter:
        case Choice(values):
            return CategoricalDistribution([_plain(v) for v in values])
        case Int(low, _, log, step):
            return IntDistribution(low, parameter.level(parameter.count - 1), log=log, step=step)
        case Float(low, high, log, step):
            last = high if parameter.count is None else parameter.level(parameter.count - 1)
            return FloatDistribution(low, last, log=log, step=step)
        case _:
            raise AssertionError(parameter)


def _plain(value: JSON) -> bool | int | float | str | None:
    """Return a value that Optuna can hold: lists and mappings as JSON."""
    return value if value is None or isinstance(value, bool | int | float | str) else json.dumps(value)


def _log_to_mlflow(client: Any, experiment: str, trial: Mapping[str, Any], metric: str) -> None:
    tags = {key: str(trial[key]) for key in ("trial", "state", "replicas", "attempts", "reason")}
    logged = client.create_run(experiment, run_name=trial["trial"], tags=tags).info.run_id
    for name, value in trial["config"].items():
        client.log_param(logged, name, _plain(value))
    for epoch, value in trial["history"]:
        client.log_metric(logged, metric, float("nan") if value is None else value, step=epoch)
    if TrialState(trial["state"]).is_final:
        ends = {TrialState.COMPLETED.value: "FINISHED", TrialState.STOPPED.value: "KILLED"}
        client.set_terminated(logged, ends.get(trial["state"], "FAILED"))
