"""How many pilots a site holds at a time, as a site file says it: a number, or from so many to so many."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag

from parsl_rasda.diagnostics import MARK, Plain, is_number, refused, shown
from parsl_rasda.errors import Diagnostic
from parsl_rasda.study.spec import Count, Spec

MOST_PILOTS = 1_000
WALLTIME = re.compile(r"[0-9]{1,4}:[0-5][0-9]:[0-5][0-9]")
_SECONDS = (1, 60, 3600)
WALLTIME_FORM = "HH:MM:SS, for example 01:30:00"

PilotCount = Annotated[Count, Field(le=MOST_PILOTS)]


def _walltime(value: str) -> str:
    if not WALLTIME.fullmatch(value):
        raise refused(value, WALLTIME_FORM)
    return value


Walltimes: TypeAlias = tuple[Annotated[str, AfterValidator(_walltime)], ...]


class PilotsSpec(Spec):
    """From so many pilots to so many: the study takes what it gets."""

    min: PilotCount = Field(1, description="Asked for at the start, all at once.")
    max: PilotCount = Field(
        description="Held at most: one more is asked for when trials wait for slots and no pilot is to come.",
        examples=[4],
    )
    walltimes: Walltimes = Field(
        (),
        description="Of the pilots, one after another, as the site's own `walltimes`.",
        examples=[["24:00:00", "02:00:00"]],
    )

    @classmethod
    def problems(cls, plain: Plain) -> Iterator[Diagnostic]:
        """Yield a minimum above the maximum."""
        least, most = plain.get("min", 1), plain.get("max")
        if is_number(least) and is_number(most) and least > most:
            yield Diagnostic(("min",), shown(least), f"at most max, {shown(most)}")


def walltime_s(text: str) -> float:
    """Return the seconds of a Parsl walltime, ``[days-]HH:MM:SS``."""
    days, _, clock = text.rpartition("-")
    parts = [float(part) for part in reversed(clock.split(":"))]
    return float(days or 0) * 86400 + sum(n * unit for n, unit in zip(parts, _SECONDS, strict=False))


def most_of(pilots: object) -> object:
    """Return the largest number of pilots that a file asks for, of which nothing is certain yet."""
    return pilots.get("max") if isinstance(pilots, Mapping) else pilots


def _pilots(value: object) -> object:
    if isinstance(value, Mapping | PilotsSpec) or is_number(value):
        return value
    raise refused(value, f"a whole number from 1 to {MOST_PILOTS}, or {{min: 1, max: 4}}")


def _tag(value: object) -> str:
    return MARK + ("count" if is_number(value) else "range")


Pilots: TypeAlias = Annotated[
    Annotated[PilotCount, Tag(MARK + "count")] | Annotated[PilotsSpec, Tag(MARK + "range")],
    Discriminator(_tag),
    BeforeValidator(_pilots),
]
