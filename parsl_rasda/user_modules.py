"""A study's own modules, beside those of Python: neither may take the other's place.

Our processes start without the study's folders: a ``secrets.py`` or ``types.py`` beside ``train.py`` would be
imported in the place of Python's by Parsl, by torch, by the interpreter itself. The folders come in with
`add_user_folders`, when a function of the study is about to be imported: behind the standard library, and
before what is installed. The study's own files still import their own ``secrets``.
"""

from __future__ import annotations

import builtins
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

VARIABLE = "PARSL_RASDA_OWN_MODULES"  # whose process, and the folders, if modules have namesakes in them
_PACKAGE_FOLDER = str(Path(__file__).parents[1])


def python_path(folders: Sequence[str], environ: Mapping[str, str]) -> str:
    """Return ``PYTHONPATH`` for a program of the user's, which may be any."""
    return os.pathsep.join([*folders, *filter(None, [environ.get("PYTHONPATH")])])


def add_user_folders(folders: Iterable[str], *, here: bool = False) -> None:
    """Let the modules in these folders be imported, and by programs that this process starts.

    Args:
        folders: Before the others, the first one first.
        here: Whether the present folder comes last; programs that are started in it find it by themselves.
    """
    told = [os.path.realpath(folder) for folder in folders]
    wanted = [*told, *([str(Path.cwd())] if here else [])]
    at = 1 + max((i for i, path in enumerate(sys.path) if _is_standard(path)), default=-1)
    new = [folder for folder in dict.fromkeys(wanted) if folder not in sys.path]
    sys.path[at:at] = new
    importlib.invalidate_caches()
    own = _OwnModules(wanted)
    if own.names:
        own.install()
        os.environ[VARIABLE] = os.pathsep.join([str(os.getpid()), *wanted])
    elif exported := [folder for folder in new if folder in told]:
        # Not beside namesakes: Python itself would find those in the place of its own.
        os.environ["PYTHONPATH"] = python_path(exported, os.environ)


def add_user_folders_of_parent() -> None:
    """In a process of multiprocessing's: do as the one has done that started it, if there are namesakes."""
    owner, *folders = os.environ.get(VARIABLE, "").split(os.pathsep)
    if folders and owner != str(os.getpid()):
        add_user_folders(folders)


def import_user_module(name: str) -> ModuleType:
    """Import a module of a study, as if it were run as a program without arguments."""
    own = getattr(builtins.__import__, "own", None)
    spec = None if own and name in own.names else _spec_of(name)
    file = own.file_of(name) if own and name in own.names else spec and spec.origin
    sys.argv = [file or name]
    return own.load(name) if own and name in own.names else importlib.import_module(name)


def _spec_of(name: str) -> Any:
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None  # whoever imports it will say so


def _is_standard(path: str) -> bool:
    library = Path(os.__file__).parent
    return path in {str(library), str(library / "lib-dynload")}


class _OwnModules:
    """The modules of a study that have the name of one of Python's, for the study's own files.

    Two modules of one name cannot both be in ``sys.modules``, where Python's belongs.
    """

    def __init__(self, folders: Sequence[str]) -> None:
        self._folders = tuple(folder for folder in folders if folder != _PACKAGE_FOLDER)
        self._loaded: dict[str, ModuleType] = {}
        found = {name for folder in self._folders for name in _names_in(folder)}
        self.names = found & sys.stdlib_module_names

    def install(self) -> None:
        """Let ``import`` in a file of the study find these first."""
        import_any: Any = getattr(builtins.__import__, "theirs", builtins.__import__)
        inside = tuple(f"{folder}{os.sep}" for folder in self._folders)

        def import_own_first(
            name: str,
            globals: Mapping[str, Any] | None = None,  # noqa: A002 - as `__import__` calls them
            locals: Mapping[str, Any] | None = None,  # noqa: A002
            fromlist: Sequence[str] | None = (),
            level: int = 0,
        ) -> ModuleType:
            asking = str((globals or {}).get("__file__", "")) if level == 0 and name in self.names else ""
            if asking and os.path.realpath(asking).startswith(inside):
                return self.load(name)
            module: ModuleType = import_any(name, globals, locals, fromlist, level)
            return module

        import_own_first.theirs, import_own_first.own = import_any, self  # type: ignore[attr-defined]
        builtins.__import__ = import_own_first

    def file_of(self, name: str) -> str | None:
        """Return the file of one of them."""
        spec = PathFinder.find_spec(name, list(self._folders))
        return spec.origin if spec else None

    def load(self, name: str) -> ModuleType:
        """Return one of them."""
        if name not in self._loaded:
            spec = PathFinder.find_spec(name, list(self._folders))
            assert spec is not None  # noqa: S101 - it was found in one of the folders
            assert spec.loader is not None  # noqa: S101 - and is no namespace
            self._loaded[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(self._loaded[name])
        return self._loaded[name]


def _names_in(folder: str) -> set[str]:
    try:
        entries = list(Path(folder).iterdir())
    except OSError:
        return set()
    modules = {entry.stem for entry in entries if entry.suffix == ".py"}
    return modules | {entry.name for entry in entries if (entry / "__init__.py").exists()}
