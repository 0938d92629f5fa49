"""What a tracker does: bring what another tool knows of a trial up to date.

A tracker is told what a trial is now, not what has changed. So it may fail, be asked again, or begin anew
after a death: what is there already is not written twice.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from parsl_rasda.orchestration.curves import Curve
from parsl_rasda.types import JSON

_PASSWORD = re.compile(r"://([^:/@]*):[^@]*@")


@dataclass(frozen=True, slots=True)
class Origin:
    """Which search trials belong to.

    Attributes:
        name: Of the study, with that of the search if there are several.
        mark: A string that no other run has.
        metric: What trials are judged by.
    """

    name: str
    mark: str
    metric: str

    def key(self, curve: Curve) -> str:
        """Return an id of a trial that no trial of another search has."""
        return f"{self.mark}-{self.name}-{curve.trial}"


STEPS = "steps/"  # before the names of what is logged within epochs, where tools count steps in whole numbers


def thousandths(place: float) -> int:
    """Return a place within an epoch as such a number."""
    return round(1000 * place)


class Tracker(Protocol):
    """Writes trials to one tool. It may raise: then it is asked again later."""

    def write(self, curve: Curve) -> None:
        """Write what is missing of a trial; it may be over."""
        ...

    def close(self) -> None:
        """Let go of everything; no trial is written any more."""
        ...


def without_password(address: str) -> str:
    """Return an address as people may see it."""
    return _PASSWORD.sub(r"://\1:***@", address)


def plain_value(value: JSON) -> bool | int | float | str | None:
    """Return a setting as a value that any tool can hold: lists and mappings as JSON."""
    return value if value is None or isinstance(value, bool | int | float | str) else json.dumps(value)


def plain_config(config: Mapping[str, JSON]) -> dict[str, bool | int | float | str | None]:
    """Return a configuration of such values."""
    return {name: plain_value(value) for name, value in config.items()}
