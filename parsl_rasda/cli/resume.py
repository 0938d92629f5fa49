"""`parsl-rasda resume`: continue a run where it ended."""

from __future__ import annotations

from typing import Annotated

import typer

from parsl_rasda.cli.options import AsJson, Overrides, RetryFailed, RunFolder


def resume(
    directory: RunFolder,
    overrides: Overrides = None,
    retry_failed: RetryFailed = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until another controller of the run has ended.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Continue a run, after any crash or with more trials.

    Only tune.num_samples may be changed (to a larger number), tune.budget, track and notify.
    """
    from parsl_rasda.cli.run_and_report import run_and_report
    from parsl_rasda.workflow.entry import resume_study

    run_and_report(
        directory,
        lambda view: resume_study(
            directory, overrides or (), progress=view, retry_failed=retry_failed, wait=wait
        ),
        as_json=as_json,
    )
