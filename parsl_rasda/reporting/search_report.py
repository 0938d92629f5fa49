"""What the report shows of one search: figures, best configuration, charts, rungs, every trial."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import networkx as nx
import yaml

from parsl_rasda.orchestration.replay import ReplayedSearch
from parsl_rasda.orchestration.run_names import all_records
from parsl_rasda.orchestration.summary import NOT_TRIED
from parsl_rasda.reporting.asha import AshaComparison, asha_lines
from parsl_rasda.reporting.best_so_far import Line, best_charts, best_so_far, other_of_best
from parsl_rasda.reporting.charts import (
    METRICS,
    NARROW,
    WIDTH,
    Chart,
    Summary,
    count_far_off,
    hyperparameters,
    learning_curves,
)
from parsl_rasda.reporting.confirmation_table import (
    COLUMNS,
    confirmation_notes,
    confirmation_rows,
    confirmation_sentence,
)
from parsl_rasda.reporting.fault_timeline import fault_timeline
from parsl_rasda.reporting.format import counted, duration, metrics_text, number, other_metrics, percent
from parsl_rasda.reporting.front_chart import front_chart
from parsl_rasda.reporting.gantt import slots_over_time
from parsl_rasda.reporting.importance import importance_of
from parsl_rasda.reporting.occupancy import Occupancy, occupancy_of
from parsl_rasda.reporting.parallel import parallel_coordinates
from parsl_rasda.reporting.tables import agreement_lines, batches_text, exactness, noise_text, troubles
from parsl_rasda.search.space import Parameter, SearchSpace
from parsl_rasda.types import Mode, TrialState

Graph: TypeAlias = "nx.DiGraph[str]"

_DECISIONS = ("continue", "pause", "stopped", "failed", "completed")
_MOST_SHAPES = 20_000  # of the panels: 2 MB
_BAR_REM = 7  # the longest bar of the ladder


class Figure(NamedTuple):
    """What people ask for first, with the exact number of the JSON document and what explains it."""

    name: str
    key: str
    exact: Any  # a JSON value
    text: str
    more: str


def search_report(
    history: ReplayedSearch,
    summary: Summary,
    graph: Graph,
    clock: float | None,
    asha: AshaComparison | None = None,
) -> dict[str, Any]:  # Any: whatever the template `search.html` shows
    """Return everything about a search; one that has not begun says so.

    Args:
        history: Its records.
        summary: Its JSON document.
        graph: Its vertices in the graph of the run.
        clock: Present time [s] while somebody runs it, else None.
        asha: The search beside ASHA, if there is something to compare.
    """
    if not history.records:
        state = summary["state"] if summary["cause"] else "has not begun"
        return {"summary": summary, "begun": False, "state": state}
    occupancy = occupancy_of(all_records(history.records))
    span_s = occupancy.close(clock)
    whole = SearchSpace.from_mapping(history.tune.search_space)
    space, best = whole.parameters, summary["best"]
    importance = importance_of(summary, whole)
    order = list(importance.shares) if importance else []
    sign = 1 if summary["mode"] == Mode.MIN else -1
    return {
        "summary": summary,
        "begun": True,
        "state": summary["state"],
        "states": [s.value for s in TrialState if summary["trials"].get(s)],
        "figures": [*_figures(summary)],
        "best_config": yaml.safe_dump(best["config"], sort_keys=False, allow_unicode=True) if best else "",
        "troubles": [text for name, text in troubles(summary) if name != "cause"],
        "exactness": [": ".join(filter(None, line)) for line in exactness(summary)],
        "curves": {name: drawn for name in curve_names(summary) if (drawn := learning_curves(summary, name))},
        "narrow_curves": {
            name: drawn
            for name in curve_names(summary)
            if (drawn := learning_curves(summary, name, width=NARROW))
        },
        "far_off": count_far_off(summary),
        "best_so_far": _best_so_far(history, summary),
        "fault_timeline": _both(lambda width: fault_timeline(history.records, width=width)),
        "importance": importance,
        "front": _both(lambda width: front_chart(summary, width=width)),
        "parallel": _both(lambda width: parallel_coordinates(summary, space, order, width=width)),
        "slots": slots_charts(summary, occupancy, span_s, asha),
        "narrow_slots": slots_charts(summary, occupancy, span_s, asha, width=NARROW),
        "asha": () if asha is None else asha_lines(asha.document, summary["makespan_s"]),
        "is_resumed": bool(occupancy.resumed),
        "rungs": [*_rungs(summary, graph)],
        "agreement": [*agreement_lines(summary)],
        "confirmed": _confirmed(summary),
        "panels": _panels(summary, space),
        "others": curve_names(summary)[1:],
        "settings": list(dict.fromkeys(key for t in summary["trial_list"] for key in t["config"])),
        "trials": sorted(summary["trial_list"], key=lambda t: _rank(t, sign)),
    }


def _confirmed(summary: Summary) -> dict[str, Any] | None:
    if (found := summary.get("confirm")) is None:
        return None
    lines = [confirmation_sentence(found), *confirmation_notes(found)]
    return {"columns": COLUMNS, "rows": [*confirmation_rows(found)], "lines": lines}


def _best_so_far(history: ReplayedSearch, summary: Summary) -> dict[str, list[Chart]]:
    """Return the charts of the best so far for each metric: of others than the judged one, the best's."""
    judged, kind = summary["metric"], summary.get("slot_kind", "GPUs")
    points = best_so_far(history.records, judged, summary["mode"])
    found = {judged: best_charts([Line("this run", "best", points)], judged, summary["mode"], kind)}
    for name in curve_names(summary)[1:]:
        found[name] = best_charts([Line("this run", "best", other_of_best(points, name))], name, None, kind)
    return {name: charts for name, charts in found.items() if charts}


def _panels(summary: Summary, space: Mapping[str, Parameter]) -> dict[str, list[Chart]]:
    """Return the charts of the hyperparameters for each metric, as far as a page should grow by them."""
    found: dict[str, list[Chart]] = {}
    shapes = 0
    for name in curve_names(summary):
        charts = hyperparameters(summary, space, name)
        shapes += sum(len(drawn.shapes) for drawn in charts)
        if charts and (not found or shapes <= _MOST_SHAPES):
            found[name] = charts
    return found


def _both(draw: Callable[[int], Chart | None]) -> tuple[Chart, Chart] | None:
    """Return a chart for wide windows and one for narrow ones; None if there is nothing to draw."""
    wide, narrow = draw(WIDTH), draw(NARROW)
    return None if wide is None or narrow is None else (wide, narrow)


def slots_charts(
    summary: Summary,
    occupancy: Occupancy,
    span_s: float,
    asha: AshaComparison | None,
    *,
    width: int = WIDTH,
) -> list[Chart]:
    """Return who held which slots when; beside ASHA a second chart of it, on the same time axis.

    Args:
        summary: The JSON document of the search.
        occupancy: Who held what; closed.
        span_s: How long the search has taken [s].
        asha: The search beside ASHA, if there is something to compare.
        width: Of each [px].
    """
    both = [(summary, occupancy)]
    if asha is not None:
        both.append((asha.summary, asha.occupancy))
        span_s = max(span_s, asha.document["makespan_s"])
    charts = (slots_over_time(*one, span_s, width=width) for one in both)
    return [drawn for drawn in charts if drawn is not None]


def curve_names(summary: Summary) -> list[str]:
    """Return the metrics whose curves are drawn, the one that trials are judged by first."""
    return [summary["metric"], *other_metrics(summary)][:METRICS]


def _figures(summary: Summary) -> Iterator[Figure]:
    for name, key, text, more in _facts(summary):
        exact: Any = summary
        for part in key.split("."):
            exact = exact[part]
        yield Figure(name, key, exact, text, more)


def _facts(summary: Summary) -> Iterator[tuple[str, str, str, str]]:
    best, trials, restarts = summary["best"], summary["trials"], summary["restarts"]
    if best:
        where = f"trial {best['trial']} at epoch {best['epoch']}"
        if others := metrics_text(best.get("metrics", {}), but=summary["metric"]):
            where += f"; {others}"
        yield f"best {summary['metric']}", "best.metric", number(best["metric"]), where
        if test := best.get("test"):
            yield f"test {test['metric']}", "best.test.value", number(test["value"]), f"trial {best['trial']}"
    shown = (*TrialState, NOT_TRIED)
    states = ", ".join(f"{trials[s]} {s.replace('_', ' ')}" for s in shown if trials.get(s))
    yield "trials", "trials.total", str(trials["total"]), states
    yield "makespan", "makespan_s", duration(summary["makespan_s"]), ""
    if asha := summary["asha"]:
        same = "to the same best; " if asha["same_best"] else ""
        more = f"{same}{asha['speedup']:.2f} x this run's; rehearsed"
        yield "makespan of ASHA", "asha.makespan_s", duration(asha["makespan_s"]), more
    yield (
        f"{summary.get('slot_kind', 'GPUs').removesuffix('s')}-hours",
        "gpu_hours",
        f"{summary['gpu_hours']:.3g}",
        "held by pilots",
    )
    if (energy := summary["energy"])["kwh"] is not None:
        parts = [f"{state} {kwh:.3g}" for state, kwh in energy["by_outcome"].items()]
        missing = energy["jobs"] - energy["jobs_metered"]
        unknown = [f"{missing} of {counted(energy['jobs'], 'job')} not metered"] if missing else []
        yield "energy", "energy.kwh", f"{energy['kwh']:.3g} kWh", "; ".join([", ".join(parts), *unknown])
    busy = percent(summary["gpu_busy_fraction"])
    yield "busy share", "gpu_busy_fraction", busy, "of GPU time inside epochs"
    repeated = summary["repeated_epochs"]
    again = f"{repeated} of them repeated after a loss" if repeated else ""
    yield "epochs", "epochs", str(summary["epochs"]), again
    times = f"median {duration(restarts['median_s'])}, longest {duration(restarts['max_s'])}"
    yield "restarts", "restarts.count", str(restarts["count"]), times if restarts["count"] else ""
    preempted = summary["faults"]["preemptions"]
    free = f"and {counted(preempted, 'preemption')}, at no cost in retries" if preempted else ""
    yield "faults", "faults.count", str(summary["faults"]["count"]), free


def _rungs(summary: Summary, graph: Graph) -> Iterator[dict[str, Any]]:
    """Yield the ladder: how many trials came to a rung, what became of them, and where the line was drawn."""
    most = max([1, *(r["reached"] for r in summary["rungs"])])
    bracket = {trial["trial"]: trial["bracket"] for trial in summary["trial_list"]}
    best_of, worst_of = (min, max) if summary["mode"] == Mode.MIN else (max, min)
    for rung in summary["rungs"]:
        here: dict[str, list[float]] = {}
        for _, data in graph.nodes(data=True):
            is_judged = data["rung"] == rung["rung"] >= (bracket.get(data.get("trial")) or 0)
            if is_judged and isinstance(data["metric"], float):
                here.setdefault(data["decision"], []).append(data["metric"])
        yield {
            **rung,
            "bar_rem": _BAR_REM * rung["reached"] / most,
            "counts": [len(here.get(decision, ())) for decision in _DECISIONS],
            "best": number(rung["best"]),
            "batches": batches_text(rung),
            "noise_scale": noise_text(rung),
            "last_to_go_on": number(worst_of(here["continue"])) if "continue" in here else "",
            "best_stopped": number(best_of(here["stopped"])) if "stopped" in here else "",
        }


def _rank(trial: Summary, sign: int) -> tuple[bool, int, bool, float]:
    """Return a sort key: trials that trained longest and best come first, failed ones last."""
    metric = trial["metric"]
    failed = trial["state"] == TrialState.FAILED
    return failed, -trial["epoch"], metric is None, sign * (metric or 0.0)
