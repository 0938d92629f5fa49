"""One search as a section of the report: figures, best configuration, pictures, rungs, every trial."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import networkx as nx
import yaml

from parsl_rasda.orchestration.replay import ReplayedSearch
from parsl_rasda.reporting.charts import PANELS, Summary, beyond, hyperparameters, learning_curves
from parsl_rasda.reporting.format import counted, duration, number, setting, share
from parsl_rasda.reporting.gantt import slots_over_time
from parsl_rasda.reporting.markup import Child, Markup, chapter, copied, element, state_word, table
from parsl_rasda.reporting.occupancy import Occupancy, occupancy_of
from parsl_rasda.reporting.tables import troubles
from parsl_rasda.search.space import SearchSpace
from parsl_rasda.study import TuneSpec
from parsl_rasda.types import Mode, TrialState

Graph: TypeAlias = "nx.DiGraph[str]"
Fact: TypeAlias = tuple[str, str, str, str]  # name, key in the JSON document, words, and what explains them

_MANY = 100  # trials from which lines become thin
_LONG = 28  # letters of a setting that may break into lines
_LADDER = (
    *("rung", "epochs", "replicas", "came", "", "went on", "paused", "stopped", "failed", "completed"),
    *("best", "last to go on", "best stopped"),
)


def search_section(history: ReplayedSearch, summary: Summary, graph: Graph, clock: float | None) -> Markup:
    """Return everything about a search; one that has not begun says so.

    Args:
        history: Its records.
        summary: Its JSON document.
        graph: Its vertices in the graph of the run.
        clock: Present time [s] while somebody runs it, else None.
    """
    begun = bool(history.records)
    state = summary["state"] if begun or summary["cause"] else "has not begun"
    after = f" after {duration(summary['makespan_s'])}" if summary["makespan_s"] else ""
    why = f": {summary['cause']}" if summary["cause"] else ""
    lead = element("p", state_word(state), f"{after}{why}", class_="lead")
    many = "many" if len(summary["trial_list"]) > _MANY else None
    parts = _parts(history, summary, graph, clock) if begun else ()
    return element("div", lead, *parts, class_=many)


def _parts(
    history: ReplayedSearch, summary: Summary, graph: Graph, clock: float | None
) -> Iterator[Markup | None]:
    yield _figures(summary)
    yield _best(summary)
    yield _troubles(summary)
    yield _curves(summary)
    occupancy = occupancy_of(history.records)
    yield _slots(summary, occupancy, occupancy.close(clock))
    yield _rungs(summary, graph)
    yield _parameters(summary, history.tune)
    yield _trials(summary)


def _figures(summary: Summary) -> Markup:
    """Return what people ask for first, each with the exact number of the JSON document."""
    tiles = []
    for name, key, words, more in _facts(summary):
        exact: Any = summary
        for part in key.split("."):
            exact = exact[part]
        value = element("data", words, value=str(exact), data_key=key)
        tile = (element("dt", name), element("dd", value), element("dd", more, class_="more"))
        tiles.append(element("div", *tile))
    return element("dl", *tiles, class_="figures")


def _facts(summary: Summary) -> Iterator[Fact]:
    best, trials, restarts = summary["best"], summary["trials"], summary["restarts"]
    if best:
        where = f"trial {best['trial']} at epoch {best['epoch']}"
        yield f"best {summary['metric']}", "best.metric", number(best["metric"]), where
    states = ", ".join(f"{trials[s]} {s}" for s in TrialState if trials.get(s))
    yield "trials", "trials.total", str(trials["total"]), states
    yield "makespan", "makespan_s", duration(summary["makespan_s"]), ""
    yield "GPU-hours", "gpu_hours", f"{summary['gpu_hours']:.3g}", "held by pilots"
    yield "busy share", "gpu_busy_fraction", share(summary["gpu_busy_fraction"]), "of GPU time inside epochs"
    repeated = summary["repeated_epochs"]
    again = f"{repeated} of them repeated after a loss" if repeated else ""
    yield "epochs", "epochs", str(summary["epochs"]), again
    times = f"median {duration(restarts['median_s'])}, longest {duration(restarts['max_s'])}"
    yield "restarts", "restarts.count", str(restarts["count"]), times if restarts["count"] else ""
    preempted = summary["faults"]["preemptions"]
    free = f"and {counted(preempted, 'preemption')}, at no cost in retries" if preempted else ""
    yield "faults", "faults.count", str(summary["faults"]["count"]), free


def _best(summary: Summary) -> Markup | None:
    best = summary["best"]
    if not best:
        return None
    config = copied(yaml.safe_dump(best["config"], sort_keys=False, allow_unicode=True))
    checkpoint = copied(str(best["checkpoint"])) if best["checkpoint"] else None
    label = element("p", "Its checkpoint:", class_="note") if checkpoint else None
    return chapter(f"Best configuration (trial {best['trial']})", config, label, checkpoint)


def _troubles(summary: Summary) -> Markup | None:
    lines = [element("li", text) for name, text in troubles(summary) if name != "cause"]
    if not lines:
        return None
    return chapter("Faults and their causes", element("ul", *lines, class_="causes"))


def _curves(summary: Summary) -> Markup | None:
    picture = learning_curves(summary)
    if picture is None:
        return None
    far = beyond(summary)
    note = "Dashed lines are rungs, where trials are judged. A dot is a trial with a single result."
    note += f" {counted(far, 'result')} far off: drawn on the border." if far else ""
    return chapter("Learning curves", _legend(summary), element("div", picture, class_="wide"), note=note)


def _slots(summary: Summary, occupancy: Occupancy, span_s: float) -> Markup | None:
    picture = slots_over_time(summary, occupancy, span_s)
    if picture is None:
        return None
    legend = _legend(summary, ("starting", "starting or restarting"), ("held", "held and idle"))
    note = (
        "A row a GPU, a bar a job; a trial that widens gets a taller bar. "
        f"{share(summary['gpu_busy_fraction'])} of the GPU time held was spent inside epochs."
    )
    note += " At a dashed line the run was taken up again." if occupancy.resumed else ""
    return chapter("Who held which GPUs when", legend, element("div", picture, class_="wide"), note=note)


def _legend(summary: Summary, *more: tuple[str, str]) -> Markup:
    entries = [(s.value, s.value) for s in TrialState if summary["trials"].get(s)]
    entries += [("best", "best trial")] if summary["best"] else []
    items = (element("li", text, class_=name) for name, text in (*entries, *more))
    return element("ul", *items, class_="legend")


def _rungs(summary: Summary, graph: Graph) -> Markup:
    """Return the ladder: who came, what became of them there, and where the line was drawn."""
    most = max([1, *(r["reached"] for r in summary["rungs"])])
    rows = []
    for rung in summary["rungs"]:
        here: dict[str, list[float]] = {}
        for _, data in graph.nodes(data=True):
            if data["rung"] == rung["rung"]:
                metrics = here.setdefault(data["decision"], [])
                metrics += [data["metric"]] if isinstance(data["metric"], float) else []
        counts = (len(here.get(d, ())) for d in ("continue", "pause", "stopped", "failed", "completed"))
        bar = element("span", "", class_="bar", style=f"width: {7 * rung['reached'] / most:.2f}rem")
        ends = (_worst(here.get("continue"), summary["mode"]), _best_of(here.get("stopped"), summary["mode"]))
        facts = (rung["rung"], rung["epochs"], rung["replicas"], rung["reached"])
        cells: list[Child] = [*facts, bar, *counts, number(rung["best"]), *ends]
        rows.append(element("tr", *(element("td", c, class_=None if c is bar else "number") for c in cells)))
    note = (
        "A trial goes on if its metric is among the best at its rung so far: the line moves as more "
        "come, so the last to go on may be worse than the best stopped."
    )
    ladder = table(_LADDER, rows, numeric={*_LADDER} - {""})
    return chapter("Rungs", element("div", ladder, class_="wide"), note=note)


def _best_of(metrics: Sequence[float] | None, mode: str) -> str:
    return number((min if mode == Mode.MIN else max)(metrics)) if metrics else ""


def _worst(metrics: Sequence[float] | None, mode: str) -> str:
    return _best_of(metrics, Mode.MAX if mode == Mode.MIN else Mode.MIN)


def _parameters(summary: Summary, tune: TuneSpec) -> Markup | None:
    pictures = hyperparameters(summary, SearchSpace.from_mapping(tune.search_space).parameters)
    if not pictures:
        return None
    note = f"The last {summary['metric']} of each trial; larger dots have trained for longer."
    note += f" The first {PANELS} that vary are drawn." if len(pictures) == PANELS else ""
    panels = element("div", *pictures, class_="panels")
    return chapter("Hyperparameters", _legend(summary), panels, note=note)


def _trials(summary: Summary) -> Markup | None:
    """Return the table of all trials: those that trained longest and best first."""
    if not summary["trial_list"]:
        return None
    settings = list(dict.fromkeys(key for t in summary["trial_list"] for key in t["config"]))
    facts = ("trial", "state", "epochs", summary["metric"], "replicas", "attempts")
    best = summary["best"] and summary["best"]["trial"]
    sign = 1 if summary["mode"] == Mode.MIN else -1
    rows = []
    for trial in sorted(summary["trial_list"], key=lambda t: _rank(t, sign)):
        own = "best" if trial["trial"] == best else None
        rows.append(element("tr", *_cells(trial, settings), data_trial=trial["trial"], class_=own))
    whole = table((*facts, "reason", *settings), rows, numeric={*facts[2:]})
    note = element(
        "p", "A click on a heading sorts. results.csv has the same for other tools.", class_="note"
    )
    return chapter(f"All {counted(len(rows), 'trial')}", note, element("div", whole, class_="wide trials"))


def _rank(trial: Summary, sign: int) -> tuple[bool, int, bool, float]:
    metric = trial["metric"]
    failed = trial["state"] == TrialState.FAILED
    return failed, -trial["epoch"], metric is None, sign * (metric or 0.0)


def _cells(trial: Mapping[str, Any], settings: Sequence[str]) -> Iterator[Markup]:
    yield element("td", trial["trial"])
    yield element("td", state_word(trial["state"]))
    yield element("td", trial["epoch"], class_="number")
    metric = trial["metric"]
    words, exact = ("", "") if metric is None else (number(metric), repr(metric))
    yield element("td", words, class_="number", data_value=exact)
    yield element("td", trial["replicas"], class_="number")
    yield element("td", trial["attempts"], class_="number")
    yield element("td", trial["reason"], class_="cause")
    for name in settings:
        words = setting(trial["config"][name]) if name in trial["config"] else ""
        yield element("td", words, class_="long" if len(words) > _LONG else None)
