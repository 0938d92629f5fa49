"""`parsl-rasda init`: files to start from."""

from __future__ import annotations

import shlex
from enum import StrEnum
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated

import typer

from parsl_rasda.errors import InvalidSettingError


class Template(StrEnum):
    """What a new study may look like."""

    MINIMAL = "minimal"
    CFD = "cfd"
    AM = "am"
    CV = "cv"


def init(
    directory: Annotated[Path, typer.Argument(metavar="[DIR]", help="Folder for the files.")] = Path(),
    template: Annotated[Template, typer.Option(help="What to start from.")] = Template.MINIMAL,
) -> None:
    """Write a commented study to start from.

    The files go into DIR, by default the current folder; nothing is overwritten.
    """
    for file in copy_template(template, directory):
        typer.echo(f"wrote {file}")
    named = shlex.join([str(directory / "study.yaml"), "--site", str(directory / "site.yaml")])
    for command in ("validate", "run"):
        typer.echo(f"Next: parsl-rasda {command} {named}")


def copy_template(template: str, directory: Path) -> tuple[Path, ...]:
    """Copy the files of a template into a folder, and return them.

    Raises:
        InvalidSettingError: If one of them is there already; then nothing is written.
    """
    with as_file(files("parsl_rasda.study") / "templates" / template) as folder:
        contents = {
            directory / f.relative_to(folder): f.read_bytes()
            for f in sorted(folder.rglob("*"))
            if f.is_file() and "__pycache__" not in f.parts
        }
    there = [str(f) for f in contents if f.exists()]
    if there:
        raise InvalidSettingError("DIR", ", ".join(there), "a folder without these files")
    for file, content in contents.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return tuple(contents)
