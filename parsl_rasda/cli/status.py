"""`parsl-rasda status`: where a run stands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from parsl_rasda.cli.options import AsJson, RunFolder
from parsl_rasda.cli.output import print_json, print_result
from parsl_rasda.vocabulary import StudyState

if TYPE_CHECKING:
    from rich.console import RenderableType

    from parsl_rasda.reporting.runs import Run

_ROWS = 40


def status(directory: RunFolder, as_json: AsJson = False) -> None:
    """Show where a run stands, with the reason of each failure.

    Numbers are as of now if somebody runs it, else as it ended.
    """
    from parsl_rasda.reporting.runs import read_run

    run = read_run(directory)
    if as_json:
        print_json(run.document())
    else:
        print_result(run_view(run))


def run_view(run: Run) -> RenderableType:
    """Return everything about a run: who runs it, its stages, its searches."""
    from rich.console import Group
    from rich.text import Text

    from parsl_rasda.cli.carry import MEND, resume_command
    from parsl_rasda.reporting.tables import status_view
    from parsl_rasda.reporting.words import duration

    summaries = run.summaries()
    parts: list[RenderableType] = []
    for done in run.finished:
        calls = f"{done.calls} call{'s' * (done.calls > 1)}"
        parts.append(Text(f"stage {done.name}: {calls} done in {duration(done.seconds)}"))
    for stage, summary in summaries.items():
        parts += [Text(f"\nstage {stage}", "bold")] if len(summaries) > 1 else []
        parts.append(status_view(summary, _ROWS))
    if run.controller:
        parts.append(Text(f"\nbeing run by {run.controller}", "cyan"))
    elif any(s["state"] == StudyState.FAILED for s in summaries.values()):
        parts.append(Text(f"\nno trial succeeded; {MEND}", "yellow"))
    elif any(s["state"] != StudyState.DONE for s in summaries.values()):
        parts.append(Text(f"\nnobody runs it; go on with: {resume_command(run.directory)}", "yellow"))
    return Group(*parts)
