"""Several runs side by side: what they came to, with what, and the best of each so far, in one chart."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from parsl_rasda.errors import InvalidSettingError
from parsl_rasda.reporting.best_so_far import Line, best_charts, best_so_far
from parsl_rasda.reporting.format import counted, duration, number, percent, value_text
from parsl_rasda.reporting.html import resource
from parsl_rasda.reporting.runs import Run
from parsl_rasda.reporting.templates import render

MOST = 8  # runs, for which there are colours


class Compared(NamedTuple):
    """A search of a run."""

    name: str
    class_: str
    run: Run
    stage: str
    summary: Mapping[str, Any]


def compared(runs: Sequence[Run]) -> list[Compared]:
    """Return the searches of runs that have begun, with a name for each that tells them apart.

    Raises:
        InvalidSettingError: If there are none, too many, or they are judged by other metrics.
    """
    names = _short_names([run.directory for run in runs])
    found = [
        (f"{name} {stage}" if len(run.searches) > 1 else name, run, stage, summary)
        for name, run in zip(names, runs, strict=True)
        for stage, summary in run.summaries().items()
        if run.searches[stage].records
    ]
    if not 1 <= len(found) <= MOST:
        raise InvalidSettingError("runs", f"{len(found)} searches that have begun", f"1 to {MOST} to compare")
    judged = {(summary["metric"], summary["mode"]) for *_, summary in found}
    if len(judged) > 1:
        said = ", ".join(f"{metric} ({mode})" for metric, mode in sorted(judged))
        raise InvalidSettingError("runs", f"searches judged by {said}", "one metric and mode for all")
    return [Compared(one[0], f"run-{i}", *one[1:]) for i, one in enumerate(found)]


def comparison(runs: Sequence[Run]) -> str:
    """Return the page that compares runs.

    Raises:
        InvalidSettingError: If they cannot be compared.
    """
    found = compared(runs)
    metric, mode = found[0].summary["metric"], found[0].summary["mode"]
    lines = [
        Line(c.name, c.class_, best_so_far(c.run.searches[c.stage].records, metric, mode)) for c in found
    ]
    kinds = {c.run.slot_kind for c in found}
    charts = best_charts(lines, metric, mode, kinds.pop() if len(kinds) == 1 else "slots")
    script = resource("report.js")
    return render(
        "compare.html",
        runs=found,
        rows=list(_rows(found)),
        settings=list(_settings(found)),
        charts=charts,
        metric=metric,
        version=version("parsl_rasda"),
        style=resource("report.css"),
        script=script,
        script_sha256=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _short_names(paths: Sequence[Path]) -> list[str]:
    names = [path.resolve().name for path in paths]
    return names if len({*names}) == len(names) else [str(path) for path in paths]


def _rows(found: Sequence[Compared]) -> Iterator[tuple[str, list[str]]]:
    """Yield name and cells of each fact."""
    summaries = [c.summary for c in found]
    best = [s["best"] for s in summaries]
    yield "study", [c.run.study.name for c in found]
    yield "state", [s["state"].replace("_", " ") for s in summaries]
    yield f"best {summaries[0]['metric']}", [number(b["metric"]) if b else "-" for b in best]
    yield "best trial", [f"{b['trial']} at epoch {b['epoch']}" if b else "-" for b in best]
    yield "scheduler", [_scheduler(c) for c in found]
    yield "searcher", [_tune(c).searcher.kind for c in found]
    yield "seed", [str(c.run.study.seed) for c in found]
    yield "trials", [str(s["trials"]["total"]) for s in summaries]
    for state in ("completed", "stopped", "failed"):
        yield state, [str(s["trials"][state]) for s in summaries]
    yield "makespan", [duration(s["makespan_s"]) for s in summaries]
    yield "makespan of ASHA, rehearsed", [duration(s["asha"] and s["asha"]["makespan_s"]) for s in summaries]
    yield "held", [_held(c) for c in found]
    yield "busy share", [percent(s["gpu_busy_fraction"]) for s in summaries]
    yield "epochs", [str(s["epochs"]) for s in summaries]
    yield "restarts", [str(s["restarts"]["count"]) for s in summaries]
    yield "faults", [counted(s["faults"]["count"], "fault") for s in summaries]
    yield "parsl_rasda", [c.run.searches[c.stage].version or "of before 0.2" for c in found]


def _settings(found: Sequence[Compared]) -> Iterator[tuple[str, list[str]]]:
    """Yield each hyperparameter of the best configurations."""
    configs = [(c.summary["best"] or {"config": {}})["config"] for c in found]
    for name in dict.fromkeys(name for config in configs for name in config):
        yield name, [value_text(config[name]) if name in config else "-" for config in configs]


def _held(one: Compared) -> str:
    return f"{one.summary['gpu_hours']:.3g} {one.run.slot_kind.removesuffix('s')}-hours"


def _tune(one: Compared) -> Any:  # a TuneSpec
    return one.run.study.tune_stages[one.stage].tune


def _scheduler(one: Compared) -> str:
    method = _tune(one).scheduler
    return f"{method.kind}, {method.variant}, max_t {method.max_t}"
