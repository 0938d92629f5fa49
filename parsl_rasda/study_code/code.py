"""What a function does, as text that changes when that may change; nothing is imported or run.

A function's code is its own definition and, followed by name, whatever it uses of its module and of
the study's other modules. Comments, docstrings, layout and neighbours do not count, and neither do
installed packages: they change with an environment, not with a study.
"""

from __future__ import annotations

import ast
import copy
import hashlib
import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeGuard

from parsl_rasda.study_code.targets import TargetError, bindings, followed, parsed, source_file, statements

_INSTALLED = {"site-packages", "dist-packages"}
_EVERYTHING = "*"

Place = tuple[str, str]  # a module and a name in it


def code_of(target: str, paths: Sequence[Path]) -> str:
    """Return the code behind ``package.module:function``.

    Args:
        target: The function.
        paths: Folders of the study's own modules, before Python's own path.

    Raises:
        TargetError: If there is no such module.
    """
    module, _, name = target.partition(":")
    reader = _Reader(tuple(path.resolve() for path in paths))
    file = source_file(module, paths)
    if file is None or not reader.is_own(module, file):
        return file.read_text(errors="replace", encoding="utf-8") if file else ""
    return "\n".join(f"{place} {text}" for place, text in sorted(reader.closure((module, name)).items()))


@dataclass(frozen=True, slots=True)
class OwnCode:
    """What the modules of a study do for one function.

    Attributes:
        digests: Of each module.
        files: Of these modules.
    """

    digests: Mapping[str, str]
    files: tuple[Path, ...]

    @classmethod
    def of(cls, target: str, paths: Sequence[Path]) -> Self:
        """Read the code behind ``package.module:function``; none if there is no such module here."""
        module, _, name = target.partition(":")
        reader = _Reader(tuple(path.resolve() for path in paths))
        found: dict[str, list[str]] = {}
        with suppress(TargetError):
            file = source_file(module, paths)
            if file is not None and reader.is_own(module, file):
                for place, text in sorted(reader.closure((module, name)).items()):
                    if text:
                        found.setdefault(place[0], []).append(f"{place[1]} {text}")
        files = {module: source_file(module, paths) for module in found}
        digests = {module: _digest("\n".join(texts)) for module, texts in found.items()}
        return cls(digests, tuple(sorted({file for file in files.values() if file is not None})))


def digest_of(modules: Mapping[str, str]) -> str:
    """Return one digest of those of all modules; empty if there are none."""
    return _digest(repr(sorted(modules.items()))) if modules else ""


def changed_modules(before: Mapping[str, str], after: Mapping[str, str]) -> tuple[str, ...]:
    """Return the modules that are not as they were, came in, or are used no more."""
    return tuple(sorted(n for n in {*before, *after} if before.get(n) != after.get(n)))


class CodeWatch:
    """The code of a function as it is now; it is read again only when one of its files has changed."""

    def __init__(self, target: str | None, paths: Sequence[Path]) -> None:
        self._target, self._paths = target, tuple(paths)
        self._seen: tuple[OwnCode, tuple[object, ...]] | None = None

    def now(self) -> OwnCode:
        """Return it."""
        if self._target is None:
            return OwnCode({}, ())
        if self._seen is None or _states(self._seen[0].files) != self._seen[1]:
            importlib.invalidate_caches()
            code = OwnCode.of(self._target, self._paths)
            self._seen = code, _states(code.files)
        return self._seen[0]


def _states(files: Sequence[Path]) -> tuple[object, ...]:
    found = []
    for file in files:
        try:
            state = file.stat()
            found.append((file, state.st_mtime_ns, state.st_size, state.st_ino))
        except OSError:
            found.append((file, 0, 0, 0))
    return tuple(found)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


class _Reader:
    """Follows names through the modules of a study."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._trees: dict[str, ast.Module | None] = {}

    def is_own(self, module: str, file: Path) -> bool:
        """Whether a module is one of the study's, and not installed."""
        resolved = file.resolve()
        return (
            module.partition(".")[0] != "parsl_rasda"
            and _INSTALLED.isdisjoint(resolved.parts)
            and any(resolved.is_relative_to(path) for path in self._paths)
        )

    def closure(self, start: Place) -> dict[Place, str]:
        """Return the code of a place and of all that it uses."""
        found: dict[Place, str] = {}
        waiting = [start]
        while waiting:
            place = waiting.pop()
            if place in found:
                continue
            nodes = self._nodes(place)
            found[place] = "\n".join(ast.dump(_bare(node)) for node in nodes)
            waiting += [used for node in nodes for used in self._used(place[0], node)]
            if nodes:  # what a module does when it is imported, and the packages that it lies in
                parts = place[0].split(".")
                above = [(".".join(parts[:depth]), "") for depth in range(1, len(parts))]
                waiting += above if place[1] == _EVERYTHING else [*above, (place[0], "")]
        return found

    def _nodes(self, place: Place) -> Sequence[ast.AST]:
        module, name = place
        tree = self._tree(module)
        if tree is None:
            return []
        if name == _EVERYTHING:
            return list(tree.body)
        if not name:
            return [part for statement in statements(tree.body) for part in _done_at_import(statement)]
        found = [_only(statement, name) for statement in bindings(tree, name)]
        return found or [_named(s, name) for s in statements(tree.body) if _takes_all(s)]

    def _tree(self, module: str) -> ast.Module | None:
        """Return a module of the study, None if it is none of its own."""
        if module not in self._trees:
            self._trees[module] = None
            try:
                file = source_file(module, self._paths)
                if file is not None and self.is_own(module, file):
                    self._trees[module] = parsed(module, file)
            except TargetError:
                pass  # not there: whoever runs it will say so
        return self._trees[module]

    def _used(self, module: str, node: ast.AST) -> Iterator[Place]:
        """Yield what a statement refers to: names of its module, and what it imports itself."""
        for part in ast.walk(node):
            match part:
                case ast.Name(id=name):
                    yield module, name
                case ast.Import(names=aliases):
                    yield from ((alias.name, _EVERYTHING) for alias in aliases)
                case ast.ImportFrom(names=aliases):
                    for alias in aliases:
                        origin, name = followed(part, alias.asname or alias.name, module, self._paths)
                        yield origin, name
                        yield f"{origin}.{name}", _EVERYTHING  # if it is a module
                case _:
                    pass


def _done_at_import(statement: ast.stmt) -> list[ast.AST]:
    """Return what a statement of a module does beside binding names, and what it decides on."""
    match statement:
        case ast.Expr(value=ast.Constant()):
            return []  # a docstring
        case ast.Expr() | ast.AugAssign() | ast.Delete():
            return [statement]
        case ast.If(test=test) | ast.While(test=test):
            return [test]
        case ast.For(target=target, iter=values):
            return [target, values]
        case ast.With(items=items):
            return list(items)
        case _:
            return []


def _takes_all(statement: ast.stmt) -> TypeGuard[ast.ImportFrom]:
    return isinstance(statement, ast.ImportFrom) and [a.name for a in statement.names] == [_EVERYTHING]


def _named(statement: ast.ImportFrom, name: str) -> ast.ImportFrom:
    """Return an ``import *`` as the import of one name, which it may bind."""
    return ast.ImportFrom(module=statement.module, names=[ast.alias(name)], level=statement.level)


def _only(statement: ast.stmt, name: str) -> ast.stmt:
    """Return an import of several names as one of this name alone."""
    if not isinstance(statement, ast.ImportFrom):
        return statement
    names = [alias for alias in statement.names if name == (alias.asname or alias.name)]
    return ast.ImportFrom(module=statement.module, names=names, level=statement.level)


def _bare(node: ast.AST) -> ast.AST:
    """Return a copy of a statement without its docstrings; the tree is others' too."""
    bare = copy.deepcopy(node)
    for part in ast.walk(bare):
        if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            first = part.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and len(part.body) > 1:
                part.body = part.body[1:]
    return bare
