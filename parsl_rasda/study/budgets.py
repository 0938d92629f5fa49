"""What a search may spend: time, GPU-hours, node-hours."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Annotated

from pydantic import AfterValidator, Field, WithJsonSchema

from parsl_rasda.diagnostics import Plain, refused
from parsl_rasda.errors import Diagnostic
from parsl_rasda.study.pilot_counts import WALLTIME, walltime_s
from parsl_rasda.study.spec import Number, Spec, matching
from parsl_rasda.types import Budget

_DURATION_WORDS = "HH:MM:SS, for example 12:00:00"
_CLOCK = r"([01][0-9]|2[0-3]):[0-5][0-9]"
_DATE = r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
_UNTIL = re.compile(f"({_DATE}[ T])?{_CLOCK}")
_UNTIL_WORDS = "HH:MM, or YYYY-MM-DD HH:MM, for example 08:00"


def _duration(value: str) -> str:
    if not WALLTIME.fullmatch(value):
        raise refused(value, _DURATION_WORDS)
    return value


def _until(value: str) -> str:
    if not _UNTIL.fullmatch(value):
        raise refused(value, _UNTIL_WORDS)
    if len(value) > len("HH:MM"):
        try:
            _time_of(value, 0.0)
        except (ValueError, OverflowError):
            raise refused(value, "a day that there is, from 0002-01-01 to 9999-12-30") from None
    return value


Duration = Annotated[
    str, AfterValidator(_duration), WithJsonSchema(matching(WALLTIME.pattern, _DURATION_WORDS))
]
_NEAR_THE_ENDS = "(?!0001-01-01|9999-12-31)"  # of the calendar: their time elsewhere is no date
Until = Annotated[
    str, AfterValidator(_until), WithJsonSchema(matching(_NEAR_THE_ENDS + _UNTIL.pattern, _UNTIL_WORDS))
]
Hours = Annotated[Number, Field(gt=0)]


class BudgetSpec(Spec):
    """What a search may spend, over all its starts. Whichever limit comes first ends it."""

    wall_time: Duration | None = Field(
        None,
        description="Time under a controller, queues included, HH:MM:SS; not that between two starts.",
        examples=["12:00:00"],
    )
    until: Until | None = Field(
        None,
        description="Local time: HH:MM is the next one after each start; or YYYY-MM-DD HH:MM.",
        examples=["08:00"],
    )
    gpu_hours: Hours | None = Field(
        None, description="Hours for which pilots hold GPUs, busy or not.", examples=[200]
    )
    node_hours: Hours | None = Field(
        None, description="Hours for which pilots hold nodes, busy or not.", examples=[50]
    )

    @classmethod
    def problems(cls, plain: Plain) -> Iterator[Diagnostic]:
        """Yield a time in which nothing could run."""
        wall_time = plain.get("wall_time")
        if isinstance(wall_time, str) and WALLTIME.fullmatch(wall_time) and not walltime_s(wall_time):
            yield Diagnostic(("wall_time",), wall_time, "at least 00:00:01")

    def limits(self, now: float) -> Budget | None:
        """Return the limits in numbers, None if there is none.

        Args:
            now: Present time [s], after which ``until`` comes.
        """
        wall_s = None if self.wall_time is None else walltime_s(self.wall_time)
        until = None if self.until is None else _time_of(self.until, now)
        found = Budget(wall_s, until, self.gpu_hours, self.node_hours)
        return None if found == Budget() else found


def _time_of(until: str, now: float) -> float:
    if len(until) > len("HH:MM"):
        return datetime.fromisoformat(until).astimezone().timestamp()
    begin = datetime.fromtimestamp(now).astimezone()
    hour, minute = map(int, until.split(":"))
    today = begin.replace(hour=hour, minute=minute, second=0, microsecond=0, tzinfo=None)
    tomorrow = today + timedelta(days=1)  # that may be 23 or 25 hours later
    return today.timestamp() if today.timestamp() > now else tomorrow.timestamp()
