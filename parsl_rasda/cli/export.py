"""`parsl-rasda export`: a run for other tools."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from parsl_rasda.cli.options import RunFolder
from parsl_rasda.cli.output import print_message


class Target(StrEnum):
    """What can open an export."""

    optuna = "optuna"
    csv = "csv"
    mlflow = "mlflow"


HOW_TO_OPEN = {
    Target.optuna: "open it with: optuna-dashboard sqlite:///{file}",
    Target.mlflow: "open it with: mlflow ui --backend-store-uri sqlite:///{file}",
    Target.csv: "",
}


def export(
    directory: RunFolder,
    to: Annotated[Target, typer.Option("--to", help="Writes optuna.db, results.csv or mlflow.db.")],
) -> None:
    """Write a run as a file that other tools open, beside its journal.

    The run may be active; an earlier export is replaced.
    """
    from parsl_rasda.reporting.exports import export_run
    from parsl_rasda.reporting.runs import read_run

    files = export_run(read_run(directory), to.value)
    if not files:
        print_message(f"nothing to export: no search of {directory} has begun")
    for file in files:
        typer.echo(f"wrote {file}")
        if HOW_TO_OPEN[to]:
            typer.echo(HOW_TO_OPEN[to].format(file=file))
