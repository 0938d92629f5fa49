"""The front of a search by several metrics: every trial by its first two, the front as a line."""

from __future__ import annotations

import math

from parsl_rasda.reporting.charts import WIDTH, Chart, Frame, Summary, back_to_front, chart, rounded, shape
from parsl_rasda.reporting.scales import value_scale

_HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 340, 64, 24, 22, 40


def front_chart(summary: Summary, *, width: int = WIDTH) -> Chart | None:
    """Return the chart of the last values of all trials; None unless several metrics have a front."""
    front = {one["trial"]: one["values"] for one in summary.get("front", ())}
    names = [*next(iter(front.values()), ())][:2]
    if len(names) < 2:  # noqa: PLR2004
        return None
    found = [(t, *(t.get("metrics", {}).get(n) for n in names)) for t in back_to_front(summary)]
    known = [(t, x, y) for t, x, y in found if _is_finite(x) and _is_finite(y)]
    if not known:
        return None
    across = value_scale([x for _, x, _ in known], _LEFT + 10, width - _RIGHT, log=False)
    up = value_scale([y for *_, y in known], _HEIGHT - _BOTTOM - 10, _TOP, log=False)
    shapes = [*Frame(across, up).axes(across.ticks(6), up.ticks(5), *names)]
    steps = sorted(tuple(values[n] for n in names) for values in front.values())
    line = "L".join(f"{rounded(across(x))} {rounded(up(y))}" for x, y in steps)
    shapes.append(shape("path", class_="curve best", d=f"M{line}"))
    for trial, x, y in known:
        classes = f"dot {trial['state']}" + (" best" if trial["trial"] in front else "")
        at = {"cx": rounded(across(x)), "cy": rounded(up(y)), "r": "4"}
        shapes.append(shape("circle", class_=classes, data_trial=trial["trial"], **at))
    return chart(width, _HEIGHT, f"{names[1]} over {names[0]}: the front", shapes)


def _is_finite(value: object) -> bool:
    return isinstance(value, float) and math.isfinite(value)
