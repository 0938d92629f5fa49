"""What goes where: results to stdout, everything else to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

from parsl_rasda.plain_text import printable
from parsl_rasda.reporting.format import plain_json

if TYPE_CHECKING:
    from rich.console import RenderableType


def print_json(document: Mapping[str, Any]) -> None:
    """Print one JSON document that every reader understands: no NaN, no infinity."""
    text = json.dumps(plain_json(document), indent=2, ensure_ascii=False, allow_nan=False)
    typer.echo(printable(text, escape=lambda found: json.dumps(found)[1:-1]))


def print_result(renderable: RenderableType) -> None:
    """Print a result: coloured in a terminal, as plain text elsewhere."""
    from parsl_rasda.reporting.tables import Harmless, as_text, console_of

    if sys.stdout.isatty():
        console_of().print(Harmless(renderable))
    else:
        typer.echo(as_text(renderable), nl=False)


def print_message(text: str) -> None:
    """Print a line on stderr, for people."""
    typer.echo(printable(text), err=True)
