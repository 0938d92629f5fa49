"""The two charts of a search beside ASHA, who held which slots when, as a picture for papers and pages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from parsl_rasda.orchestration.replay import ReplayedSearch
from parsl_rasda.reporting.asha import AshaComparison, how_much
from parsl_rasda.reporting.charts import WIDTH, Chart, Summary
from parsl_rasda.reporting.format import duration
from parsl_rasda.reporting.occupancy import occupancy_of
from parsl_rasda.reporting.search_report import slots_charts
from parsl_rasda.reporting.templates import render

_HEAD, _LEGEND = 30, 26  # above each chart, below both [px]


def asha_picture(history: ReplayedSearch, summary: Summary, asha: AshaComparison) -> str:
    """Return the picture, an SVG of its own.

    Args:
        history: The records of the search.
        summary: Its JSON document.
        asha: The search beside ASHA.
    """
    occupancy = occupancy_of(history.records)
    charts = slots_charts(summary, occupancy, occupancy.close(), asha)
    ran, rehearsed = duration(summary["makespan_s"]), duration(asha.document["makespan_s"])
    later = how_much(asha.document, summary["makespan_s"])
    same = "the same best, " if asha.document["same_best"] else ""
    titles = [("RASDA", f"as it ran: {ran}"), ("ASHA", f"as rehearsed: {rehearsed}, {same}{later}")]
    parts = [*_parts(titles, charts)]
    return render(
        "asha.svg",
        width=WIDTH,
        height=round(sum(float(c.height) for c in charts) + _HEAD * len(charts) + _LEGEND),
        title="; ".join(f"{name} {text}" for name, text in titles),
        parts=parts,
        legend=[
            ("job best", "the best trial"),
            ("job stopped", "stopped at a rung"),
            ("held", "GPU held and idle"),
        ],
    )


def _parts(titles: list[tuple[str, str]], charts: list[Chart]) -> Iterator[dict[str, Any]]:
    top = 0.0
    for (name, text), drawn in zip(titles, charts, strict=True):
        top += _HEAD
        yield {"name": name, "text": text, "chart": drawn, "top": round(top)}
        top += float(drawn.height)
