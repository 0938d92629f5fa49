"""`parsl-rasda status`: the state of a run."""

from __future__ import annotations

from parsl_rasda.cli.options import AsJson, RunFolder
from parsl_rasda.cli.output import print_json, print_result

ROWS = 40  # trials listed


def status(directory: RunFolder, as_json: AsJson = False) -> None:
    """Show the state of a run and of each stage, with the reason of each failure.

    Numbers are those of now if the run is active, else those of its end.
    """
    from parsl_rasda.reporting.overview import run_view
    from parsl_rasda.reporting.runs import read_run

    run = read_run(directory)
    if as_json:
        print_json(run.document())
    else:
        print_result(run_view(run, ROWS))
