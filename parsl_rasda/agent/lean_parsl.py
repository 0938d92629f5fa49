"""Imports those modules of Parsl that its own processes use, and not the rest of it.

`import parsl` takes along all executors, providers and the monitoring, with SQLAlchemy and Globus Compute's
SDK if they are installed: 1,000 modules and a second of a core, of which an interchange and a pilot need
the quarter. For processes that run no code of users: that would find a Parsl without its names.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec, module_from_spec

_OPTIONAL = ("globus_compute_sdk", "sqlalchemy")  # Parsl does without them: they are extras
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
        for known in [m for m in sys.modules if m.partition(".")[0] == "parsl"]:
            del sys.modules[known]
        import_parsl()
        import_module(name)
    del sys.modules[name]  # else `runpy` warns that it runs it twice


def import_parsl() -> None:
    """Import Parsl as if its extras were not installed; others may import these themselves, later."""
    hidden = [name for name in _OPTIONAL if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: it cannot be imported
    try:
        import_module("parsl")
    finally:
        for name in hidden:
            del sys.modules[name]
