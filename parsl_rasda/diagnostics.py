"""How a `Diagnostic` is made: the words of messages, and the errors of pydantic put into them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeAlias, TypeGuard, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from parsl_rasda.errors import Diagnostic, InvalidFileError, Loc
from parsl_rasda.plain_text import printable

Plain: TypeAlias = Mapping[str, Any]  # parsed YAML that may still be wrong in every way

_Model = TypeVar("_Model", bound=BaseModel)

MARK = "\0"  # begins the name of a union's variant; no key of a YAML file can
_KIND = "diagnostic"
_SHOWN = 60  # characters of a value that a message repeats
_LONGEST_INT_BITS = 400  # longer ones are not written out; Python itself refuses at 4,300 digits
MOST_MISTAKES = 100  # of a file: nobody reads more, and a file may have a hundred thousand
_LISTED = 200  # words that a message lists, or looks through for a similar one
_LONGEST_WORD = 100  # characters; for longer ones no similar word is looked for, which takes their square


# ------------------------------------------------------------------------------------------- words


def shown(value: object) -> str:
    """Return a value as a message repeats it: as YAML would write it, and short."""
    text = "".join(_within(_flow(value), _SHOWN))
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def _within(pieces: Iterator[str], enough: int) -> Iterator[str]:
    """Yield pieces until they are long enough: a whole value may be a hundred thousand."""
    for piece in pieces:
        yield piece
        enough -= len(piece)
        if enough < 0:
            return


def _flow(value: object) -> Iterator[str]:
    if value is None:
        yield "nothing"
    elif isinstance(value, bool):
        yield str(value).lower()
    elif isinstance(value, Mapping):
        yield "{"
        for n, (key, each) in enumerate(value.items()):
            yield f"{', ' if n else ''}{printable(str(key), _SHOWN)}: "
            yield from _flow(each)
        yield "}"
    elif isinstance(value, list | tuple):
        yield "["
        for n, each in enumerate(value):
            yield ", " if n else ""
            yield from _flow(each)
        yield "]"
    elif isinstance(value, int) and value.bit_length() > _LONGEST_INT_BITS:
        yield f"a number of about {int(value.bit_length() * 0.30103)} digits"
    else:
        yield repr(value[: _SHOWN + 1] if isinstance(value, str) else value)


def listing(words: Iterable[str]) -> str:
    """Return ``a, b, c``, or a word for none; of very many, the first."""
    every = iter(words)
    first = [*islice(every, _LISTED)]
    return ", ".join([*first, "..."] if next(every, None) is not None else first) or "none"


def suggestion(word: object, options: Iterable[str]) -> str:
    """Return `` (did you mean x?)`` if an option is close to the word, else nothing."""
    if len(text := str(word)) > _LONGEST_WORD:
        return ""
    close_enough = (o for o in options if o != word and len(o) <= _LONGEST_WORD)
    original = {o.lower(): o for o in islice(close_enough, _LISTED)}
    close = difflib.get_close_matches(text.lower(), original, n=1)
    return f" (did you mean {original[close[0]]}?)" if close else ""


# ------------------------------------------------------------------------------------ plain values


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a value is a number, which true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def mapping_at(plain: object, *keys: str) -> Mapping[str, Any]:
    """Return the mapping below these keys, or an empty one if something else is there."""
    for key in keys:
        plain = plain.get(key) if isinstance(plain, Mapping) else None
    return plain if isinstance(plain, Mapping) else {}


# ---------------------------------------------------------------------------------------- pydantic


def refused(value: object, allowed: str) -> PydanticCustomError:
    """Return the error that a field's validator raises about its value."""
    return as_error(Diagnostic((), shown(value), allowed))


def as_error(diagnostic: Diagnostic) -> PydanticCustomError:
    """Return the error that a field's validator raises for a diagnostic."""
    words = {"found": diagnostic.found, "allowed": diagnostic.allowed}
    return PydanticCustomError(_KIND, "found {found}; allowed: {allowed}", words)


def all_as_error(title: str, diagnostics: Iterable[Diagnostic]) -> ValidationError:
    """Return the error that a validator raises for diagnostics of several places below its value."""
    first = islice(diagnostics, MOST_MISTAKES)
    details = [InitErrorDetails(type=as_error(d), loc=d.loc, input=None) for d in first]
    return ValidationError.from_exception_data(title, details)


def diagnostics_in(
    error: ValidationError, model: type[BaseModel] | None = None, words: Iterable[str] = ()
) -> Iterator[Diagnostic]:
    """Yield what the validation of a model has found, in the words of the user.

    Args:
        error: What was raised.
        model: The model, whose keys and descriptions tell what is allowed.
        words: What an unknown key may have been meant to be, if not only the keys of the model.
    """
    for each in error.errors(include_url=False)[:MOST_MISTAKES]:
        yield _in_our_words(each, model, tuple(words))


def checked(model: type[_Model], data: Mapping[str, object], key: str) -> _Model:
    """Return the model of values given in code.

    Args:
        model: What they must be.
        data: The values.
        key: What messages call the whole.

    Raises:
        InvalidFileError: With every mistake.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise InvalidFileError([found.below(key) for found in diagnostics_in(error, model)]) from None


def keys_of(model: type[BaseModel]) -> tuple[str, ...]:
    """Return the keys that a file may use, in the order of the manual."""
    return tuple(field.alias or name for name, field in model.model_fields.items())


def unknown_key(loc: Loc, keys: Sequence[str], words: Sequence[str] = ()) -> Diagnostic:
    """Return what is said of a key that nobody knows; ``words`` are what it may have been meant to be."""
    return Diagnostic(loc, "an unknown key", listing(keys) + suggestion(loc[-1], words or keys))


def _in_our_words(error: ErrorDetails, model: type[BaseModel] | None, words: Sequence[str]) -> Diagnostic:
    # Pydantic adds the variant of unions and ``[key]`` of mappings to the place.
    loc = tuple(p for p in error["loc"] if p != "[key]" and not str(p).startswith(MARK))
    context, kind = error.get("ctx", {}), error["type"]
    if kind == _KIND:
        return Diagnostic(loc, context["found"], context["allowed"])
    if kind == "extra_forbidden":
        keys = keys_of(model) if model is not None and len(loc) == 1 else ("known keys",)
        return unknown_key(loc, keys, words)
    if kind == "missing":
        return Diagnostic(loc, "nothing", _description(model, loc) or "a value")
    return Diagnostic(loc, shown(error["input"]), _expectation(error))


def _expectation(error: ErrorDetails) -> str:
    context, kind = error.get("ctx", {}), error["type"]
    if kind in {"model_type", "model_attributes_type", "dict_type", "mapping_type"}:
        return "a mapping (key: value)"
    if kind in {"tuple_type", "list_type"}:
        return "a list"
    if kind == "too_short":
        least = context["min_length"]
        return "at least one entry" if least == 1 else f"at least {least} entries"
    if kind == "too_long":
        return f"at most {context['max_length']} entries"
    text = error["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    if kind in {"literal_error", "enum"}:
        options = re.findall(r"'([^']*)'", str(context["expected"]))
        return listing(options) + suggestion(error["input"], options)
    return text.replace("a valid integer", "a whole number").replace("a valid ", "a ")


def _description(model: type[BaseModel] | None, loc: Loc) -> str:
    """Return the first sentence of what a field of a model is."""
    fields = model.model_fields.items() if model is not None else ()
    found = next((f.description or "" for name, f in fields if loc == (f.alias or name,)), "")
    return found.partition(". ")[0].rstrip(".")
