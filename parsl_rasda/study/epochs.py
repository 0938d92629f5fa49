"""How long a trial may train: a number of epochs, or as many as it takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated

from pydantic import PlainSerializer, ValidatorFunctionWrapHandler, WithJsonSchema, WrapValidator

from parsl_rasda.diagnostics import Plain, all_as_error, shown
from parsl_rasda.errors import Diagnostic
from parsl_rasda.study.spec import MOST, Count

_AUTO = "auto"


class UpTo(int):
    """Epochs at most, fewer if they are enough: ``{auto: 81}``."""


def _checked(value: object, handler: ValidatorFunctionWrapHandler) -> int:
    """Return a count, or the count in ``{auto: ...}``."""
    if isinstance(value, UpTo):
        return value
    if isinstance(value, Mapping):
        if value.keys() != {_AUTO}:
            found = Diagnostic((), shown(value), "a number of epochs, or {auto: N}")
            raise all_as_error("max_t", [found])
        return UpTo(handler(value[_AUTO]))
    count: int = handler(value)
    return count


def _written(epochs: int) -> int | dict[str, int]:
    return {_AUTO: int(epochs)} if isinstance(epochs, UpTo) else epochs


_NUMBER = {"type": "integer", "minimum": 1, "maximum": MOST}
_FORM = {
    "anyOf": [
        _NUMBER,
        {
            "type": "object",
            "properties": {
                _AUTO: {**_NUMBER, "minimum": 3, "description": "Epochs at most.", "examples": [81]}
            },
            "required": [_AUTO],
            "additionalProperties": False,
        },
    ]
}

MaxT = Annotated[Count, WrapValidator(_checked), PlainSerializer(_written), WithJsonSchema(_FORM)]


def cap_of(written: object) -> object:
    """Return the epochs at most of what a user has written for `max_t`, whatever that is."""
    return written.get(_AUTO) if isinstance(written, Mapping) else written


def auto_problems(scheduler: Plain) -> Iterator[Diagnostic]:
    """Yield an automatic `max_t` that cannot be one: no rung is asked alone, or none is left to add."""
    written = scheduler.get("max_t")
    if not isinstance(written, Mapping):
        return
    if scheduler.get("variant") == "synchronous":
        yield Diagnostic(
            ("max_t",), f"{shown(written)}, with variant: synchronous", "a number, or another variant"
        )
    first, factor, most = (
        scheduler.get("grace_period", 1),
        scheduler.get("reduction_factor", 2),
        cap_of(written),
    )
    if all(isinstance(n, int) and n > 0 for n in (first, factor, most)) and first <= most <= first * factor:
        found = f"{shown(written)}, which leaves no rung to add"
        yield Diagnostic(("max_t",), found, f"more than {first * factor} (grace_period * reduction_factor)")
