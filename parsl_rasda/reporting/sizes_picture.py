"""Makespan and node-hours over the nodes of a pilot, a line for each policy: for papers and proposals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from parsl_rasda.reporting.charts import Chart, Frame, Shape, chart, rounded, shape
from parsl_rasda.reporting.scales import Scale, Tick, time_ticks
from parsl_rasda.reporting.templates import render
from parsl_rasda.simulation.outcome import Forecast, PolicyForecast

_WIDTH, _HEIGHT, _HEAD, _LEGEND = 520, 300, 30, 30
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 22, 40
_FIGURES = (("makespan_s", "makespan"), ("node_hours", "node-hours"))


def sizes_picture(forecasts: Sequence[Forecast]) -> str:
    """Return the picture, an SVG of its own; a row of two charts for each stage."""
    names = list(dict.fromkeys(p.name for f in forecasts for size in f.sizes for p in size.policies))
    parts = [
        {
            "name": found.stage,
            "text": label,
            "chart": _chart(found, key, label, names),
            "left": left,
            "top": top,
        }
        for row, found in enumerate(forecasts)
        for left, (key, label) in ((i * _WIDTH, figure) for i, figure in enumerate(_FIGURES))
        for top in (_HEAD + row * (_HEIGHT + _HEAD),)
    ]
    return render(
        "sizes.svg",
        width=len(_FIGURES) * _WIDTH,
        height=len(forecasts) * (_HEIGHT + _HEAD) + _LEGEND,
        title="Makespan and node-hours over the nodes of a pilot",
        parts=parts,
        legend=[(f"policy-{i}", name) for i, name in enumerate(names)],
    )


def _chart(found: Forecast, key: str, label: str, names: Sequence[str]) -> Chart:
    lines = {name: _points(found, name, key) for name in names}
    highest = max((high for line in lines.values() for _, _, _, high in line), default=1.0)
    nodes = [size.nodes for size in found.sizes]
    x = Scale(min(nodes), max(nodes), _LEFT, _WIDTH - _RIGHT, log=True)
    y = Scale(0.0, highest * 1.05, _HEIGHT - _BOTTOM, _TOP)
    ticks = time_ticks(y.high, 6) if key == "makespan_s" else y.ticks(6)
    ticks = [tick for tick in ticks if y(tick[0]) > _TOP + 6]  # the name of the axis stands above
    x_ticks: list[Tick] = [(n, str(n)) for n in nodes]
    shapes = [*Frame(x, y).axes(x_ticks, ticks, "nodes of a pilot", label)]
    for name, line in lines.items():
        shapes += _line(line, x, y, f"policy-{names.index(name)}")
    return chart(_WIDTH, _HEIGHT, f"{label} of {found.stage}", shapes)


def _points(found: Forecast, name: str, key: str) -> list[tuple[int, float, float, float]]:
    """Return nodes, median, least and most of a policy, where its trials fit."""
    fitting = ((s.nodes, p) for s in found.sizes for p in s.policies if p.name == name and p.makespan_s)
    return [(nodes, _value(p, key), *p.ranges[key]) for nodes, p in fitting]


def _value(policy: PolicyForecast, key: str) -> float:
    return float(getattr(policy, key))


def _line(
    line: Sequence[tuple[int, float, float, float]], x: Scale, y: Scale, class_: str
) -> Iterator[Shape]:
    if not line:
        return
    upper = [f"{rounded(x(n))} {rounded(y(high))}" for n, _, _, high in line]
    lower = [f"{rounded(x(n))} {rounded(y(low))}" for n, _, low, _ in reversed(line)]
    yield shape("path", class_=f"band {class_}", d=f"M{'L'.join([*upper, *lower])}Z")
    yield shape(
        "path",
        class_=f"line {class_}",
        d="M" + "L".join(f"{rounded(x(n))} {rounded(y(v))}" for n, v, _, _ in line),
    )
    for nodes, value, _, _ in line:
        yield shape("circle", class_=f"dot {class_}", cx=rounded(x(nodes)), cy=rounded(y(value)), r="3")
