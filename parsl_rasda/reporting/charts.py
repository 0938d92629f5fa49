"""The charts of a report: learning curves, and each hyperparameter against the metric.

Pure functions of a search's JSON document; the page's template draws a chart as SVG. Shapes name their
trial in ``data-trial`` and its fate in ``class``; colours and tooltips are the page's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from parsl_rasda.reporting.format import truncated, value_text
from parsl_rasda.reporting.scales import Scale, Tick, metric_scale, value_scale
from parsl_rasda.search.space import Choice, Float, Int, Parameter
from parsl_rasda.types import Mode

Summary: TypeAlias = Mapping[str, Any]  # of one search, as `status --json` has it
Point: TypeAlias = tuple[float, float]

WIDTH = 1040  # of a chart [px]
NARROW = 380  # of its form for narrow windows
METRICS = 12  # that have learning curves
PANELS = 24  # hyperparameters that are drawn
_POINTS = 240  # of a curve
_EPOCHS_LOG = 12  # from which ratio of epochs on their logarithm is shown
_CROWD = 200  # trials from which dots are smaller
_TICK_ROOM = 26  # between the labels of two rungs [px]
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 14, 40
# What is drawn last lies on top.
_ORDER = ("stopped", "waiting", "paused", "failed", "running", "completed")


class Shape(NamedTuple):
    """An SVG element."""

    name: str
    attributes: Mapping[str, str | float]
    text: str


def shape(name: str, text: str = "", **attributes: str | float) -> Shape:
    """Return an element; ``class_`` means ``class``, ``data_trial`` means ``data-trial``."""
    return Shape(name, {key.rstrip("_").replace("_", "-"): v for key, v in attributes.items()}, text)


@dataclass(frozen=True, slots=True)
class Chart:
    """A picture; the title is for readers who cannot see it."""

    width: str
    height: str
    title: str
    shapes: Sequence[Shape]


@dataclass(frozen=True, slots=True)
class Frame:
    """A rectangle with axes.

    Attributes:
        x: Scale of the horizontal axis; starts at its left border.
        y: Scale of the vertical axis; starts at its lower border.
    """

    x: Scale
    y: Scale

    def axes(
        self, x_ticks: Sequence[Tick], y_ticks: Sequence[Tick], x_name: str, y_name: str
    ) -> Iterator[Shape]:
        """Yield grid lines, labels and names of both axes."""
        left, right, low, top = self.x.start, self.x.stop, self.y.start, self.y.stop
        for value, label in y_ticks:
            y = rounded(self.y(value))
            yield shape("path", class_="grid", d=f"M{rounded(left)} {y}H{rounded(right)}")
            beside = {"x": rounded(left - 6), "y": y, "dy": "0.35em", "text_anchor": "end"}
            yield shape("text", label, class_="tick", **beside)
        for value, label in x_ticks:
            x = rounded(self.x(value))
            yield shape("path", class_="grid", d=f"M{x} {rounded(low)}V{rounded(top)}")
            yield shape("text", label, class_="tick", x=x, y=rounded(low + 16), text_anchor="middle")
        middle = rounded((left + right) / 2)
        yield shape("text", x_name, class_="name", x=middle, y=rounded(low + 33), text_anchor="middle")
        yield shape("text", y_name, class_="name", x=4, y=rounded(top - 3))


def fate(trial: Summary, best: Summary | None) -> str:
    """Return the classes of a trial's elements."""
    is_best = best is not None and best["trial"] == trial["trial"]
    return f"{trial['state']} best" if is_best else str(trial["state"])


def back_to_front(summary: Summary) -> list[Summary]:
    """Return the trials of a search in the order in which they are drawn."""
    best = summary["best"] and summary["best"]["trial"]
    return sorted(summary["trial_list"], key=lambda t: (t["trial"] == best, _ORDER.index(t["state"])))


def learning_curves(summary: Summary, metric: str | None = None, *, width: int = WIDTH) -> Chart | None:
    """Return a metric of all trials over their epochs, with rungs marked; None without a result.

    Args:
        summary: The JSON document of a search.
        metric: Which; by default the one that trials are judged by.
        width: Of the chart [px].
    """
    name = metric or summary["metric"]
    known = {t["trial"]: _curve_of(t, name, summary["metric"]) for t in summary["trial_list"]}
    points = [p for curve in known.values() for p in curve]
    if not points:
        return None
    rungs, height, values = summary["rungs"], 420 if width == WIDTH else 300, [m for _, m in points]
    y = _curve_scale(summary, name, values, height - _BOTTOM, _TOP + 8)
    frame = Frame(_epoch_scale(points, rungs, width), y)
    shapes = [*frame.axes(_epoch_ticks(frame.x, rungs), y.ticks(), "epochs", name)]
    for rung in rungs:
        x = rounded(frame.x(rung["epochs"]))
        shapes.append(shape("path", class_="rung", d=f"M{x} {rounded(y.start)}V{rounded(y.stop)}"))
    for trial in back_to_front(summary):
        curve = known[trial["trial"]]
        if curve:
            line = _line([(frame.x(e), y(m)) for e, m in _thinned(curve, _POINTS * width // WIDTH)])
            classes = f"curve {fate(trial, summary['best'])}"
            shapes.append(shape("path", class_=classes, data_trial=trial["trial"], d=line))
    return chart(width, height, f"{name} of every trial over its epochs", shapes)


def _curve_of(trial: Summary, name: str, judged: str) -> list[Point]:
    found = trial["history"] if name == judged else trial.get("curves", {}).get(name, ())
    return [(e, m) for e, m in found if m is not None]


def _last_of(trial: Summary, name: str, judged: str) -> float | None:
    found = trial["metric"] if name == judged else trial.get("metrics", {}).get(name)
    return None if found is None else float(found)


def _curve_scale(
    summary: Summary, name: str, values: Sequence[float], low_px: float, high_px: float
) -> Scale:
    """Return the vertical scale of a metric; whether a small one is good is known of the judged one only."""
    mode = summary["mode"] if name == summary["metric"] else None
    return metric_frame_scale(values, low_px, high_px, mode)


def count_far_off(summary: Summary) -> int:
    """Return how many results `learning_curves` draws on its border, because they lie so far off."""
    values = [m for t in summary["trial_list"] for _, m in t["history"] if m is not None]
    scale = metric_frame_scale(values, 1.0, 0.0, summary["mode"])
    return sum(not scale.low <= v <= scale.high for v in values)


def metric_frame_scale(values: Sequence[float], low_px: float, high_px: float, mode: str | None) -> Scale:
    """Return the vertical scale of a chart of metrics; `mode` is None where nobody knows which are good."""
    modes = (mode,) if mode is not None else tuple(Mode)
    ranges = [metric_scale(values, low_px, high_px, smaller_is_better=m == Mode.MIN) for m in modes]
    return max(ranges, key=lambda scale: scale.high - scale.low)


def hyperparameters(
    summary: Summary, space: Mapping[str, Parameter], metric: str | None = None
) -> list[Chart]:
    """Return a chart for each hyperparameter that varies: its values against the last metric.

    Larger dots have trained for longer. Trials without the parameter, or without the metric, are left out.

    Args:
        summary: The JSON document of a search.
        space: What was searched.
        metric: Which; by default the one that trials are judged by.
    """
    what = metric or summary["metric"]
    last = {t["trial"]: _last_of(t, what, summary["metric"]) for t in summary["trial_list"]}
    trials = [t for t in back_to_front(summary) if last[t["trial"]] is not None]
    if not trials:
        return []
    varying = varying_names(trials)
    width, height = 340, 250
    values = [value for value in last.values() if value is not None]
    y = _curve_scale(summary, what, values, height - _BOTTOM, _TOP + 8)
    charts = []
    for name in varying[:PANELS]:
        shown = [t for t in trials if name in t["config"]]
        span = (_LEFT + 10, width - _RIGHT - 6)
        x, ticks, places = parameter_axis(shown, name, space.get(name), span)
        shapes = [*Frame(x, y).axes(ticks, y.ticks(5), name, what)]
        for trial, place in zip(shown, places, strict=True):
            classes = f"dot {fate(trial, summary['best'])}"
            radius = _radius(trial["epoch"], summary["rungs"], len(shown))
            at = {"cx": rounded(place), "cy": rounded(y(last[trial["trial"]] or 0.0)), "r": radius}
            shapes.append(shape("circle", class_=classes, data_trial=trial["trial"], **at))
        charts.append(chart(width, height, f"{what} over {name}", shapes))
    return charts


def chart(width: float, height: float, title: str, shapes: Sequence[Shape]) -> Chart:
    """Return a chart of a size [px]."""
    return Chart(rounded(width), rounded(height), title, shapes)


def rounded(place: float) -> str:
    """Return a place on a chart with the digits that can be seen."""
    return f"{place:.1f}".removesuffix(".0")


def _epoch_scale(points: Sequence[Point], rungs: Sequence[Summary], width: int) -> Scale:
    epochs = [e for e, _ in points] + [r["epochs"] for r in rungs]
    low, high = min(epochs), max(epochs)
    log = low > 0 and high / low >= _EPOCHS_LOG
    return Scale(low, high, _LEFT, width - _RIGHT, log=log)


def _epoch_ticks(x: Scale, rungs: Sequence[Summary]) -> list[Tick]:
    """Return the rungs, without those that would stand too close to the one before."""
    ticks: list[Tick] = []
    for rung in rungs:
        if not ticks or x(rung["epochs"]) - x(ticks[-1][0]) > _TICK_ROOM:
            ticks.append((rung["epochs"], str(rung["epochs"])))
    return ticks


def _thinned(curve: Sequence[Point], most: int) -> Sequence[Point]:
    step = math.ceil(len(curve) / most)
    return [*curve[:-1:step], curve[-1]]


def _line(points: Sequence[Point]) -> str:
    """Return a path; a single point is a line of no length, which round ends make a dot."""
    first, *rest = (f"{rounded(x)} {rounded(y)}" for x, y in points)
    return f"M{first}" + (f"L{' '.join(rest)}" if rest else "h0")


def varying_names(trials: Sequence[Summary]) -> list[str]:
    """Return the hyperparameters of which the trials have more than one value."""
    names = dict.fromkeys(name for t in trials for name in t["config"])
    return [n for n in names if len({value_text(t["config"][n]) for t in trials if n in t["config"]}) > 1]


def parameter_axis(
    trials: Sequence[Summary], name: str, parameter: Parameter | None, span: tuple[float, float]
) -> tuple[Scale, list[Tick], list[float]]:
    """Return the scale of a hyperparameter, its ticks, and the place of each trial [px].

    Args:
        trials: Those that have it.
        name: Of the hyperparameter.
        parameter: How it is searched, if that is known.
        span: Where the axis begins and ends [px].
    """
    values = [t["config"][name] for t in trials]
    numeric = all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values)
    start, stop = span
    if numeric and not isinstance(parameter, Choice):
        log = parameter.log if isinstance(parameter, Float | Int) else False
        scale = value_scale(values, start, stop, log=log)
        return scale, scale.ticks(4), [scale(v) for v in values]
    labels = sorted({value_text(v) for v in values}, key=_by_value(values))
    scale = Scale(-0.5, len(labels) - 0.5, start, stop)
    every = math.ceil(len(labels) / 8)
    letters = max(3, int(44 * every / len(labels)))
    ticks = [(float(i), truncated(label, letters)) for i, label in enumerate(labels)][::every]
    order = {label: i for i, label in enumerate(labels)}
    # Side by side within a value, in a way that is the same whenever the page is made.
    offsets = (0.5 * ((i * 0.618) % 1 - 0.5) for i in range(len(values)))
    return scale, ticks, [scale(order[value_text(v)] + o) for v, o in zip(values, offsets, strict=True)]


def _by_value(values: Sequence[Any]) -> Any:  # Any: a sort key of JSON values
    places = {value_text(v): v for v in values}
    numeric = all(isinstance(v, int | float) for v in values)
    return (lambda label: places[label]) if numeric else str


def _radius(epoch: int, rungs: Sequence[Summary], count: int) -> str:
    """Return the radius of a dot: larger the higher the rung, smaller in a crowd."""
    share = sum(r["epochs"] <= epoch for r in rungs) / max(1, len(rungs))
    return f"{(2.2 + 3.4 * share) * (0.65 if count > _CROWD else 1):.1f}"
