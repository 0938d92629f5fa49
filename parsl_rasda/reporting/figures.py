"""The charts of a run as files for papers: SVG, and PNG where there is a library that draws it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from parsl_rasda.atomic_files import replace_file
from parsl_rasda.errors import InvalidSettingError
from parsl_rasda.reporting.charts import Chart
from parsl_rasda.reporting.graph import run_graph
from parsl_rasda.reporting.png import png
from parsl_rasda.reporting.runs import Run
from parsl_rasda.reporting.search_report import search_report
from parsl_rasda.reporting.templates import render

_PLAIN = re.compile(r"[^\w.-]+")


def write_figures(run: Run, folder: Path) -> list[Path]:
    """Write each chart of a run as SVG and, if `resvg-py` is installed, as PNG; return the files.

    Raises:
        InvalidSettingError: If no search of it has begun.
    """
    charts = dict(_charts(run))
    if not charts:
        raise InvalidSettingError("--figures", str(run.directory), "a run of which a search has begun")
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, drawn in charts.items():
        text = render("figure.svg", chart=drawn)
        file = folder / f"{_PLAIN.sub('_', name)}.svg"
        replace_file(file, text)
        written.append(file)
        if (image := png(text)) is not None:
            file.with_suffix(".png").write_bytes(image)
            written.append(file.with_suffix(".png"))
    return written


def _charts(run: Run) -> Iterator[tuple[str, Chart]]:
    graph = run_graph(run)
    for stage, summary in run.summaries().items():
        history = run.searches[stage]
        if not history.records:
            continue
        before = f"{stage}-" if len(run.searches) > 1 else ""
        own = graph.subgraph(v for v, data in graph.nodes(data=True) if data.get("search") == stage)
        found = search_report(history, summary, own, None, run.asha[stage])
        for metric, drawn in found["curves"].items():
            yield f"{before}curves-{metric}", drawn
        for metric, charts in found["best_so_far"].items():
            suffix = "" if metric == summary["metric"] else f"-{metric}"
            for what, drawn in zip(("time", "gpu-hours"), charts, strict=False):
                yield f"{before}best-over-{what}{suffix}", drawn
        for what, drawn in zip(("slots", "slots-asha"), found["slots"], strict=False):
            yield f"{before}{what}", drawn
        for what in ("parallel", "fault_timeline"):
            if found[what] is not None:
                yield f"{before}{what.replace('_', '-')}", found[what][0]
        for drawn in chain.from_iterable(found["panels"].values()):
            yield f"{before}{drawn.title}", drawn
