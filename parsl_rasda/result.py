"""What a study has come to, for programs and notebooks.

::

    from parsl_rasda import StudyResult
    from train import build                      # config -> model, as the training function builds it

    best = StudyResult.open("runs/first")        # what `tune(...).result()` returns, too
    model = best.load_model(build)
"""

from __future__ import annotations

import html
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

from parsl_rasda.diagnostics import listing
from parsl_rasda.errors import CheckpointError, InvalidSettingError, RasdaError, RunDirectoryError

if TYPE_CHECKING:
    import pandas as pd

    from parsl_rasda.reporting.runs import Run

ModelT = TypeVar("ModelT")  # an nn.Module; only ranks import torch


class StudyResult(dict[str, Any]):
    """The best trial of a search, as a mapping, with all that the search has found.

    The mapping has ``trial``, ``metric``, ``epoch``, ``config``, ``checkpoint``, ``replicas``, ``site``. It
    goes into other apps and files like any mapping; everything else is read from the run directory when it
    is asked for.

    Attributes:
        directory: The run directory.
        stage: The search's stage.
    """

    directory: Path
    stage: str

    def __init__(self, best: Mapping[str, Any], directory: Path, stage: str) -> None:
        """Hold the best trial of a search."""
        super().__init__(best)
        self.directory, self.stage = directory, stage

    @classmethod
    def open(cls, directory: str | os.PathLike[str], stage: str | None = None) -> Self:
        """Return what a run has come to, so far if it is not over.

        Args:
            directory: The run directory.
            stage: Which search, if there are several; by default the last one of the graph.

        Raises:
            RunDirectoryError: If it is not one of a run, or has no trial with a result.
            InvalidSettingError: If there is no such search.
        """
        from parsl_rasda.reporting.runs import read_run

        run = read_run(Path(directory))
        searches = [name for name in run.order if name in run.searches]
        if not searches or (stage is not None and stage not in searches):
            raise InvalidSettingError("stage", stage, f"a search of {run.study.name}: {listing(searches)}")
        name = stage or searches[-1]
        found = run.searches[name].summary()["best"]
        if found is None:
            raise RunDirectoryError(str(run.directory), "has no trial with a result yet", "Run or resume it.")
        return cls(found, run.directory, name)

    @property
    def best(self) -> dict[str, Any]:
        """The best trial, as a plain mapping."""
        return dict(self)

    def summary(self) -> dict[str, Any]:
        """Return the JSON document of the search, as `parsl-rasda status --json` has it."""
        return self._run().summaries()[self.stage]

    @property
    def front(self) -> list[dict[str, Any]]:
        """With several metrics: the trials that no other beats in all, best by the first one first."""
        return list(self.summary()["front"])

    @property
    def confirmed(self) -> dict[str, Any] | None:
        """What training the best trials again has come to: `tune.confirm`; None if there is none.

        ``candidates`` have ``trial``, ``mean``, ``spread``, ``results`` and the ``chance`` to be the best.
        """
        found: dict[str, Any] | None = self.summary()["confirm"]
        return found

    @property
    def energy(self) -> dict[str, Any]:
        """What the search has drawn [kWh]: ``kwh``, None if nobody knows, and ``by_outcome`` of its trials.

        ``jobs_metered`` of ``jobs`` had a counter; the others are not in the sum.
        """
        return dict(self.summary()["energy"])

    def dataframe(self, *, long: bool = False) -> pd.DataFrame:
        """Return a row for each trial: state, times, last metrics, configuration.

        Args:
            long: A row for each metric of each epoch instead: trial, epoch, metric, value.

        Raises:
            InvalidSettingError: If pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError:
            allowed = "a Python that has it: pip install pandas"
            raise InvalidSettingError("dataframe()", "no pandas", allowed) from None

        trials = self.summary()["trial_list"]
        if long:
            return pd.DataFrame(_long_rows(trials), columns=["trial", "epoch", "metric", "value"])
        rows = [
            {
                **{key: t[key] for key in ("trial", "state", "epoch", "replicas", "attempts", "reason")},
                **{key: _utc(pd, t[key]) for key in ("began", "ended")},
                **t["metrics"],
                **{f"config.{key}": value for key, value in t["config"].items()},
            }
            for t in trials
        ]
        return pd.DataFrame(rows).set_index("trial") if rows else pd.DataFrame()

    def load_model(self, build: Callable[[dict[str, Any]], ModelT]) -> ModelT:
        """Return the best model with the weights of its checkpoint.

        Args:
            build: Makes the model of a configuration, as the training function does.

        Raises:
            CheckpointError: If there is no checkpoint, or it is not of this model.
        """
        from parsl_rasda.runtime.checkpoints.model import load_model

        if self["checkpoint"] is None:
            raise CheckpointError(f"of trial {self['trial']}", "it kept none, so there is no model to load")
        model = build(dict(self["config"]))
        load_model(self["checkpoint"], cast(Any, model))  # cast: a Module, which this module cannot name
        return model

    def _run(self) -> Run:
        from parsl_rasda.reporting.runs import read_run

        return read_run(self.directory)

    # ------------------------------------------------------------------------------- notebooks

    def _repr_html_(self) -> str:
        """Return the outcome with its learning curves; without the run directory, the best trial alone."""
        from parsl_rasda.reporting.excerpt import excerpt

        try:
            return excerpt(self._run(), self.stage)
        except (RasdaError, OSError):
            return f"<pre>{html.escape(repr(self))}</pre>"

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        """Return it for whatever shows it: a terminal has the text, a notebook the page."""
        del include, exclude
        return {"text/plain": repr(self), "text/html": self._repr_html_()}

    def __repr__(self) -> str:
        return f"StudyResult({super().__repr__()}, directory={str(self.directory)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self), self.directory, self.stage)


def _long_rows(trials: list[dict[str, Any]]) -> Iterator[tuple[Any, ...]]:
    for trial in trials:
        for name, curve in trial["curves"].items():
            yield from ((trial["trial"], epoch, name, value) for epoch, value in curve)


def _utc(pd: Any, at: float | None) -> Any:  # Any: pandas may not be installed
    return pd.NaT if at is None else pd.Timestamp(at, unit="s", tz="UTC")
