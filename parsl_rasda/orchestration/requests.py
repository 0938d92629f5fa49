"""What the user tells a search: a file for each request, which its controller finds wherever it runs.

::

    told/000001.json  000002.json ...    {"stop": "0003"}, {"at_most": 4}, {"retry_failed": true}, {"add": {}}

Each becomes one event with its number. The journal has the last number, so that none is taken twice; one
that comes while nobody runs the study waits for `resume`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from msgspec import convert

from parsl_rasda.atomic_files import create_file
from parsl_rasda.orchestration.events import TrialProposed, UserTold
from parsl_rasda.types import TrialId

logger = logging.getLogger(__name__)

_ADD = "add"


def write_request(folder: Path, request: Mapping[str, Any]) -> int:
    """Write a request down and return its number.

    Args:
        folder: `RunDirectory.requests`.
        request: A field of `UserTold`, or ``add`` with a configuration.
    """
    folder.mkdir(exist_ok=True)
    number = max(_numbers(folder), default=0) + 1
    while not create_file(folder / f"{number:06}.json", json.dumps(request)):
        number += 1  # somebody else was faster
    return number


def requests_after(folder: Path, number: int, at: float) -> Iterator[UserTold | TrialProposed]:
    """Yield the requests after one, in their order; one that nobody understands is logged, asking nothing."""
    for found in sorted(n for n in _numbers(folder) if n > number):
        file = folder / f"{found:06}.json"
        try:
            text = file.read_bytes()
        except OSError:
            return  # the file server is busy: the next look finds it
        try:
            yield _request(json.loads(text), found, at)
        except (ValueError, TypeError) as error:
            logger.warning("%s: what was told is not understood (%s); it is passed over", file, error)
            yield UserTold(at, found)


def _request(plain: Mapping[str, Any], number: int, at: float) -> UserTold | TrialProposed:
    if _ADD in plain:
        return TrialProposed(at, TrialId(""), dict(plain[_ADD]), number)
    return convert({"type": UserTold.__name__, "at": at, "told": number, **plain}, UserTold)


def _numbers(folder: Path) -> list[int]:
    return [int(file.stem) for file in folder.glob("[0-9]*.json") if file.stem.isdecimal()]
