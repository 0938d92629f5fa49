"""When what went wrong: a row for each kind of thing, a mark for each fault."""

from __future__ import annotations

from collections.abc import Iterable

from parsl_rasda.orchestration.journal import Record
from parsl_rasda.orchestration.usage import Usage
from parsl_rasda.reporting.charts import WIDTH, Chart, Shape, chart, rounded, shape
from parsl_rasda.reporting.format import duration, truncated
from parsl_rasda.reporting.scales import Scale, time_ticks

_LEFT, _RIGHT, _TOP, _BOTTOM, _ROW = 110, 16, 8, 26, 24
_MOST = 500  # marks


def fault_timeline(records: Iterable[Record], *, width: int = WIDTH) -> Chart | None:
    """Return the chart, over the time under a controller; None if nothing went wrong."""
    usage, found = Usage(), list[tuple[float, str, str]]()
    for record in records:
        before = len(usage.faults)
        usage.add(record.event, record.instructions)
        found += [(usage.makespan_s(), f.what, f.cause) for f in usage.faults[before:]]
    if not found:
        return None
    kinds = sorted({what.partition(" ")[0] for _, what, _ in found})
    height = _TOP + _ROW * len(kinds) + _BOTTOM
    span_s = usage.makespan_s() or 1.0
    x = Scale(0.0, span_s, _LEFT, width - _RIGHT)
    shapes: list[Shape] = []
    for at, label in time_ticks(span_s, 9 if width > WIDTH / 2 else 4):
        place = rounded(x(at))
        shapes.append(shape("path", class_="grid", d=f"M{place} {_TOP}V{height - _BOTTOM + 4}"))
        shapes.append(shape("text", label, class_="tick", x=place, y=height - 8, text_anchor="middle"))
    for i, kind in enumerate(kinds):
        y = _TOP + _ROW * (i + 0.5)
        shapes.append(shape("path", class_="grid", d=f"M{_LEFT} {rounded(y)}H{width - _RIGHT}"))
        shapes.append(shape("text", kind, class_="tick", x=4, y=rounded(y), dy="0.35em"))
    for at, what, cause in found[:_MOST]:
        y = _TOP + _ROW * (kinds.index(what.partition(" ")[0]) + 0.5)
        note = f"{duration(at)}: {what}: {truncated(cause, 300)}"
        middle = {"cx": rounded(x(at)), "cy": rounded(y), "r": "5"}
        shapes.append(shape("circle", class_="dot failed", data_note=note, **middle))
    return chart(width, height, "When what went wrong", shapes)
