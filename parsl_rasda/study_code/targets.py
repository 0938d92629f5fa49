"""Whether a ``package.module:function`` exists and can be called so, without importing anything.

Modules are found as Python would find them and their source is parsed, never run: a study that
trains on a site's GPUs is checked on a login node in milliseconds. What cannot be known without
running it (extension modules, decorators, ``import *``) is given the benefit of the doubt.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from parsl_rasda.diagnostics import listing, suggestion
from parsl_rasda.study_code.annotations import annotated

_READABLE = "a module that Python can read"
_MAX_HOPS = 8  # re-exports followed from one module to the next


class TargetError(Exception):
    """A target cannot be used; carries what was found and what is allowed."""

    def __init__(self, found: str, allowed: str) -> None:
        super().__init__(found, allowed)
        self.found, self.allowed = found, allowed


@dataclass(frozen=True, slots=True)
class Signature:
    """The parameters of a function, as its source declares them."""

    names: tuple[str, ...]
    required: tuple[str, ...]
    takes_any: bool = False  # **kwargs
    positional: int = 0  # how many parameters can be given by position
    takes_any_positional: bool = False
    annotations: Mapping[str, str] = field(default_factory=dict, compare=False)


def signature_of(target: str, paths: Sequence[Path]) -> Signature | None:
    """Return the signature behind a target, or None if only running it could tell.

    Raises:
        TargetError: If there is no such module, or no such function in it.
    """
    found, function, _ = _definition(target, paths)
    return _signature_in(found, function)


def _definition(target: str, paths: Sequence[Path]) -> tuple[ast.AST | None, str, Path | None]:
    """Return what defines a function, its name there and its file; re-exports are followed."""
    module, _, function = target.partition(":")
    for _ in range(_MAX_HOPS):
        file = source_file(module, paths)
        if file is None:
            return None, function, None
        tree = parsed(module, file)
        found = _binding(tree, function)
        if found is None:
            names = _offered(tree)
            allowed = f"a name in {module}: {listing(names)}{suggestion(function, names)}"
            raise TargetError(f"{module}:{function}, but {module} has no {function}", allowed)
        if not isinstance(found, ast.ImportFrom):
            return found, function, file
        module, function = followed(found, function, module, paths)
    return None, function, None


def _signature_in(found: ast.AST | None, function: str) -> Signature | None:
    match found:
        case ast.AsyncFunctionDef():
            raise TargetError(f"{function}, which is an async function", "a plain function")
        case ast.FunctionDef(decorator_list=[]):
            if _is_generator(found):
                raise TargetError(f"{function}, which is a generator", "a function that returns its result")
            return _signature(found.args, skip=0)
        case ast.Assign(value=value) | ast.AnnAssign(value=value) if _is_literal(value):
            raise TargetError(f"{function}, which is a constant", "a function")
        case ast.ClassDef(decorator_list=[]):
            return _constructor(found)
        case _:
            return None


@lru_cache(maxsize=256)
def _is_generator(function: ast.FunctionDef) -> bool:
    return any(isinstance(node, ast.Yield | ast.YieldFrom) for node in _own_nodes(function))


def _own_nodes(function: ast.FunctionDef) -> Iterator[ast.AST]:
    """Yield the nodes of a function, but not those of functions and classes inside it."""
    nodes: list[ast.AST] = list(function.body)
    while nodes:
        node = nodes.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            nodes.extend(ast.iter_child_nodes(node))


def _is_literal(value: object) -> bool:
    """Return whether a value can be called in no way; None often stands in for a missing import."""
    match value:
        case ast.Constant(value=constant):
            return constant is not None
        case _:
            return isinstance(value, ast.List | ast.Dict | ast.Tuple | ast.Set | ast.JoinedStr)


def source_file(module: str, paths: Sequence[Path]) -> Path | None:
    """Return the source of a module, or None if it has none.

    Raises:
        TargetError: If there is no such module.
    """
    spec = _find(module, paths)
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


def parsed(module: str, file: Path) -> ast.Module:
    """Return the syntax tree of a module.

    Raises:
        TargetError: If it is not Python.
    """
    try:
        state = file.stat()
        return _tree(file, state.st_mtime_ns, state.st_size, state.st_ino)
    except OSError as error:
        raise TargetError(f"{module}, which cannot be read ({error.strerror})", _READABLE) from None
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # what compile() raises
        place = f"{file.name}:{error.lineno}: {error.msg}" if isinstance(error, SyntaxError) else str(error)
        raise TargetError(f"{module}, which is not Python ({place})", _READABLE) from None


@lru_cache(maxsize=64)
def _tree(file: Path, _mtime_ns: int, _size: int, _inode: int) -> ast.Module:
    """Return the syntax tree of a file in one state, about which many ask; none may change it."""
    return ast.parse(file.read_bytes(), filename=str(file))


def _find(module: str, paths: Sequence[Path]) -> ModuleSpec | None:
    """Return where a module is; None means that it is there but has no source.

    `importlib.util.find_spec` would import the packages above a module, so they are walked here.
    """
    first, *rest = module.split(".")
    spec = PathFinder.find_spec(first, [str(p) for p in paths])
    if spec is None:
        try:
            spec = importlib.util.find_spec(first)
        except ValueError:  # __main__ and the like
            return None
    if spec is None:
        raise TargetError(f"{module}, but there is no module {first}", _where(paths))
    walked = first
    for part in rest:
        locations = spec.submodule_search_locations
        if locations is None:
            raise TargetError(f"{module}, but {walked} is not a package", _where(paths))
        # By its last name: a namespace package would look for the one above it among imported modules.
        found = PathFinder.find_spec(part, list(locations))
        if found is None:
            names = sorted({p.stem for at in locations for p in Path(at).glob("[!_.]*") if _may_be_module(p)})
            allowed = f"a module of {walked}: {listing(names)}{suggestion(part, names)}"
            raise TargetError(f"{module}, but {walked} has no {part}", allowed)
        spec, walked = found, f"{walked}.{part}"
    return spec


def _may_be_module(path: Path) -> bool:
    return path.suffix == ".py" or (path / "__init__.py").is_file()


def _where(paths: Sequence[Path]) -> str:
    return f"a module that Python finds from {listing(dict.fromkeys(map(str, paths)))} or has installed"


def statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements of a module, also those under if, try and with."""
    for statement in body:
        yield statement
        for block in ("body", "orelse", "finalbody"):
            if not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield from statements(getattr(statement, block, []))
        for handler in getattr(statement, "handlers", []):
            yield from statements(handler.body)


def bindings(tree: ast.Module, name: str) -> list[ast.stmt]:
    """Return the statements of a module that bind a name: one for each branch that does."""
    return [statement for statement in statements(tree.body) if _binds(statement, name)]


def _binds(statement: ast.stmt, name: str) -> bool:
    match statement:
        case ast.FunctionDef(name=n) | ast.AsyncFunctionDef(name=n) | ast.ClassDef(name=n):
            return n == name
        case ast.ImportFrom(names=aliases):
            return any(name == (a.asname or a.name) for a in aliases)
        case ast.Import(names=aliases):
            return any(name == (a.asname or a.name.partition(".")[0]) for a in aliases)
        case ast.Assign() | ast.AnnAssign():
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            return name in (n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name))
        case _:
            return False


def _binding(tree: ast.Module, name: str) -> ast.AST | None:
    """Return what binds a name last, a catch-all (``import *``, ``__getattr__``), or None."""
    found = bindings(tree, name)
    if found:
        return found[-1]
    return ast.Pass() if any(_catches_all(statement) for statement in statements(tree.body)) else None


def _catches_all(statement: ast.stmt) -> bool:
    match statement:
        case ast.FunctionDef(name="__getattr__"):
            return True
        case ast.ImportFrom(names=aliases):
            return any(a.name == "*" for a in aliases)
        case _:
            return False


def followed(statement: ast.ImportFrom, name: str, module: str, paths: Sequence[Path]) -> tuple[str, str]:
    """Return the module and the name there from which ``module`` imports a name."""
    original = next(a.name for a in statement.names if name == (a.asname or a.name))
    if statement.level == 0:
        return statement.module or "", original
    spec = _find(module, paths)
    is_package = spec is not None and spec.submodule_search_locations is not None
    parents = module.split(".")
    kept = len(parents) - statement.level + is_package
    return ".".join([*parents[:kept], *([statement.module] if statement.module else [])]), original


def _offered(tree: ast.Module) -> list[str]:
    """Return what a module says that it offers, or else its public functions."""
    for statement in tree.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id="__all__")], value=ast.List(elts=elements)):
                return [str(e.value) for e in elements if isinstance(e, ast.Constant)]
            case _:
                pass
    functions = (s for s in statements(tree.body) if isinstance(s, ast.FunctionDef))
    return [f.name for f in functions if not f.name.startswith("_")]


def _constructor(statement: ast.ClassDef) -> Signature | None:
    for member in statement.body:
        if isinstance(member, ast.FunctionDef) and member.name == "__init__":
            return _signature(member.args, skip=1)
    return None


def _signature(args: ast.arguments, *, skip: int) -> Signature:
    positional = [*args.posonlyargs, *args.args]
    defaulted = len(args.defaults)
    required = [a.arg for a in positional[: len(positional) - defaulted]][skip:]
    required += [a.arg for a, d in zip(args.kwonlyargs, args.kw_defaults, strict=True) if d is None]
    names = [a.arg for a in [*positional[skip:], *args.kwonlyargs]]
    return Signature(
        tuple(names),
        tuple(required),
        takes_any=args.kwarg is not None,
        positional=len(positional) - skip,
        takes_any_positional=args.vararg is not None,
        annotations=annotated(args),
    )
