"""The causes that the code can give: what it says where something ends, refuses or fails."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "parsl_rasda"
FOLDERS = ("agent", "backends", "orchestration", "exits.py", "workflow")
# What makes a cause, and which of its arguments is the words.
GIVERS = {
    "ExitObservations": 1,
    "PilotExit": 0,
    "_lost": 1,
    "_terminate": 1,
    "terminate_all": 0,
    "conclude": 2,
    "finish": 1,
    "fail": 1,
    "Fault": 2,
    "lose": 0,
    "_refused": 1,
    "_post_end": 1,
    "refuse": 1,
    "SiteUnavailableError": 1,
    "StageFailedError": 1,
}
VARIABLES = {"words", "cause", "why", "INTERCHANGE_DIED"}  # in which a cause is put together
TELLERS = {"_words_of_exit"}  # functions that return one
SHORTEST = 8  # characters of a part that tells one cause from another


def causes() -> dict[str, str]:
    """Return the constant parts of every cause, and where each stands."""
    found: dict[str, str] = {}
    for folder in FOLDERS:
        root = PACKAGE / folder
        for file in sorted(root.rglob("*.py")) if root.is_dir() else [root]:
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                for text in _constants(_words(node)):
                    found.setdefault(text, f"{file.relative_to(PACKAGE)}:{getattr(node, 'lineno', 0)}")
    return found


def _words(node: ast.AST) -> Iterator[ast.expr]:
    """Yield the expressions that are a cause, or a part of one."""
    match node:
        case ast.Assign(targets=[ast.Name(id=name)], value=value) if name in VARIABLES:
            yield value
        case ast.FunctionDef(name=name) if name in TELLERS:
            yield from (each.value for each in ast.walk(node) if isinstance(each, ast.Return) and each.value)
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
            yield from (each.value for each in node.keywords if each.arg == "cause")
            place = GIVERS.get(name)
            if place is not None and len(node.args) > place:
                yield node.args[place]
            if name == "append" and getattr(getattr(node.func, "value", None), "id", "") in VARIABLES:
                yield node.args[0]


def _constants(expressions: Iterator[ast.expr]) -> Iterator[str]:
    for expression in expressions:
        for node in ast.walk(expression):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value.strip(" ,:;()'")
                if len(text) >= SHORTEST and " " in text:
                    yield text
