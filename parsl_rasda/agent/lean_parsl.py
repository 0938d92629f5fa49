"""Imports those modules of Parsl that are used, and not the rest of it.

`import parsl` takes along all executors, providers and the monitoring, with SQLAlchemy and Globus Compute's
SDK if they are installed: 1,000 modules and a second of a core, of which an interchange and a pilot need
the quarter. `prepare_program` is for processes that run no code of users: that would find a Parsl without its
names. After `import_parsl` it finds all of them.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any

_GLOBUS, _DATABASE = "parsl.executors.globus_compute", "parsl.monitoring.db_manager"
_EXECUTOR = "GlobusComputeExecutor"
_one_import = threading.Lock()  # sites have a thread each
_EMPTY = ("parsl", "parsl.executors", "parsl.monitoring")  # packages that import what they contain


def prepare_program(name: str) -> None:
    """Import what a program of Parsl's imports, so that it can be run as the main module next.

    Packages stay empty, so that only modules that are asked for by their full name are imported. If another
    version of Parsl needs more, all of it is imported but its extras.
    """
    try:
        for package in _EMPTY:
            spec = find_spec(package)
            if spec is not None:
                sys.modules[package] = module_from_spec(spec)
        import_module(name)
    except (ImportError, AttributeError):
        _forget()
        import_parsl()
        import_module(name)
    del sys.modules[name]  # else `runpy` warns that it runs it twice


def import_parsl(*, checks_types: bool = True) -> None:
    """Import Parsl, unless it is there; two modules that need its extras are imported when they are used.

    Another version of Parsl that needs more of them is imported as it is.

    Args:
        checks_types: Parsl checks what types its arguments have. For that, typeguard compiles its functions
            anew: together half of the import.
    """
    with _one_import:
        if "parsl" in sys.modules:
            return
        if checks_types:
            _import_without_extras()
            return
        try:
            with _without_typeguard():
                _import_without_extras()
        except (ImportError, AttributeError):
            _forget()
            _import_without_extras()


@contextmanager
def _without_typeguard() -> Iterator[None]:
    """Let modules that are imported meanwhile find one that checks nothing."""
    known, unchecking = sys.modules.get("typeguard"), ModuleType("typeguard")
    vars(unchecking)["typechecked"] = _unchecked
    sys.modules["typeguard"] = unchecking
    try:
        yield
    finally:
        del sys.modules["typeguard"]
        if known is not None:
            sys.modules["typeguard"] = known


def _unchecked(function: Any = None, **_: object) -> Any:  # a function or a class, or it decorates later
    return _unchecked if function is None else function


def _import_without_extras() -> None:
    sys.modules[_GLOBUS], sys.modules[_DATABASE] = ModuleType(_GLOBUS), ModuleType(_DATABASE)
    vars(sys.modules[_GLOBUS])[_EXECUTOR] = None
    vars(sys.modules[_DATABASE])["dbm_starter"] = _start_database
    try:
        import_module("parsl")
    except ImportError:
        _forget()
        import_module("parsl")
    else:
        del sys.modules[_GLOBUS], sys.modules[_DATABASE]  # nobody but Parsl imports these
    executors = vars(import_module("parsl.executors"))
    if executors.pop(_EXECUTOR, _EXECUTOR) is None:
        executors["__getattr__"] = _executor


def _forget() -> None:
    for known in [m for m in sys.modules if m.partition(".")[0] == "parsl"]:
        del sys.modules[known]


def _executor(name: str) -> Any:
    if name != _EXECUTOR:
        raise AttributeError(f"module 'parsl.executors' has no attribute {name!r}", name=name)
    return getattr(import_module(_GLOBUS), name)


def _start_database(*arguments: Any, **named: Any) -> None:
    import_module(_DATABASE).dbm_starter(*arguments, **named)
