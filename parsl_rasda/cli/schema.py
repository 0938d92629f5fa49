"""`parsl-rasda schema`: what a study or site file may hold, as editors read it."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


class Kind(StrEnum):
    """The files that have a schema."""

    STUDY = "study"
    SITE = "site"


def schema(kind: Annotated[Kind, typer.Argument(help="Of which file.")]) -> None:
    """Print the JSON Schema of study or site files, with the plug-ins that are installed here.

    Files that `init` writes name the shipped one, which knows what is built in, in their first line:
    editors with a YAML language server then complete keys and mark mistakes.
    """
    from parsl_rasda.study.schema import as_text, schema_of

    typer.echo(as_text(schema_of(kind.value)), nl=False)
