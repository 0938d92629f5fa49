"""Writes the files of a report: the page, two tables, best.json, summary.txt, the graph, and ASHA's chart."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from parsl_rasda.atomic_files import replace_file
from parsl_rasda.orchestration.curves import Curves
from parsl_rasda.plain_text import printable
from parsl_rasda.reporting.asha_picture import asha_picture
from parsl_rasda.reporting.format import moment, other_metrics, plain_json
from parsl_rasda.reporting.graph import graphml, mermaid, run_graph
from parsl_rasda.reporting.graph_svg import svg
from parsl_rasda.reporting.html import page
from parsl_rasda.reporting.overview import run_view
from parsl_rasda.reporting.runs import Run
from parsl_rasda.reporting.tables import as_text

COLUMNS = ("trial", "state", "epochs", "metric", "replicas", "attempts", "began", "ended", "reason")
LONG_COLUMNS = ("trial", "epoch", "metric", "value", "at", "seconds")


def write_report(run: Run) -> tuple[Path, ...]:
    """Write page, graph and summary of a run, and what belongs to each search beside its journal.

    That is results, best trial, and GPU charts beside those of ASHA.

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
        best = {key: summary[key] for key in ("study", "state", "metric", "mode", "best", "front", "confirm")}
        contents |= tables(run, stage, summary)
        if (asha := run.asha[stage]) is not None:
            contents[folder / "asha.svg"] = asha_picture(run.searches[stage], summary, asha)
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


def tables(run: Run, stage: str, summary: Mapping[str, Any]) -> dict[Path, str]:
    """Return the tables of a search: a row a trial, and the long form with every metric of every epoch."""
    folder, curves = run.directories[stage], run.searches[stage].curves
    long = metrics_csv(curves) if curves is not None else ""
    return {folder / "results.csv": results_csv(summary), folder / "metrics.csv": long}


def results_csv(summary: Mapping[str, Any]) -> str:
    """Return one row per trial, with what it reported last and its configuration.

    A setting that is named like a column becomes ``config.<key>``, a metric ``metrics.<name>``. With brackets
    there is ``bracket``, with several metrics or limits ``is_front``, with limits ``violation``: by how much
    a trial breaks all of them together.
    """
    trials = summary["trial_list"]
    further = _further_columns(summary)
    columns = [*COLUMNS, *further]
    keys = list(dict.fromkeys(key for t in trials for key in t["config"]))
    settings = {key: f"config.{key}" if key in columns else key for key in keys}
    metrics = {
        name: f"metrics.{name}" if name in columns or name in settings else name
        for name in other_metrics(summary)
    }
    output = io.StringIO()
    rows = csv.DictWriter(output, [*columns, *metrics.values(), *settings.values()], lineterminator="\n")
    rows.writeheader()
    for t in trials:
        facts = {**t, "epochs": t["epoch"], "began": moment(t.get("began")), "ended": moment(t.get("ended"))}
        row = {column: facts[column] for column in COLUMNS} | {key: of(t) for key, of in further.items()}
        row |= {metrics[name]: value for name, value in t.get("metrics", {}).items() if name in metrics}
        rows.writerow({**row, **{settings[k]: _cell(v) for k, v in t["config"].items()}})
    return printable(output.getvalue())


def _further_columns(summary: Mapping[str, Any]) -> dict[str, Callable[[Mapping[str, Any]], Any]]:
    """Return columns that only some searches have, with what a trial has there."""
    found: dict[str, Callable[[Mapping[str, Any]], Any]] = {}
    trials, front = summary["trial_list"], {one["trial"] for one in summary.get("front", ())}
    if summary.get("brackets"):
        found["bracket"] = lambda trial: trial["bracket"]
    if any("values" in trial for trial in trials):
        found["is_front"] = lambda trial: trial["trial"] in front
    if any(trial.get("violations") for trial in trials):
        found["violation"] = lambda trial: _violation(trial["violations"])
    return found


def _violation(violations: Sequence[float] | None) -> float | None:
    return None if violations is None else sum(max(0.0, each) for each in violations)


def metrics_csv(curves: Curves) -> str:
    """Return the long form: one row for each metric of each epoch of each trial."""
    output = io.StringIO()
    rows = csv.writer(output, lineterminator="\n")
    rows.writerow(LONG_COLUMNS)
    for trial, curve in curves.trials.items():
        for epoch, point in curve.epochs:
            at = moment(point.at)
            for place, metrics in point.steps:
                rows.writerows((trial, place, name, v, at, "") for name, v in metrics.items())
            rows.writerows((trial, epoch, name, v, at, point.seconds) for name, v in point.metrics.items())
    return printable(output.getvalue())


def _cell(value: Any) -> Any:  # Any: a JSON value
    return value if value is None or isinstance(value, int | float | str) else json.dumps(value)
