"""`parsl-rasda tell`: tell a study something while it runs, or before it is resumed."""

from __future__ import annotations

from typing import Annotated

import typer

from parsl_rasda.cli.options import RetryFailed, RunFolder


def tell(
    directory: RunFolder,
    stop: Annotated[
        list[str] | None, typer.Option("--stop", metavar="TRIAL", help="End a trial; may be repeated.")
    ] = None,
    at_most: Annotated[
        int | None,
        typer.Option("--at-most", metavar="N", min=0, help="So many trials at a time, from now on; 0: any."),
    ] = None,
    add: Annotated[
        list[str] | None,
        typer.Option(
            "--add", metavar="CONFIG", help="Try a configuration, as {lr: 0.1, ...}; may be repeated."
        ),
    ] = None,
    retry_failed: RetryFailed = False,
    stage: Annotated[
        str | None, typer.Option("--stage", help="Which search, where a study has several.")
    ] = None,
) -> None:
    """Tell a study something while it runs; its controller takes it up within seconds.

    What is told while nobody runs it waits for `resume`.
    """
    from parsl_rasda.workflow.telling import tell_study

    said = tell_study(
        directory,
        stop=stop or (),
        at_most=at_most,
        add=add or (),
        retry_failed=retry_failed,
        stage=stage,
    )
    typer.echo(said)
