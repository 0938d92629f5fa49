"""`parsl-rasda cancel`: end a run from anywhere."""

from __future__ import annotations

import typer

from parsl_rasda.cli.options import RunFolder
from parsl_rasda.cli.output import print_message


def cancel(directory: RunFolder) -> None:
    """End whoever runs a study, on any machine, and take its job from the queue.

    Trials save and leave, pilots are given back, and no further job is queued. `resume` goes on.
    """
    from parsl_rasda.reporting.overview import resume_command
    from parsl_rasda.workflow.submission import cancel_run

    cancelled = cancel_run(directory, print_message)
    if cancelled.unasked:
        print_message(f"its batch system could not be asked; if its job is queued: `{cancelled.unasked}`")
    if cancelled.was_active:
        typer.echo(f"ended; go on with: {resume_command(directory)}")
    elif cancelled.unasked:
        typer.echo("nobody runs it now")
    else:
        typer.echo("nobody runs it, and no job of its controller is queued")
