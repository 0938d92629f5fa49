"""Parallel coordinates: an axis for each hyperparameter and one for the metric, a line for each trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from parsl_rasda.reporting.charts import (
    Chart,
    Shape,
    Summary,
    back_to_front,
    chart,
    fate,
    metric_frame_scale,
    parameter_axis,
    rounded,
    shape,
    varying_names,
)
from parsl_rasda.reporting.format import truncated
from parsl_rasda.search.space import Parameter

AXES = 9  # hyperparameters that are drawn
_WIDTH, _HEIGHT, _TOP, _BOTTOM = 1040, 340, 34, 20
_LEFT, _RIGHT = 56, 70
_LETTERS = 12  # of a tick


def parallel_coordinates(
    summary: Summary, space: Mapping[str, Parameter], order: Sequence[str] = (), *, width: int = _WIDTH
) -> Chart | None:
    """Return the chart; None if no two trials with a result differ.

    A trial without one of the hyperparameters has no line from the axis before to the one behind.

    Args:
        summary: The JSON document of a search.
        space: What was searched.
        order: Names that come first, the most important one last, beside the metric.
        width: Of the chart [px].
    """
    trials = [t for t in back_to_front(summary) if t["metric"] is not None]
    varying = varying_names(trials)
    ranked = sorted(varying, key=lambda n: order.index(n) if n in order else len(order))[:AXES]
    if not ranked:
        return None
    names = [*reversed(ranked[: max(2, int(AXES * width / _WIDTH))])]
    xs = [_LEFT + i * (width - _LEFT - _RIGHT) / len(names) for i in range(len(names) + 1)]
    places: dict[str, list[tuple[float, float] | None]] = {t["trial"]: [] for t in trials}
    axes: list[Shape] = []
    for name, x in zip(names, xs, strict=False):
        own = [t for t in trials if name in t["config"]]
        scale, ticks, found = parameter_axis(own, name, space.get(name), (_HEIGHT - _BOTTOM, _TOP))
        axes += _axis(name, x, [(scale(v), label) for v, label in ticks])
        at = {t["trial"]: y for t, y in zip(own, found, strict=True)}
        for who, line in places.items():
            line.append((x, at[who]) if who in at else None)
    y = metric_frame_scale([t["metric"] for t in trials], _HEIGHT - _BOTTOM, _TOP, summary["mode"])
    axes += _axis(summary["metric"], xs[-1], [(y(v), label) for v, label in y.ticks(6)])
    shapes: list[Shape] = []
    for trial in trials:
        path = _path([*places[trial["trial"]], (xs[-1], y(trial["metric"]))])
        classes = f"curve {fate(trial, summary['best'])}"
        shapes.append(shape("path", class_=classes, data_trial=trial["trial"], d=path))
    return chart(width, _HEIGHT, "Hyperparameters and result of every trial", [*shapes, *axes])


def _axis(name: str, x: float, ticks: Sequence[tuple[float, str]]) -> list[Shape]:
    top = f"M{rounded(x)} {_TOP}V{_HEIGHT - _BOTTOM}"
    shapes = [shape("path", class_="grid", d=top)]
    shapes.append(
        shape("text", truncated(name, 16), class_="name", x=rounded(x), y=_TOP - 16, text_anchor="middle")
    )
    for y, label in ticks:
        shapes.append(shape("path", class_="axis", d=f"M{rounded(x - 3)} {rounded(y)}h6"))
        text = truncated(label, _LETTERS)
        place = {"x": rounded(x + 6), "y": rounded(y), "dy": "0.35em"}
        shapes.append(shape("text", text, class_="tick over", **place))
    return shapes


def _path(places: Sequence[tuple[float, float] | None]) -> str:
    """Return a line that is broken where a place is missing."""
    words, is_broken = "", True
    for place in places:
        if place is not None:
            words += f"{'M' if is_broken else 'L'}{rounded(place[0])} {rounded(place[1])}"
        is_broken = place is None
    return words
