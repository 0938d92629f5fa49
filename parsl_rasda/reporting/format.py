"""Numbers and records as short strings, the same in every table."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from parsl_rasda.types import JSON

_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86400


def duration(seconds: float | None) -> str:
    """Return a time in the two units that matter: ``0.31 s``, ``4.2 s``, ``12 min 3 s``, ``3 h 20 min``."""
    if seconds is None:
        return "-"
    if seconds < _MINUTE_S:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    whole = round(seconds)
    for unit_s, unit, part_s, part in (
        (_DAY_S, "d", _HOUR_S, "h"),
        (_HOUR_S, "h", _MINUTE_S, "min"),
        (_MINUTE_S, "min", 1, "s"),
    ):
        if whole >= unit_s:
            return f"{whole // unit_s} {unit} {whole % unit_s // part_s} {part}"
    return f"{whole} s"


def clock(at: float) -> str:
    """Return a time by the local clock: ``12:03:20``."""
    return f"{datetime.fromtimestamp(at).astimezone():%H:%M:%S}"


def queue_words(job: str, state: str, reason: str, starts_at: float | None, obstacle: str) -> str:
    """Return where a batch job stands in its queue: ``job 12, PENDING (Priority)``, and what comes of it."""
    words = f"job {job}, {state}" + (f" ({reason})" if reason else "")
    if obstacle:
        return f"{words}: it will not start by itself: {obstacle}"
    if starts_at is None:
        return words
    return f"{words}, to start about {day_time(starts_at)}"


def day_time(at: float) -> str:
    """Return a time by the local clock and its day: ``2026-11-30 12:03``."""
    return f"{datetime.fromtimestamp(at).astimezone():%Y-%m-%d %H:%M}"


def moment(at: float | None) -> str:
    """Return a time as tables have it: ``2026-11-30T12:03:20.125+00:00``; empty if it is not known."""
    return "" if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")


def other_metrics(summary: Mapping[str, Any]) -> list[str]:
    """Return what trials of a search have reported besides the metric that they are judged by."""
    names = dict.fromkeys(
        name for t in summary["trial_list"] for name in t.get("curves", t.get("metrics", ()))
    )
    return [name for name in names if name != summary.get("metric")]


def metrics_text(metrics: Mapping[str, float | None], but: str | None = None) -> str:
    """Return metrics on one line, without one that is shown elsewhere."""
    return "  ".join(f"{name} {number(value)}" for name, value in metrics.items() if name != but)


def number(value: float | None) -> str:
    """Return a metric or a setting with the digits that matter."""
    return "-" if value is None else f"{value:.5g}"


def percent(fraction: float | None) -> str:
    """Return a fraction in percent."""
    return "-" if fraction is None else f"{100 * fraction:.0f} %"


def config_text(config: Mapping[str, Any]) -> str:
    """Return a configuration on one line."""
    return "  ".join(f"{k}={value_text(v)}" for k, v in config.items())


def value_text(value: Any) -> str:  # Any: a JSON value
    """Return a value of a configuration as a short string."""
    if isinstance(value, float):
        return number(value)
    return value if isinstance(value, str) else json.dumps(value)


def counted(number: int, noun: str) -> str:
    """Return ``1 trial``, ``2 trials``."""
    return f"{number} {noun}{'s' * (number != 1)}"


def slot_kind_of(sites: Path) -> str:
    """Return what the slots of a run are called: ``cores``, ``GPUs``, or ``slots`` if they are neither.

    Args:
        sites: The folder where the run keeps its site files.
    """
    return slot_kind(*map(_accelerator, sites.glob("*.yaml")))


def slot_kind(*accelerators: str) -> str:
    """Return what the slots of sites with these accelerators are called."""
    found = {*accelerators}
    if found == {"cpu"}:
        return "cores"
    return "slots" if found & {"cpu", "none"} else "GPUs"


def _accelerator(file: Path) -> str:
    """Return what a site file that we wrote says; its variables are not needed for it."""
    line = re.search(r"^accelerator: *'?(\w+)", file.read_text(encoding="utf-8"), re.MULTILINE)
    return line.group(1) if line else "cuda"


def truncated(value: Any, width: int = 100) -> str:  # Any: whatever a user's function returned
    """Return a value as JSON, cut to a number of characters."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= width else text[: width - 1] + "…"


def plain_json(value: Any) -> JSON:  # Any: whatever a user's function returned
    """Return a value that every JSON reader understands: numbers that are not finite become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): plain_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(v) for v in value]
    return value if value is None or isinstance(value, bool | int | str) else str(value)
