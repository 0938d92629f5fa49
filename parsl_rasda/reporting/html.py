"""A run as one page that needs nothing else: no network, no server, any browser.

What it says is what `status --json` says; the pictures are drawn from the same journals. It tells the
truth about a run in any state, and stays a few megabytes at a thousand trials.
"""

from __future__ import annotations

import base64
import hashlib
import time
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.resources import files
from typing import TypeAlias

import networkx as nx

from parsl_rasda.reporting.format import duration
from parsl_rasda.reporting.graph import run_graph
from parsl_rasda.reporting.graph_svg import svg
from parsl_rasda.reporting.markup import Child, Markup, copied, element, join, state_word, table
from parsl_rasda.reporting.overview import advice_on
from parsl_rasda.reporting.runs import Run, Standing
from parsl_rasda.reporting.search_report import search_section
from parsl_rasda.reporting.tables import finding
from parsl_rasda.study import dump_study
from parsl_rasda.types import StageState

Graph: TypeAlias = "nx.DiGraph[str]"


def page(run: Run, graph: Graph | None = None, now: float | None = None) -> str:
    """Return the report of a run.

    Args:
        run: The run.
        graph: Its graph, if it is known already.
        now: Present time [s], by default the clock's; it counts while somebody runs the study.
    """
    whole = run_graph(run) if graph is None else graph
    is_one_search = len(run.study.stages) == len(run.searches) == 1
    header = _header(run, is_one_search=is_one_search)
    searches = _searches(run, whole, now, is_one_search=is_one_search)
    body = join(header, *searches, _graph(whole), _study(run), _footer(run))
    title = f"{run.study.name}: {_state(run).replace('_', ' ')}"
    return f"<!DOCTYPE html>\n{_document(title, body)}\n"


def _document(title: str, body: Markup) -> Markup:
    """Return the whole page; only our script may run, and nothing may be loaded from anywhere."""
    style, script = (_resource(f"report.{kind}") for kind in ("css", "js"))
    checksum = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{checksum}'"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", style),
    )
    told = element("div", id="told", hidden="hidden")
    return element("html", head, element("body", body, told, element("script", script)), lang="en")


def _resource(name: str) -> Markup:
    return Markup((files("parsl_rasda.reporting") / "page" / name).read_text("utf-8"))


def _state(run: Run) -> str:
    begun = any(stage.state is not StageState.WAITING for stage in run.stages.values())
    return run.state.value if begun else "has not begun"


def _header(run: Run, *, is_one_search: bool) -> Markup:
    """Return name, state and stages; a search that is all there is tells its state itself."""
    parts: list[Child] = [element("h1", run.study.name)]
    if not is_one_search:
        parts += [element("p", state_word(_state(run)), class_="lead"), _stages(run)]
    advice = advice_on(run)
    parts += [element("p", advice, class_="note")] if advice else []
    if len(run.searches) > 1:
        links = (element("a", f"Search {n}", href=f"#search-{i}") for i, n in enumerate(run.searches))
        parts.append(element("nav", *links))
    return element("header", *parts)


def _stages(run: Run) -> Markup:
    rows = []
    for name, stage in run.stages.items():
        took = "" if stage.seconds is None else duration(stage.seconds)
        cells = (name, state_word(stage.state.value), _calls(stage), took)
        told = element("td", _came_of(run, name, stage), class_="cause")
        rows.append(element("tr", *(element("td", cell) for cell in cells), told))
    names = ("stage", "state", "calls", "time", "what came of it")
    return element("div", table(names, rows), class_="wide")


def _calls(stage: Standing) -> str:
    if not stage.calls or stage.state is StageState.WAITING:
        return ""
    return str(stage.calls) if stage.ended == stage.calls else f"{stage.ended} of {stage.calls}"


def _came_of(run: Run, name: str, stage: Standing) -> str:
    if stage.cause:
        return stage.cause
    if name in run.searches:
        best = run.searches[name].summary()["best"]
        return f"best trial {best['trial']}" if best else ""
    return finding(stage.result) if stage.state is StageState.DONE and stage.result is not None else ""


def _searches(run: Run, graph: Graph, now: float | None, *, is_one_search: bool) -> list[Markup]:
    clock = (time.time() if now is None else now) if run.controller else None
    sections = []
    for i, (name, summary) in enumerate(run.summaries(clock).items()):
        own = graph.subgraph(v for v, data in graph.nodes(data=True) if data.get("search") == name)
        heading = None if is_one_search else element("h2", f"Search {name}")
        section = search_section(run.searches[name], summary, own, clock)
        sections.append(element("section", heading, section, id=f"search-{i}"))
    return sections


def _graph(graph: Graph) -> Markup | None:
    if not graph:
        return None
    note = "Stages, and each stretch of training that was decided on. graph.graphml has all facts of each."
    picture = element("div", Markup(svg(graph)), class_="wide graph")
    return join(element("h2", "Unfolded graph"), element("p", note, class_="note"), picture)


def _study(run: Run) -> Markup:
    sites = ", ".join(site.name for site in run.sites)
    shown = element("summary", f"study.yaml{f', on {sites}' if sites else ''}")
    return join(element("h2", "What was run"), element("details", shown, copied(dump_study(run.study))))


def _footer(run: Run) -> Markup:
    last = max((h.usage.last_at for h in run.searches.values()), default=0.0)
    at = f"; last event {datetime.fromtimestamp(last, UTC):%Y-%m-%d %H:%M:%S} UTC" if last else ""
    return element("footer", f"{run.directory.absolute()}{at}; parsl_rasda {version('parsl_rasda')}")
