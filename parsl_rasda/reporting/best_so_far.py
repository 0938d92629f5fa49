"""The best result so far, over the time of a search and over the GPU time that it has held."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from parsl_rasda.orchestration.events import EpochReported
from parsl_rasda.orchestration.journal import Record
from parsl_rasda.orchestration.usage import Usage
from parsl_rasda.reporting.charts import Chart, Frame, Shape, chart, metric_frame_scale, rounded, shape
from parsl_rasda.reporting.scales import Scale, Tick, time_ticks
from parsl_rasda.types import Mode

WIDTH, _HEIGHT = 510, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 14, 40
_POINTS = 400


class Best(NamedTuple):
    """A result that was better than all before it, or the last one, with whatever was reported beside it."""

    seconds: float
    gpu_hours: float
    metric: float
    reported: Mapping[str, float] = {}


@dataclass(frozen=True, slots=True)
class Line:
    """The best so far of a search, in a colour.

    Attributes:
        name: Of the run.
        class_: Of its shapes.
    """

    name: str
    class_: str
    points: Sequence[Best]


def best_so_far(records: Iterable[Record], metric: str, mode: str) -> list[Best]:
    """Return each result that was better than all before, with what had been used by then.

    The last point is the end, at the same metric. Time is that under a controller.
    """
    usage, found = Usage(), list[Best]()
    best = math.inf
    sign = 1.0 if mode == Mode.MIN else -1.0
    for record in records:
        usage.add(record.event, record.instructions)
        if isinstance(record.event, EpochReported):
            value = record.event.metrics.get(metric, math.nan)
            if math.isfinite(value) and sign * value < best:
                best = sign * value
                now = (usage.makespan_s(), usage.held_gpu_s() / 3600)
                found.append(Best(*now, value, record.event.metrics))
    if found:
        found.append(found[-1]._replace(seconds=usage.makespan_s(), gpu_hours=usage.held_gpu_s() / 3600))
    return found


def other_of_best(points: Iterable[Best], metric: str) -> list[Best]:
    """Return the same with another metric of each result, where it has a number."""
    found = [point._replace(metric=point.reported.get(metric, math.nan)) for point in points]
    return [point for point in found if math.isfinite(point.metric)]


def best_charts(lines: Sequence[Line], metric: str, mode: str | None, slot_kind: str = "GPUs") -> list[Chart]:
    """Return the two charts of the lines, over time and over GPU-hours; none without a result.

    Args:
        lines: A run each.
        metric: Its name.
        mode: Whether a small one is good; None for a metric beside the one that trials are judged by.
        slot_kind: What is held for these hours.
    """
    shown = [line for line in lines if line.points]
    if not shown:
        return []
    values = [p.metric for line in shown for p in line.points]
    y = metric_frame_scale(values, _HEIGHT - _BOTTOM, _TOP + 8, mode)
    title = f"Best {metric} so far" if mode else f"{metric} of the best so far"
    span_s = max(line.points[-1].seconds for line in shown) or 1.0
    hours = max(line.points[-1].gpu_hours for line in shown) or 1.0
    unit = slot_kind.removesuffix("s")
    ranges = [Scale(0.0, span, _LEFT, WIDTH - _RIGHT - 8) for span in (span_s, hours)]
    return [
        _drawn(shown, 0, ranges[0], y, time_ticks(span_s, 6), ("time", metric), title),
        _drawn(shown, 1, ranges[1], y, ranges[1].ticks(5), (f"{unit}-hours held", metric), title),
    ]


def _drawn(
    lines: Sequence[Line],
    column: int,
    x: Scale,
    y: Scale,
    ticks: Sequence[Tick],
    names: tuple[str, str],
    title: str,
) -> Chart:
    shapes: list[Shape] = [*Frame(x, y).axes(ticks, y.ticks(5), *names)]
    for line in lines:
        path = "".join(
            _steps([(x((p.seconds, p.gpu_hours)[column]), y(p.metric)) for p in line.points[-_POINTS:]])
        )
        shapes.append(shape("path", class_=f"curve {line.class_}", d=path, data_note=line.name))
    return chart(WIDTH, _HEIGHT, f"{title} over {names[0]}", shapes)


def _steps(places: Sequence[tuple[float, float]]) -> Iterator[str]:
    (left, top), *rest = places
    yield f"M{rounded(left)} {rounded(top)}"
    for x, y in rest:
        yield f"H{rounded(x)}V{rounded(y)}"
