"""Writes the files of a report: report.html, results.csv, best.json, summary.txt and the graph."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from parsl_rasda.atomic_files import replace_file
from parsl_rasda.plain_text import printable
from parsl_rasda.reporting.format import plain_json
from parsl_rasda.reporting.graph import graphml, mermaid, run_graph
from parsl_rasda.reporting.graph_svg import svg
from parsl_rasda.reporting.html import page
from parsl_rasda.reporting.overview import run_view
from parsl_rasda.reporting.runs import Run
from parsl_rasda.reporting.tables import as_text

COLUMNS = ("trial", "state", "epochs", "metric", "replicas", "attempts", "reason")


def write_report(run: Run) -> tuple[Path, ...]:
    """Write page, graph and summary of a run, results and best trial of each search beside its journal.

    Returns:
        The files.
    """
    graph = run_graph(run)
    contents = {
        run.directory / "report.html": page(run, graph),
        run.directory / "graph.graphml": graphml(graph),
        run.directory / "graph.mmd": mermaid(graph),
        run.directory / "graph.svg": svg(graph),
    }
    for stage, summary in run.summaries().items():
        folder = run.directories[stage]
        folder.mkdir(exist_ok=True)  # a search that has not begun has none
        best = {key: summary[key] for key in ("study", "state", "metric", "mode", "best")}
        contents[folder / "results.csv"] = results_csv(summary)
        contents[folder / "best.json"] = json.dumps(plain_json(best), indent=2, allow_nan=False) + "\n"
    contents[run.directory / "summary.txt"] = as_text(run_view(run))
    for file, content in contents.items():
        replace_file(file, content)
    return tuple(contents)


def write_page(run: Run) -> Path:
    """Write report.html of a run, and return it."""
    file = run.directory / "report.html"
    replace_file(file, page(run))
    return file


def results_csv(summary: Mapping[str, Any]) -> str:
    """Return one row per trial; a configuration's key that is also a column becomes ``config.<key>``."""
    trials = summary["trial_list"]
    keys = list(dict.fromkeys(key for t in trials for key in t["config"]))
    names = {key: f"config.{key}" if key in COLUMNS else key for key in keys}
    output = io.StringIO()
    rows = csv.DictWriter(output, [*COLUMNS, *names.values()], lineterminator="\n")
    rows.writeheader()
    for t in trials:
        facts = {**t, "epochs": t["epoch"]}
        row = {column: facts[column] for column in COLUMNS}
        rows.writerow({**row, **{names[k]: _cell(v) for k, v in t["config"].items()}})
    return printable(output.getvalue())


def _cell(value: Any) -> Any:  # Any: a JSON value
    return value if value is None or isinstance(value, int | float | str) else json.dumps(value)
