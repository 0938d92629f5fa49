"""`parsl-rasda run`: a study from its beginning to its end."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from parsl_rasda.cli.options import DEFAULT_SITES, AsJson, Overrides, Sites, StudyFile, load_inputs


def run(
    study: StudyFile,
    site: Sites = None,
    directory: Annotated[
        Path | None,
        typer.Option("--dir", metavar="DIR", help="Run directory. Default: runs/<study>."),
    ] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Run a study, and print its outcome."""
    from parsl_rasda.cli.run_and_report import run_and_report
    from parsl_rasda.study.loading import search_path
    from parsl_rasda.workflow.entry import run_study

    admitted = load_inputs(study, site or DEFAULT_SITES, overrides or ())
    folder = directory or Path("runs") / admitted.study.name

    run_and_report(
        folder,
        lambda view: run_study(admitted, folder, search_path=search_path(study), progress=view),
        as_json=as_json,
    )
