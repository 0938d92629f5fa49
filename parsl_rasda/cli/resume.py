"""`parsl-rasda resume`: continue a run where it ended."""

from __future__ import annotations

from typing import Annotated

import typer

from parsl_rasda.cli.options import AsJson, Overrides, RetryFailed, RunFolder


def resume(
    directory: RunFolder,
    overrides: Overrides = None,
    site: Annotated[
        list[str] | None,
        typer.Option(
            "--site",
            metavar="SITE",
            help="Go on with these sites instead: a name in site_configs/, or a file; may be repeated.",
        ),
    ] = None,
    retry_failed: RetryFailed = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until another controller of the run has ended.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Continue a run, after any crash or otherwise than it began.

    tune.num_samples, tune.scheduler.max_t and max_workers may become larger; tune.scheduler.growth,
    tune.budget, track, notify and the sites may change.
    """
    from parsl_rasda.cli.run_and_report import run_and_report
    from parsl_rasda.workflow.entry import resume_study

    run_and_report(
        directory,
        lambda view: resume_study(
            directory, overrides or (), progress=view, sites=site or (), retry_failed=retry_failed, wait=wait
        ),
        as_json=as_json,
    )
