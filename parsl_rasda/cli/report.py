"""`parsl-rasda report`: files about a run, and runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from parsl_rasda.cli.output import print_message, print_result
from parsl_rasda.errors import InvalidSettingError


def report(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Run directory; or several.")],
    figures: Annotated[
        Path | None,
        typer.Option(
            "--figures", metavar="FOLDER", help="Also write each chart as SVG, and as PNG with resvg-py."
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="Where the comparison of several runs goes.")
    ] = Path("compare.html"),
) -> None:
    """Write report.html, results.csv, metrics.csv, best.json, asha.svg, summary.txt and graph.{...} of a run.

    They are written beside the journal; report.html is one file that any browser opens. The summary is
    also printed. Of several runs, one page is written that has them side by side, and nothing else.
    """
    from rich.console import Group
    from rich.text import Text

    from parsl_rasda.private_files import private_files
    from parsl_rasda.reporting.files import write_report
    from parsl_rasda.reporting.overview import outcome_view
    from parsl_rasda.reporting.runs import read_run

    if len(directories) > 1:
        _compare(directories, figures, out)
        return
    (directory,) = directories
    run = read_run(directory)
    with private_files(directory):
        files = write_report(run)
    if figures is not None:
        from parsl_rasda.reporting.figures import write_figures
        from parsl_rasda.reporting.png import draws_png

        files = (*files, *write_figures(run, figures))
        if not draws_png():
            print_message("figures are SVG only; for PNG, too: pip install 'parsl_rasda[figures]'")
    print_result(Group(outcome_view(run), *(Text(f"wrote {file}", "dim") for file in files)))


def _compare(directories: list[Path], figures: Path | None, out: Path) -> None:
    from parsl_rasda.atomic_files import replace_file
    from parsl_rasda.reporting.comparison import comparison
    from parsl_rasda.reporting.runs import read_run

    if figures is not None:
        raise InvalidSettingError("--figures", "several runs", "one run at a time")
    replace_file(out, comparison([read_run(directory) for directory in directories]))
    typer.echo(f"wrote {out}")
