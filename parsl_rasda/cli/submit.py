"""`parsl-rasda submit`: the controller of a study as a batch job."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from parsl_rasda.cli.options import AsJson, Overrides, Sites, load_inputs
from parsl_rasda.cli.output import print_json
from parsl_rasda.errors import InvalidSettingError


def submit(
    study: Annotated[
        Path,
        typer.Argument(metavar="STUDY", help="Study file, or the directory of a run that was submitted."),
    ],
    site: Sites = None,
    directory: Annotated[
        Path | None, typer.Option("--dir", metavar="DIR", help="Run directory. Default: runs/<study>.")
    ] = None,
    inside: Annotated[
        bool,
        typer.Option("--inside", help="On the first node of the pilot itself, not on a core of its own."),
    ] = False,
    overrides: Overrides = None,
    is_next: Annotated[bool, typer.Option("--next", hidden=True)] = False,
    as_json: AsJson = False,
) -> None:
    """Run a study by a controller that is a batch job; it goes on in further jobs until the study ends.

    The job is asked of the first site: a core, with the arguments under `controller:` of its file. `status`
    and `watch` follow it from anywhere, `cancel` ends it.
    """
    from parsl_rasda.private_files import private_files
    from parsl_rasda.study.loading import search_path
    from parsl_rasda.workflow.submission import submit_again, submit_study

    if study.is_dir():
        folder = study
        with private_files(folder):
            job = submit_again(folder, is_next=is_next)
    else:
        admitted = load_inputs(study, site or (), overrides or ())
        if not admitted.sites:
            raise InvalidSettingError("--site", "none", "the site whose batch system gets the controller")
        folder = directory or Path("runs") / admitted.study.name
        with private_files(folder):
            job = submit_study(admitted, folder, search_path=search_path(study), inside=inside)
    if as_json:
        print_json({"directory": str(folder.resolve()), "job": job.job, "log": job.log})
    else:
        typer.echo(f"job {job.job} runs the study in {folder}; follow it with: parsl-rasda watch {folder}")
