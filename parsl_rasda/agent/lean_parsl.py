"""Imports Parsl without the half of it that its own processes never use.

`import parsl` takes along SQLAlchemy for monitoring and Globus Compute's SDK for an executor, if they are
installed: 400 of 1,000 modules, half a second of a core, for each interchange and each pilot.
"""

from __future__ import annotations

import sys
from importlib import import_module

_OPTIONAL = ("globus_compute_sdk", "sqlalchemy")  # Parsl does without them: they are extras


def import_parsl() -> None:
    """Import Parsl as if its extras were not installed; others may import these themselves, later.

    For processes that run no code of users: these could not monitor a Parsl of their own.
    """
    hidden = [name for name in _OPTIONAL if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: it cannot be imported
    try:
        import_module("parsl")
    finally:
        for name in hidden:
            del sys.modules[name]
