"""A run in what other tools open: Optuna's dashboard, MLflow, a spreadsheet.

Files beside the journal are replaced as a whole. To a storage or server that others use, what is missing is
added; what is there already stays as it is. The run itself is never changed.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeAlias

from parsl_rasda.atomic_files import replace_file
from parsl_rasda.errors import InvalidSettingError
from parsl_rasda.orchestration.curves import Curves
from parsl_rasda.orchestration.run_directory import RunDirectory
from parsl_rasda.reporting.files import tables, write_report
from parsl_rasda.reporting.ro_crate import NAME, ro_crate
from parsl_rasda.reporting.runs import Run
from parsl_rasda.tracking.base import Origin, without_password

Summary: TypeAlias = Mapping[str, Any]  # of one search, as `status --json` has it

FORMATS: Final = ("optuna", "csv", "mlflow", "ro-crate")
_ADDRESS = re.compile(r"(?:(optuna|mlflow)\+)?((\w+)(?:\+\w+)?:.+)")
_DATABASES, _SERVERS = ("sqlite", "mysql", "postgresql", "mariadb"), ("http", "https")
_ALLOWED = (
    f"{', '.join(FORMATS)}, the URL of a database that Optuna uses (sqlite:///shared.db, postgresql://...), "
    "or of an MLflow server (http://...); optuna+URL and mlflow+URL say which of them is meant"
)


def to_csv(run: Run) -> tuple[Path, ...]:
    """Write results.csv of each search, a row a trial, and metrics.csv, a row a metric; return the files."""
    contents = {file: text for stage, s in _begun(run) for file, text in tables(run, stage, s).items()}
    for file, table in contents.items():
        replace_file(file, table)
    return tuple(contents)


def to_optuna(run: Run) -> tuple[Path, ...]:
    """Write optuna.db, a study of Optuna for each search; return it."""
    with _database(run.directory / "optuna.db") as url:
        add_to_optuna(run, url, with_running=True)
    return (run.directory / "optuna.db",)


def add_to_optuna(run: Run, url: str, *, with_running: bool = False) -> None:
    """Add a study for each search of a run to a storage of Optuna's; see `optuna_studies`.

    Args:
        run: The run.
        url: The storage.
        with_running: Also add trials that have not ended.

    Raises:
        InvalidSettingError: If the storage cannot be used.
    """
    from parsl_rasda.reporting.optuna_studies import StudyWriter

    with _as_refusal(url), StudyWriter(url, with_running=with_running) as writer:
        for stage, summary in _begun(run):
            writer.add(_origin(run, stage), summary, run.study.tune_stages[stage].tune)


def to_mlflow(run: Run) -> tuple[Path, ...]:
    """Write mlflow.db, an experiment of MLflow for each search and a run for each trial; return it.

    Raises:
        InvalidSettingError: If MLflow is not installed.
    """
    with _database(run.directory / "mlflow.db") as url:
        add_to_mlflow(run, url, (run.directory / "mlflow").absolute().as_uri())
    return (run.directory / "mlflow.db",)


def add_to_mlflow(run: Run, uri: str, artifacts: str | None = None) -> None:
    """Add an experiment for each search of a run, and a run for each trial, to a place that MLflow knows.

    Raises:
        InvalidSettingError: If MLflow is not installed, or the place cannot be used.
    """
    try:
        from parsl_rasda.tracking.mlflow import MlflowTracker
    except ImportError:
        allowed = "optuna, csv; mlflow after pip install 'parsl_rasda[mlflow]'"
        raise InvalidSettingError("--to", "mlflow", allowed) from None
    with _as_refusal(uri):
        for stage, _ in _begun(run):
            tracker = MlflowTracker(uri, _origin(run, stage), artifacts)
            for curve in (run.searches[stage].curves or Curves()).trials.values():
                tracker.write(curve)


def to_ro_crate(run: Run) -> tuple[Path, ...]:
    """Write the files of a report, and what describes them as an RO-Crate; return the latter."""
    write_report(run)
    file = run.directory / NAME
    replace_file(file, ro_crate(run))
    return (file,)


_EXPORTS: Final = {"optuna": to_optuna, "csv": to_csv, "mlflow": to_mlflow, "ro-crate": to_ro_crate}
_ADDITIONS: Final[dict[str, Callable[[Run, str], None]]] = {"optuna": add_to_optuna, "mlflow": add_to_mlflow}


def target_of(target: str) -> tuple[str, str | None]:
    """Return the tool that a target is for, and the address of what it uses; None for a file of our own.

    Raises:
        InvalidSettingError: If it is neither a format nor an address.
    """
    if target in FORMATS:
        return target, None
    found = _ADDRESS.fullmatch(target)
    kinds = dict.fromkeys(_DATABASES, "optuna") | dict.fromkeys(_SERVERS, "mlflow")
    tool = found and (found[1] or kinds.get(found[3]))
    if not found or not tool:
        raise InvalidSettingError("--to", without_password(target), _ALLOWED)
    return tool, found[2]


def export_run(run: Run, target: str) -> tuple[str, ...]:
    """Write a run where a target says; return the files or the address; nothing if no search has begun.

    Raises:
        InvalidSettingError: If the target is none, cannot be used, or is MLflow and that is not installed.
    """
    tool, address = target_of(target)
    if not any(_begun(run)):
        return ()
    if address is None:
        return tuple(map(str, _EXPORTS[tool](run)))
    with _quiet():
        _ADDITIONS[tool](run, address)
    return (without_password(address),)


def _begun(run: Run) -> Iterator[tuple[str, Summary]]:
    for stage, summary in run.summaries().items():
        if run.searches[stage].records:
            yield stage, summary


def _origin(run: Run, stage: str) -> Origin:
    name = run.study.name if len(run.searches) == 1 else f"{run.study.name}.{stage}"
    mark = RunDirectory(run.directories[stage]).mark
    return Origin(name, mark, run.study.tune_stages[stage].tune.metric)


@contextmanager
def _as_refusal(address: str) -> Iterator[None]:
    """Turn what goes wrong with a storage or server into one sentence: it is whatever its libraries raise."""
    try:
        yield
    except InvalidSettingError:
        raise
    except Exception as error:
        words = without_password(" ".join(str(error).split()))[:300]
        allowed = f"a place that can be reached and written ({type(error).__name__}: {words})"
        raise InvalidSettingError("--to", without_password(address), allowed) from error


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of SQLAlchemy, about Optuna and MLflow
        yield


@contextmanager
def _database(file: Path) -> Iterator[str]:
    """Give the address of a new SQLite file; it replaces the old one when it is complete."""
    beside = file.with_name(file.name + ".new")
    beside.unlink(missing_ok=True)
    with _quiet():
        yield f"sqlite:///{beside}"
    beside.replace(file)
