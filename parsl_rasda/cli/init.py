"""`parsl-rasda init`: files to start from."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from parsl_rasda.errors import InvalidSettingError

if TYPE_CHECKING:
    from parsl_rasda.study.draft import Draft

# What is copied: in a wheel inside the package, in a checkout beside it.
_PACKAGE = Path(__file__).resolve().parents[1]
_PLACES = (_PACKAGE / "workflows", _PACKAGE.parent / "workflows")
_SITE, _README = "site.yaml", "README.md"
_NAME = re.compile(rb"^name: *[^\s#]+", re.MULTILINE)


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
    script: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="Draft the study around a script with argparse, or from Determined's YAML.",
        ),
    ] = None,
) -> None:
    """Write a study to start from.

    The files go into DIR, by default the current folder, and are yours to change; the study is called as the
    folder is. Nothing is overwritten. A script is read, never run: its options become a search space.
    """
    if script is not None and template is not Template.MINIMAL:
        raise InvalidSettingError("--template", template.value, "none together with --from")
    written, lacking = (
        (copy_template(template, directory), ()) if script is None else draft(script, directory)
    )
    for file in written:
        typer.echo(f"wrote {file}")
    for sentence in lacking:
        typer.echo(f"First: {sentence}")
    named = shlex.join([str(directory / "study.yaml"), "--site", str(directory / _SITE)])
    for command in ("validate", "run"):
        typer.echo(f"Next: parsl-rasda {command} {named}")


def copy_template(template: Template, directory: Path) -> tuple[Path, ...]:
    """Copy the files of a template into a folder, and return them.

    A template without a site of its own gets the one that is common to all.

    Raises:
        InvalidSettingError: If one of them is there already; then nothing is written.
    """
    workflows = _workflows()
    folder = workflows / _FOLDERS.get(template, template.value)
    sources = [file for file in sorted(folder.iterdir()) if file.is_file()]
    if all(f.name != _SITE for f in sources):
        sources.append(workflows / _SITE)
    return _write({file.name: file.read_bytes() for file in sources}, directory)


def draft(script: Path, directory: Path) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """Write a study that tunes a script, or of an experiment of Determined; return files and what lacks.

    Raises:
        InvalidSettingError: If it cannot be read, has nothing to search, or a file is there already.
    """
    from parsl_rasda.study.determined import draft_experiment

    is_experiment = script.suffix in {".yaml", ".yml"}
    found = (
        draft_experiment(script.read_text(encoding="utf-8", errors="replace"), script.name)
        if is_experiment
        else _of_script(script, directory)
    )
    readme = (_workflows() / Template.MINIMAL.value / _README).read_text(encoding="utf-8")
    if found.lacking:
        tasks = "".join(f"- {sentence}.\n" for sentence in found.lacking)
        stretches = "" if is_experiment else "Each stretch of a trial is one run of it.\n\n"
        readme += f"\n## What {script.name} lacks\n\n{stretches}{tasks}"
    files = {
        "study.yaml": found.study,
        _README: readme,
        _SITE: (_workflows() / _SITE).read_text(encoding="utf-8"),
    }
    return _write({name: text.encode() for name, text in files.items()}, directory), found.lacking


def _of_script(script: Path, directory: Path) -> Draft:
    from parsl_rasda.study.draft import draft_study
    from parsl_rasda.study_code.script import module_of, read_script

    try:
        source = read_script(script.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError, RecursionError) as error:
        raise InvalidSettingError("--from", str(script), f"a Python script ({error})") from None
    module = module_of(script, directory)
    what = (
        f"-m {module}" if module else shlex.quote(str(script.resolve())).replace("{", "{{").replace("}", "}}")
    )
    found = draft_study(source, f"python {what}", _name(directory), script.name)
    if found is None:
        allowed = "a script whose argparse has numbers with defaults, or choices: what could be searched"
        raise InvalidSettingError("--from", str(script), allowed)
    return found


def _workflows() -> Path:
    return next(place for place in _PLACES if (place / _SITE).is_file())


def _write(files: Mapping[str, bytes], directory: Path) -> tuple[Path, ...]:
    there = [str(directory / name) for name in files if (directory / name).exists()]
    if there:
        raise InvalidSettingError("DIR", ", ".join(there), "a folder without these files")
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (directory / name).write_bytes(_made_ones_own(name, content, _name(directory)))
    return tuple(directory / name for name in files)


def _made_ones_own(file: str, content: bytes, study: str) -> bytes:
    """Return a file with the study's name, and with the line by which editors find its schema."""
    from parsl_rasda.study.draft import quoted_name
    from parsl_rasda.study.schema import editor_line

    if not file.endswith(".yaml"):
        return content
    kind = "site" if file == _SITE else "study"
    if file == "study.yaml":
        content = _NAME.sub(f"name: {quoted_name(study)}".encode(), content, count=1)
    return editor_line(kind).encode() + content


def _name(directory: Path) -> str:
    """Return the name of a folder as one that a study may have."""
    from parsl_rasda.study.spec import LONGEST_NAME

    name = re.sub(r"[^\w.-]+", "_", directory.resolve().name).lstrip(".-")
    return name[:LONGEST_NAME] or "study"
