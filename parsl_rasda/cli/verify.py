"""`parsl-rasda verify`: whether a run is what it says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from parsl_rasda.cli.options import AsJson, RunFolder
from parsl_rasda.cli.output import print_json, print_message, print_result

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import RenderableType

    from parsl_rasda.verification.verdict import Verdict

DIFFERENT = 5


def verify(
    directory: RunFolder,
    stretches: Annotated[
        int, typer.Option(min=0, metavar="N", help="How many stretches of training are done again.")
    ] = 5,
    seed: Annotated[int, typer.Option(help="Of the choice of stretches.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Make every decision of a run again, and train samples of it again at another width, bit for bit.

    Decisions follow from the journal; samples start afresh, or from checkpoints that are still there. They
    are trained by this machine: call it where trials ran, for example in an allocation of one node. The run
    is only read, its code is executed. The exit code is 5 if something differs that must not, or is missing.
    """
    from parsl_rasda.verification.verdict import verify_run

    found = verify_run(directory, stretches, seed, tell=print_message)
    if as_json:
        print_json({"directory": str(directory), "searches": {n: v.document() for n, v in found.items()}})
    else:
        print_result(_view(found))
    if any(verdict.differences for verdict in found.values()):
        raise typer.Exit(DIFFERENT)


def _view(found: Mapping[str, Verdict]) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from parsl_rasda.verification.verdict import headline, lines_of

    parts: list[RenderableType] = []
    for name, verdict in found.items():
        style = "bold red" if verdict.differences else "bold green" if verdict.is_whole else "bold yellow"
        parts.append(Text(f"{name}: {headline(verdict)}", style))
        table = Table.grid(padding=(0, 2), pad_edge=True)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for key, text in lines_of(verdict):
            table.add_row(Text(key), Text(text))
        parts.append(table)
        parts += [Text(f"DIFFERENT: {text}", "red") for text in verdict.differences]
    return Group(*parts)
