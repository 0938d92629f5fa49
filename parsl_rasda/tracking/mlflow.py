"""Trials as runs of MLflow: on a server, or in a database; the only module that imports it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

from mlflow.entities import Metric, Param, RunStatus
from mlflow.tracking import MlflowClient

from parsl_rasda.orchestration.curves import Curve
from parsl_rasda.tracking.base import STEPS, Origin, plain_value, thousandths
from parsl_rasda.types import TrialId, TrialState

RUN, TRIAL = "parsl_rasda.run", "trial"  # tags by which a run is found again
_ENDS = {
    TrialState.COMPLETED: RunStatus.FINISHED,
    TrialState.STOPPED: RunStatus.KILLED,
    TrialState.FAILED: RunStatus.FAILED,
}
_METRICS, _PARAMS = 1000, 100  # of one request
_LONGEST = 5000  # characters of a parameter or tag
T = TypeVar("T")


class MlflowTracker:
    """A run for each trial, in one experiment."""

    def __init__(self, uri: str, origin: Origin, artifacts: str | None = None) -> None:
        """Connect when the first trial is written.

        Args:
            uri: Tracking URI.
            origin: Of the trials; its name is that of the experiment.
            artifacts: URI of the experiment's artifacts, should it be new.
        """
        logging.getLogger("mlflow").setLevel(logging.ERROR)
        self._client = MlflowClient(tracking_uri=uri)
        self._origin, self._artifacts = origin, artifacts
        self._experiment: str | None = None
        self._runs: dict[TrialId, str] = {}
        self._known: dict[TrialId, set[tuple[str, int, int]]] = {}
        self._tags: dict[TrialId, dict[str, str]] = {}

    def write(self, curve: Curve) -> None:
        """Write what is missing of a trial."""
        if curve.began is None:
            return
        run = self._run(curve)
        known = self._known[curve.trial]
        missing = [m for m in _metrics(curve) if (m.key, m.step, m.timestamp) not in known]
        for some in _chunks(missing, _METRICS):
            self._client.log_batch(run, metrics=some)
            known.update((m.key, m.step, m.timestamp) for m in some)
        self._tag(run, curve)
        if curve.state is not None:
            del self._runs[curve.trial], self._known[curve.trial], self._tags[curve.trial]

    def close(self) -> None:
        """Nothing is held."""

    def _tag(self, run: str, curve: Curve) -> None:
        """Say how the trial stands, if that has changed."""
        before, now = self._tags[curve.trial], _tags(curve)
        if before == now:
            return
        for name, value in now.items():
            if before.get(name) != value:
                self._client.set_tag(run, name, value)
        if curve.state is not None:
            end = RunStatus.to_string(_ENDS[curve.state])
            self._client.set_terminated(run, end, _milliseconds(curve.ended))
        elif before.get("state", "") not in {"", "running"}:  # it had failed, and started afresh
            self._client.update_run(run, RunStatus.to_string(RunStatus.RUNNING))
        self._tags[curve.trial] = now

    def _run(self, curve: Curve) -> str:
        """Return the run of a trial: found again, or created."""
        if curve.trial in self._runs:
            return self._runs[curve.trial]
        experiment = self._experiment = self._experiment or self._experiment_of()
        which = f"tags.`{RUN}` = '{self._origin.mark}' and tags.`{TRIAL}` = '{curve.trial}'"
        found = self._client.search_runs([experiment], which, max_results=1)
        run = found[0] if found else self._create(experiment, curve)
        logged: str = run.info.run_id
        self._known[curve.trial] = self._logged(curve, run)
        self._tags[curve.trial] = (
            {name: run.data.tags.get(name, "") for name in _tags(curve)} if found else {}
        )
        settings = [Param(n, str(plain_value(v))[:_LONGEST]) for n, v in curve.config.items()]
        for some in _chunks([p for p in settings if p.key not in run.data.params], _PARAMS):
            self._client.log_batch(logged, params=some)
        self._runs[curve.trial] = logged
        return logged

    def _logged(self, curve: Curve, run: Any) -> set[tuple[str, int, int]]:  # Any: MLflow's Run
        """Return what a run has of a trial."""
        if curve.state is not None and run.info.status == RunStatus.to_string(_ENDS[curve.state]):
            return {(m.key, m.step, m.timestamp) for m in _metrics(curve)}  # it ends when all is written
        histories = (self._client.get_metric_history(run.info.run_id, key) for key in run.data.metrics)
        return {(m.key, m.step, m.timestamp) for history in histories for m in history}

    def _experiment_of(self) -> str:
        found = self._client.get_experiment_by_name(self._origin.name)
        if found is not None:
            return str(found.experiment_id)
        return str(self._client.create_experiment(self._origin.name, self._artifacts))

    def _create(self, experiment: str, curve: Curve) -> Any:  # Any: MLflow's Run
        tags = {RUN: self._origin.mark, TRIAL: str(curve.trial)}
        return self._client.create_run(
            experiment, _milliseconds(curve.began), tags, run_name=str(curve.trial)
        )


def _metrics(curve: Curve) -> Iterator[Metric]:
    for epoch, point in curve.epochs:
        for place, metrics in point.steps:
            for name, value in metrics.items():
                yield Metric(f"{STEPS}{name}", value, _milliseconds(point.at), thousandths(place))
        for name, value in point.metrics.items():
            yield Metric(name, value, _milliseconds(point.at), epoch)


def _tags(curve: Curve) -> dict[str, str]:
    state = "running" if curve.state is None else curve.state.value
    tags = {"state": state, "attempts": str(curve.attempts), "reason": curve.reason}
    return {name: value[:_LONGEST] for name, value in tags.items()}


def _milliseconds(at: float | None) -> int | None:
    return None if at is None else int(at * 1000)


def _chunks(items: Iterable[T], size: int) -> Iterator[Sequence[T]]:
    waiting = iter(items)
    while some := list(islice(waiting, size)):
        yield some
