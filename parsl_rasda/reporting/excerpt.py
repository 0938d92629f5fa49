"""What a notebook shows of a search: its figures, its best trial and its learning curves."""

from __future__ import annotations

from importlib.resources import files

from parsl_rasda.reporting.graph import run_graph
from parsl_rasda.reporting.runs import Run
from parsl_rasda.reporting.search_report import search_report
from parsl_rasda.reporting.templates import render


def excerpt(run: Run, stage: str) -> str:
    """Return a piece of HTML that brings its own style and touches nothing of the page around it."""
    history = run.searches[stage]
    summary = run.summaries()[stage]
    found = search_report(history, summary, run_graph(run), None)
    style = (files("parsl_rasda.reporting") / "page" / "excerpt.css").read_text("utf-8")
    return render("excerpt.html", search=found, style=style, name=run.study.name, directory=run.directory)
