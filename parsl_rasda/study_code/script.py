"""The arguments of a script that uses argparse, read from its source: nothing is imported or run."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_TYPES = {"int", "float", "str", "bool"}
_NOTHING = ast.Constant(None)
_DISTRIBUTED = {
    "DistributedDataParallel",
    "init_process_group",
    "DistributedSampler",
    "FullyShardedDataParallel",
}


@dataclass(frozen=True, slots=True)
class ScriptArgument:
    """One call of ``add_argument``.

    Attributes:
        flag: The longest option string, or the name of a positional argument.
        name: What the script calls its value.
        type: ``int``, ``float``, ``str``, ``bool``, or another name; told by the default if not by ``type=``.
        default: A literal, or None.
        choices: Literals; empty if any value goes.
        action: As ``store_true``; empty for an argument with one value.
        is_required: Whether the script does not start without it.
        takes_many: Whether it has ``nargs``.
        help: The first line of its help.
    """

    flag: str
    name: str
    type: str
    default: object
    choices: tuple[object, ...]
    action: str
    is_required: bool
    takes_many: bool
    help: str

    @property
    def is_positional(self) -> bool:
        """Whether it is told by its place."""
        return not self.flag.startswith("-")


@dataclass(frozen=True, slots=True)
class Script:
    """What the source of a script tells.

    Attributes:
        arguments: In the order of the source; those whose names are no literals are not there.
        is_distributed: Whether it uses data-parallel training of torch.
        words: Its strings and names, in which the name of a metric may be.
    """

    arguments: tuple[ScriptArgument, ...]
    is_distributed: bool
    words: tuple[str, ...]


def read_script(source: str) -> Script:
    """Return what the source of a script tells of its command line.

    Raises:
        SyntaxError: If it is no Python.
    """
    tree = ast.parse(source)
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    calls_of_ours = (
        call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument"
    )
    in_order = sorted(calls_of_ours, key=lambda call: (call.lineno, call.col_offset))
    words = tuple(dict.fromkeys(_words(tree)))
    arguments = tuple(found for call in in_order if (found := _argument(call)) is not None)
    return Script(arguments, bool(_DISTRIBUTED.intersection(words)), words)


def module_of(script: Path, folder: Path) -> str | None:
    """Return the name by which ``python -m`` finds a script in a folder, or None."""
    is_there = script.resolve().parent == folder.resolve()
    return script.stem if is_there and script.suffix == ".py" and script.stem.isidentifier() else None


def _words(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str() as text):
                yield text
            case (
                ast.Name(id=name)
                | ast.Attribute(attr=name)
                | ast.alias(name=name)
                | ast.keyword(arg=str() as name)
            ):
                yield name.rpartition(".")[2]
            case _:
                pass


def _argument(call: ast.Call) -> ScriptArgument | None:
    flags = [flag for each in call.args if isinstance(flag := _literal(each), str)]
    if not flags or len(flags) != len(call.args):
        return None
    given = {each.arg: each.value for each in call.keywords if each.arg}
    flag = max(flags, key=len)
    default, choices = _literal(given.get("default")), _literal(given.get("choices"))
    action = given.get("action", _NOTHING)
    text = _literal(given.get("help"))
    return ScriptArgument(
        flag=flag,
        name=str(_literal(given.get("dest")) or flag.lstrip("-").replace("-", "_")),
        type=_type(given.get("type"), default),
        default=default,
        choices=tuple(choices) if isinstance(choices, list | tuple) else (),
        action=str(_literal(action) or _last_name(action)),
        is_required=_literal(given.get("required")) is True
        or (not flag.startswith("-") and "default" not in given and "nargs" not in given),
        takes_many="nargs" in given,
        help=text.partition("\n")[0] if isinstance(text, str) else "",
    )


def _type(node: ast.expr | None, default: object) -> str:
    if node is not None:
        return _last_name(node)
    kind = type(default).__name__
    return kind if kind in _TYPES else "str"


def _last_name(node: ast.expr) -> str:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case _:
            return ""


def _literal(node: ast.expr | None) -> object:
    try:
        return None if node is None else ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None
