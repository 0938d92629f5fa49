"""`parsl-rasda watch`: `status` that follows a run."""

from __future__ import annotations

import contextlib
import time
from bisect import bisect_right
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from parsl_rasda.cli.options import RunFolder
from parsl_rasda.cli.output import print_result
from parsl_rasda.cli.status import ROWS, controllers_job, queued_controller

if TYPE_CHECKING:
    from rich.console import ConsoleDimensions, RenderableType

    from parsl_rasda.reporting.overview import JobWords
    from parsl_rasda.reporting.runs import Run

_QUEUE_S = 30.0  # between two questions to a batch system
_SHARE = 0.2  # of the time, at most, is spent reading


def watch(
    directory: RunFolder,
    every: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="Time between two updates.")] = 2.0,
    web: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535,
            metavar="PORT",
            help="Serve the report as a page that follows the run; 0: any port.",
        ),
    ] = None,
) -> None:
    """Follow a run until nobody runs it any more, and no job of its controller waits; then show it.

    Ctrl-C ends the watching, not the run. Works from any machine that sees the directory. With --web, the
    page is served on this machine's loopback interface until Ctrl-C, at an address with a token.
    """
    if web is not None:
        _serve(directory, web, every)
        return
    from rich.live import Live

    from parsl_rasda.display.live import above_the_echo
    from parsl_rasda.reporting.overview import JobWords, run_view
    from parsl_rasda.reporting.runs import read_run
    from parsl_rasda.reporting.tables import Harmless, console_of

    run = read_run(directory)
    try:
        with Live(console=console_of(), transient=True, auto_refresh=False) as live:
            while run.controller or (waiting := queued_controller(run)):
                job = None if run.controller else JobWords(waiting, may_be_queued=True)
                live.update(Harmless(above_the_echo(fitting_view(run, live.console.size, job))), refresh=True)
                began = time.monotonic()
                run = read_run(directory)
                pause_s = max(every, (time.monotonic() - began) / _SHARE)
                time.sleep(max(pause_s, _QUEUE_S) if job else pause_s)
    except KeyboardInterrupt:
        return
    print_result(run_view(run, ROWS, controllers_job(run)))


def _serve(directory: Path, port: int, every_s: float) -> None:
    import threading

    from parsl_rasda.reporting.live_page import live_page

    with live_page(directory, port, every_s) as address:
        typer.echo(f"open {address}")
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


def fitting_view(run: Run, screen: ConsoleDimensions, job: JobWords | None = None) -> RenderableType:
    """Return a run with as many trials as fit on the screen, so that nothing else is cut off.

    Args:
        run: The run.
        screen: Its size.
        job: The job of its controller, if that waits.
    """
    from parsl_rasda.reporting.overview import run_view
    from parsl_rasda.reporting.tables import as_text

    def lines(most: int) -> int:
        return len(as_text(run_view(run, most, job, is_brief=True), screen.width).splitlines())

    most = bisect_right(range(1, screen.height), screen.height - 2, key=lines)
    return run_view(run, max(1, most), job, is_brief=True)
