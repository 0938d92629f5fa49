"""`parsl-rasda explain`: what a key of a study or site file means."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from parsl_rasda.diagnostics import suggestion
from parsl_rasda.errors import InvalidSettingError

if TYPE_CHECKING:
    from parsl_rasda.study.reference import Key

_WIDTH = 100
_MANY = 12  # matches of a word are shown whole up to so many, else by their names


def _begun(incomplete: str) -> list[str]:
    from parsl_rasda.study.reference import keys_of_file

    every = (key for file in ("study", "site") for key in keys_of_file(file, installed=False))
    names = dict.fromkeys(name for key in every for name in (key.path, key.name))
    return [name for name in names if name.startswith(incomplete)]


def explain(
    key: Annotated[
        str,
        typer.Argument(
            metavar="[KEY]",
            help="As tune.scheduler.max_t, or its end, as max_t.",
            autocompletion=_begun,
        ),
    ] = "",
) -> None:
    """Explain a key of study and site files: its type, default, what is allowed, an example.

    Options of plug-ins, and of Optuna's samplers, are those of what is installed here. Without KEY, the
    keys at the top of both files.
    """
    from parsl_rasda.study.reference import keys_of_file

    every = [each for file in ("study", "site") for each in keys_of_file(file)]
    typer.echo("\n".join(explanation(key, every)))


def explanation(asked: str, every: Sequence[Key]) -> Iterator[str]:
    """Yield the lines that explain a key, or list those at the top.

    Args:
        asked: A path with dots, or the end of one; nothing for the top.
        every: All keys there are.

    Raises:
        InvalidSettingError: If there is no such key.
    """
    if not asked:
        for file in dict.fromkeys(key.file for key in every):
            yield f"{file.upper()} FILE"
            yield from _listed([key for key in every if key.file == file and "." not in key.path], "")
        yield "`parsl-rasda explain KEY` tells more, for example: explain tune.scheduler"
        return
    found = _found(asked, every)
    if not found:
        names = [*dict.fromkeys(name for key in every for name in (key.path, key.name))]
        raise InvalidSettingError("KEY", asked, f"a key of a study or site file{suggestion(asked, names)}")
    if len(found) > _MANY:
        yield from _listed(found, "")
        return
    for number, key in enumerate(found):
        if number:
            yield ""
        yield from _explained(key, every)


def _found(asked: str, every: Sequence[Key]) -> list[Key]:
    """Return the keys that are meant: of that path, else those whose paths end so."""
    from parsl_rasda.study.reference import canonical

    path = canonical(asked)
    exact = [key for key in every if key.path == path]
    return exact or [key for key in every if key.path.endswith(f".{path}")]


def _explained(key: Key, every: Sequence[Key]) -> Iterator[str]:
    with_choice = f", with {key.only}" if key.only else ""
    yield f"KEY      {key.path}  ({key.file} file{with_choice})"
    yield f"TYPE     {key.type}"
    if key.allowed:
        yield from _wrapped("ALLOWED  ", key.allowed)
    yield f"DEFAULT  {key.default_in_words}"
    if key.example:
        yield f"EXAMPLE  {key.example}"
    if key.used_in:
        yield from _wrapped("USED IN  ", ", ".join(key.used_in))
    yield ""
    yield from _wrapped("", key.description)
    below = [
        each
        for each in every
        if each.file == key.file and each.path.startswith(f"{key.path}.") and not _is_deeper(each, key)
    ]
    if below:
        yield ""
        yield "KEYS"
        yield from _listed(below, key.path)


def _is_deeper(key: Key, block: Key) -> bool:
    from parsl_rasda.study.reference import NAME

    rest = key.path.removeprefix(f"{block.path}.").removeprefix(f"{NAME}.")
    return "." in rest


def _listed(keys: Sequence[Key], below: str) -> Iterator[str]:
    names = [key.path.removeprefix(f"{below}.") if below else key.path for key in keys]
    wide = max(map(len, names))
    for name, key in zip(names, keys, strict=True):
        need = "required. " if key.is_required else ""
        choice = f"with {key.only}. " if key.only else ""
        yield from _wrapped(f"  {name.ljust(wide)}  ", f"{need}{choice}{key.description}")


def _wrapped(label: str, text: str) -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, initial_indent=label, subsequent_indent=" " * len(label), break_on_hyphens=False
    )
