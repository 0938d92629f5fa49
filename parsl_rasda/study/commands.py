"""Commands with placeholders: a list of words, or one string that is split as a shell would split it."""

from __future__ import annotations

import shlex
import string
from collections.abc import Iterable, Iterator
from typing import Annotated

from pydantic import BeforeValidator, Field, WithJsonSchema

from parsl_rasda.diagnostics import listing, refused, suggestion
from parsl_rasda.errors import Diagnostic


def _words(value: object) -> object:
    if isinstance(value, str):
        try:
            return shlex.split(value)
        except ValueError as error:
            raise refused(value, f"words as a shell reads them ({error})") from None
    if isinstance(value, list | tuple):
        return [str(v) if isinstance(v, int | float) and not isinstance(v, bool) else v for v in value]
    raise refused(value, "a list of words, or one string")


def _word(value: object) -> object:
    if not isinstance(value, str):
        raise refused(value, "a string; put true, null and the like in quotes")
    if "\0" in value:
        raise refused(value, "text without the character U+0000, which no command can have")
    try:
        names = [n for _, n, _, _ in string.Formatter().parse(value) if n is not None]
    except ValueError:
        names = [""]
    if not all(n.isidentifier() for n in names):
        raise refused(value, "{name} for a placeholder; {{ and }} for the brackets themselves")
    return value


_FORM = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "minItems": 1, "items": {"type": ["string", "number"]}},
    ]
}
Command = Annotated[
    tuple[Annotated[str, BeforeValidator(_word)], ...],
    Field(min_length=1),
    BeforeValidator(_words),
    WithJsonSchema(_FORM),
]


def unknown_placeholders(command: object, known: Iterable[str]) -> Iterator[Diagnostic]:
    """Yield the placeholders that nothing fills in; nothing if it is not a command."""
    names = tuple(dict.fromkeys(known))
    if isinstance(command, list | tuple):
        for i, word in enumerate(command):
            if isinstance(word, str):
                yield from _unknown(word, (i,), names)
    elif isinstance(command, str):
        yield from _unknown(command, (), names)


def _unknown(text: str, loc: tuple[int, ...], names: tuple[str, ...]) -> Iterator[Diagnostic]:
    try:
        fields = [n for _, n, _, _ in string.Formatter().parse(text) if n]
    except ValueError:
        return
    for name in fields:
        if name.isidentifier() and name not in names:
            allowed = listing(f"{{{n}}}" for n in names) + suggestion(name, names)
            yield Diagnostic(loc, f"the placeholder {{{name}}}, which nothing fills in", allowed)
