"""What `run` and `resume` show of a run that has ended."""

from __future__ import annotations

from pathlib import Path

from rich.console import Group
from rich.text import Text

from parsl_rasda.cli.output import print_json, print_message, print_result
from parsl_rasda.reporting.files import write_page
from parsl_rasda.reporting.overview import HOW_TO_FIX, has_no_success, outcome_view, resume_command
from parsl_rasda.reporting.runs import Run, read_run
from parsl_rasda.types import StudyState


def print_outcome(directory: Path, *, as_json: bool) -> None:
    """Write the report of a run, and print how it ended and what can be done now."""
    run = read_run(directory)
    report = _write_report(run)
    if as_json:
        print_json(run.document())
    else:
        where = f"all of it is in {run.directory}{f'; open {report}' if report else ''}"
        print_result(Group(outcome_view(run), Text(where, "dim")))
    if run.state is StudyState.DONE:
        return
    if run.trouble is None or run.trouble[1].is_curable:
        print_message(f"Resume with: {resume_command(run.directory)}")
    elif run.cause.startswith("budget: "):
        print_message(f"Resume with more of it: {resume_command(run.directory)} --set tune.budget=...")
    elif has_no_success(run, run.trouble[0]):
        print_message(f"No trial succeeded: {HOW_TO_FIX}{_first_log(run.directory)}")


def _write_report(run: Run) -> Path | None:
    """Write report.html, and return it; a full disk must not change the exit code of the run."""
    try:
        return write_page(run)
    except OSError as error:
        print_message(f"report.html could not be written: {error}")
        return None


def _first_log(directory: Path) -> str:
    first = min(directory.rglob("attempt-1/log.txt"), default=None)
    return f". What the ranks of the first trial wrote: {first}" if first else ""
