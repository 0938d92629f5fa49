"""The display that fits where a program runs: a notebook, a terminal, or neither."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from parsl_rasda.display.line import LineView
from parsl_rasda.display.live import LiveView
from parsl_rasda.display.plain import PlainView
from parsl_rasda.orchestration.progress import ProgressReporter
from parsl_rasda.reporting.tables import console_of


def fitting_view() -> ProgressReporter:
    """Return a display, which begins to show when it is made; in a notebook, below the cell that makes it."""
    show = _notebook_line()
    if show is not None:
        return LineView(show)
    console = console_of(stderr=True)
    if not console.is_terminal or console.is_dumb_terminal:
        return PlainView(console.file)
    try:
        return LiveView(console)
    except Exception:  # noqa: BLE001  # rich refuses, for example where another display is on
        return PlainView(console.file)


def _notebook_line() -> Callable[[str], None] | None:
    """Return what replaces one line of a notebook's cell, or None outside a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is None or not hasattr(shell, "kernel"):
        return None
    from IPython.display import display

    handle: Any = display({"text/plain": "..."}, raw=True, display_id=True)  # Any: IPython is untyped
    return lambda line: handle.update({"text/plain": line}, raw=True)
