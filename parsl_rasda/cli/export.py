"""`parsl-rasda export`: a run for other tools."""

from __future__ import annotations

from typing import Annotated

import typer

from parsl_rasda.cli.options import RunFolder
from parsl_rasda.cli.output import print_message

_HOW_TO_OPEN = {
    "optuna": "open it with: optuna-dashboard {url}",
    "mlflow": "open it with: mlflow ui --backend-store-uri {url}",
}


def export(
    directory: RunFolder,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="optuna|csv|mlflow|ro-crate|URL",
            help="Writes optuna.db, results.csv and metrics.csv, mlflow.db, or ro-crate-metadata.json, which "
            "makes the run directory an RO-Crate (Workflow Run profile); or adds to what is at a URL: "
            "a database of Optuna's (sqlite:///..., postgresql://...), an MLflow server (http://...). "
            "optuna+URL or mlflow+URL says which of them is meant.",
        ),
    ],
) -> None:
    """Write a run as a file that other tools open, beside its journal, or add it to a storage or server.

    The run may be active. An earlier file is replaced; to a storage or server only what is missing is added.
    """
    from parsl_rasda.reporting.exports import export_run, target_of
    from parsl_rasda.reporting.runs import read_run

    tool, address = target_of(to)
    written = export_run(read_run(directory), to)
    if not written:
        print_message(f"nothing to export: no search of {directory} has begun")
    for place in written:
        typer.echo(f"wrote {place}" if address is None else f"added to {place}")
        if tool in _HOW_TO_OPEN:
            typer.echo(_HOW_TO_OPEN[tool].format(url=f"sqlite:///{place}" if address is None else place))
