"""`parsl-rasda report`: files about a run."""

from __future__ import annotations

from parsl_rasda.cli.options import RunFolder
from parsl_rasda.cli.output import print_result


def report(directory: RunFolder) -> None:
    """Write report.html, results.csv, metrics.csv, best.json, asha.svg, summary.txt and graph.{...} of a run.

    They are written beside the journal; report.html is one file that any browser opens. The summary is
    also printed.
    """
    from rich.console import Group
    from rich.text import Text

    from parsl_rasda.private_files import private_files
    from parsl_rasda.reporting.files import write_report
    from parsl_rasda.reporting.overview import outcome_view
    from parsl_rasda.reporting.runs import read_run

    run = read_run(directory)
    with private_files(directory):
        files = write_report(run)
    print_result(Group(outcome_view(run), *(Text(f"wrote {file}", "dim") for file in files)))
