"""A run as one page that needs nothing else: no network, no server, any browser.

The page says what `status --json` says; its pictures are drawn from the same journals. It tells the
truth about a run in any state, and stays a few megabytes at a thousand trials.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.resources import files
from typing import Any, TypeAlias

import networkx as nx

from parsl_rasda.reporting.charts import PANELS
from parsl_rasda.reporting.format import duration
from parsl_rasda.reporting.graph import run_graph
from parsl_rasda.reporting.graph_svg import svg
from parsl_rasda.reporting.methods import methods_text
from parsl_rasda.reporting.overview import advice_on, how_to_load, what_to_look_at
from parsl_rasda.reporting.runs import Run, StageStatus
from parsl_rasda.reporting.search_report import search_report
from parsl_rasda.reporting.tables import NO_SCALE, result_text
from parsl_rasda.reporting.templates import render
from parsl_rasda.study import dump_study
from parsl_rasda.types import StageState

Graph: TypeAlias = "nx.DiGraph[str]"


def page(run: Run, graph: Graph | None = None, now: float | None = None, *, events: str | None = None) -> str:
    """Return the report of a run.

    Args:
        run: The run.
        graph: Its graph, if it is known already.
        now: Present time [s], by default the clock's; it counts while somebody runs the study.
        events: Where a live page hears that there is something new; None for a file.
    """
    whole = run_graph(run) if graph is None else graph
    clock = (time.time() if now is None else now) if run.controller else None
    last = max((h.usage.last_at for h in run.searches.values()), default=0.0)
    script = resource("report.js")
    return render(
        "report.html",
        run=run,
        events=events,
        state=_state(run),
        is_one_search=len(run.study.stages) == len(run.searches) == 1,
        stages=list(_stages(run)),
        advice=advice_on(run),
        look_at=what_to_look_at(run),
        how_to_load=how_to_load(run),
        searches=dict(_searches(run, whole, clock)),
        max_panels=PANELS,
        no_scale=NO_SCALE,
        graph=svg(whole) if whole else "",
        study=dump_study(run.study),
        last_at=f"{datetime.fromtimestamp(last, UTC):%Y-%m-%d %H:%M:%S} UTC" if last else "",
        version=version("parsl_rasda"),
        style=resource("report.css"),
        script=script,  # only this one may run
        script_sha256=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def resource(name: str) -> str:
    """Return the text of a file beside the templates."""
    return (files("parsl_rasda.reporting") / "page" / name).read_text("utf-8")


def _state(run: Run) -> str:
    begun = any(stage.state is not StageState.WAITING for stage in run.stages.values())
    return run.state.value if begun else "has not begun"


def _stages(run: Run) -> Iterator[dict[str, str]]:
    for name, stage in run.stages.items():
        yield {
            "name": name,
            "state": stage.state.value,
            "calls": _calls(stage),
            "time": "" if stage.seconds is None else duration(stage.seconds),
            "outcome": _outcome(run, name, stage),
        }


def _calls(stage: StageStatus) -> str:
    if not stage.calls or stage.state is StageState.WAITING:
        return ""
    return str(stage.calls) if stage.ended == stage.calls else f"{stage.ended} of {stage.calls}"


def _outcome(run: Run, name: str, stage: StageStatus) -> str:
    if stage.cause:
        return stage.cause
    if name in run.searches:
        best = run.searches[name].summary()["best"]
        return f"best trial {best['trial']}" if best else ""
    return result_text(stage.result) if stage.state is StageState.DONE and stage.result is not None else ""


def _searches(run: Run, graph: Graph, clock: float | None) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, summary in run.summaries(clock).items():
        own = graph.subgraph(v for v, data in graph.nodes(data=True) if data.get("search") == name)
        found = search_report(run.searches[name], summary, own, clock, run.asha[name])
        if found["begun"]:
            found["methods"] = methods_text(run, name, summary)
        yield name, found
