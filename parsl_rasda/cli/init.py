"""`parsl-rasda init`: files to start from."""

from __future__ import annotations

import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from parsl_rasda.errors import InvalidSettingError

# What is copied: in a wheel inside the package, in a checkout beside it.
_PACKAGE = Path(__file__).resolve().parents[1]
_PLACES = (_PACKAGE / "workflows", _PACKAGE.parent / "workflows")
_SITE = "site.yaml"


class Template(StrEnum):
    """What a new study may look like."""

    MINIMAL = "minimal"
    CFD = "cfd"
    AM = "am"
    CV = "cv"
    AUTOENCODER = "autoencoder"
    EMULATED = "emulated"
    DDP_SCRIPT = "ddp_script"


_FOLDERS = {  # of workflows/, where a template is not called as its folder is
    Template.CFD: "cfd_defiltering",
    Template.AM: "am_meltpool",
    Template.CV: "cv_resnet",
    Template.AUTOENCODER: "cfd_autoencoder",
}


def init(
    directory: Annotated[Path, typer.Argument(metavar="[DIR]", help="Folder for the files.")] = Path(),
    template: Annotated[Template, typer.Option(help="What to start from.")] = Template.MINIMAL,
) -> None:
    """Write a study to start from.

    The files go into DIR, by default the current folder, and are yours to change. Nothing is overwritten.
    """
    for file in copy_template(template, directory):
        typer.echo(f"wrote {file}")
    named = shlex.join([str(directory / "study.yaml"), "--site", str(directory / _SITE)])
    for command in ("validate", "run"):
        typer.echo(f"Next: parsl-rasda {command} {named}")


def copy_template(template: Template, directory: Path) -> tuple[Path, ...]:
    """Copy the files of a template into a folder, and return them.

    A template without a site of its own gets the one that is common to all.

    Raises:
        InvalidSettingError: If one of them is there already; then nothing is written.
    """
    workflows = next(place for place in _PLACES if (place / _SITE).is_file())
    folder = workflows / _FOLDERS.get(template, template.value)
    sources = [file for file in sorted(folder.iterdir()) if file.is_file()]
    if all(f.name != _SITE for f in sources):
        sources.append(workflows / _SITE)
    there = [str(directory / f.name) for f in sources if (directory / f.name).exists()]
    if there:
        raise InvalidSettingError("DIR", ", ".join(there), "a folder without these files")
    directory.mkdir(parents=True, exist_ok=True)
    for file in sources:
        (directory / file.name).write_bytes(file.read_bytes())
    return tuple(directory / file.name for file in sources)
