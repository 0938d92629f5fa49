"""RASDA hyperparameter optimisation as one stage of Parsl pipelines.

For programs: `Study`, `Slots`, `tune` and its `StudyResult`. For study files: the command ``parsl-rasda``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from parsl_rasda.api import Slots, Study, tune
    from parsl_rasda.result import StudyResult

__version__ = "0.2.0"
__all__ = ["Slots", "Study", "StudyResult", "tune"]


def __getattr__(name: str) -> object:
    """Import on first use: ranks import this package, too, and must start in milliseconds."""
    if name in __all__:
        from parsl_rasda import api, result

        return getattr(result if name == "StudyResult" else api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
