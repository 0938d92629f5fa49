"""Whether a constant of a study is of the type that a parameter is annotated with, where that is plain."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator

from parsl_rasda.diagnostics import is_number

_FITS: dict[str, Callable[[object], bool]] = {
    "int": lambda value: is_number(value) and isinstance(value, int),
    "float": is_number,
    "str": lambda value: isinstance(value, str),
    "bool": lambda value: isinstance(value, bool),
    "list": lambda value: isinstance(value, list | tuple),
    "None": lambda value: value is None,
}


def annotated(args: ast.arguments) -> dict[str, str]:
    """Return the annotation of each parameter that has one."""
    parameters = (*args.posonlyargs, *args.args, *args.kwonlyargs)
    return {a.arg: ast.unparse(a.annotation) for a in parameters if a.annotation is not None}


def is_of(value: object, annotation: str) -> bool:
    """Return whether a value may be given; only numbers, strings, booleans, lists and None are certain.

    A mapping may be one value for each site.
    """
    if isinstance(value, dict):
        return True
    names = list(_members(ast.parse(annotation, mode="eval").body))
    return not all(name in _FITS for name in names) or any(_FITS[name](value) for name in names)


def _members(node: ast.expr) -> Iterator[str]:
    """Yield the names of a union's members; anything but a plain name is one that nobody knows."""
    match node:
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            yield from _members(left)
            yield from _members(right)
        case ast.Subscript(value=ast.Name(id="list")):
            yield "list"
        case ast.Name(id=name):
            yield name
        case ast.Constant(value=None):
            yield "None"
        case _:
            yield "?"
