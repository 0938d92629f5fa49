"""The summary of a search as rich tables, printed in a terminal or into a file."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from parsl_rasda.orchestration.summary import NOT_TRIED
from parsl_rasda.plain_text import printable
from parsl_rasda.reporting.asha import asha_lines
from parsl_rasda.reporting.confirmation_table import (
    COLUMNS,
    confirmation_notes,
    confirmation_rows,
    confirmation_sentence,
)
from parsl_rasda.reporting.format import (
    clock,
    config_text,
    counted,
    day_time,
    duration,
    metrics_text,
    number,
    other_metrics,
    percent,
    queue_words,
    truncated,
)
from parsl_rasda.types import StudyState, TrialState

_FINDINGS = 12  # values of a stage that are listed one by one
Summary: TypeAlias = Mapping[str, Any]
_ALL_NOISE, _NO_NOISE = "all noise", "-"
# What stands for a noise scale where there is none, and why.
NO_SCALE = {
    _ALL_NOISE: "at half of the trials the noise hides the gradient, whose estimated square is not above 0",
    _NO_NOISE: "no scale, because the estimated variance of the gradients is below 0",
}

STATE_STYLES = {
    "done": "bold green",
    "completed": "green",
    "running": "cyan",
    "waiting": "yellow",
    "paused": "yellow",
    "stopped": "dim",
    "interrupted": "bold yellow",
    "failed": "bold red",
    "no_site": "bold red",
}
_NAMED = 4  # trials and jobs that are named with a cause they share
_OTHERS = 3  # metrics that the trial table has beside the one that trials are judged by
_LISTED = 8  # failures and faults that a summary lists; the trial table has them all
_WIDE = 200  # columns of a text file
_ENDINGS = {
    StudyState.RUNNING: "running",
    StudyState.DONE: "done",
    StudyState.FAILED: "finished without a successful trial",
    StudyState.NO_SITE: "ended: no site or pilot could be had",
    StudyState.INTERRUPTED: "interrupted",
}
# Trials in a table: active ones first.
_ORDER = ("running", "waiting", "paused", "failed", "completed", "stopped")


def as_text(renderable: RenderableType, width: int = _WIDE) -> str:
    """Return what a terminal of so many columns would show, without colours."""
    console = console_of(file=io.StringIO(), width=width, color_system=None, legacy_windows=False)
    console.print(Harmless(renderable))
    written: io.StringIO = console.file  # type: ignore[assignment]  # the file given above
    return "\n".join(line.rstrip() for line in written.getvalue().splitlines()) + "\n"


def console_of(**settings: Any) -> Console:  # Any: what rich takes
    """Return a console that takes text as it is: brackets are no markup, and colons no pictures."""
    return Console(markup=False, emoji=False, **settings)


@dataclass(frozen=True, slots=True)
class Harmless:
    """A view in which text cannot control the terminal, whoever wrote it."""

    view: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield what the view yields, with control characters written out."""
        for segment in console.render(self.view, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


def summary_view(summary: Summary, name: str | None = None) -> RenderableType:
    """Return the outcome of a search, on about ten lines.

    Args:
        summary: The JSON document of a search.
        name: What to call it; its study's name by default.
    """
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for fact, text in _facts(summary):
        grid.add_row(fact, text)
    for trouble, text in troubles(summary):
        grid.add_row(Text(trouble, "bold red"), text)
    state, seconds = summary["state"], summary["makespan_s"]
    if summary["trial_list"] or summary["pilots"] or summary["awaited"] or seconds:
        words = _ENDINGS[StudyState(state)]
    else:
        words = "failed" if summary["cause"] else "has not begun"
    head = headline(name or summary["study"], state, words, seconds)
    head.append(missing(summary))
    return Group(head, Padding(grid, (0, 0, 0, 2)))


def missing(summary: Summary) -> str:
    """Return what is missing of a search that has ended, and how to get it, to end a line with."""
    trials, state = summary["trials"], summary["state"]
    left = trials["total"] - sum(trials[s] for s in TrialState if s.is_final)
    if state in {StudyState.RUNNING, StudyState.DONE} or not (left and summary["trial_list"]):
        return ""
    how = "mend it, then resume with --retry-failed" if state == StudyState.FAILED else "resume it"
    return f"; {left} of {counted(trials['total'], 'trial')} have not ended: {how}"


def headline(name: str, state: str, words: str, seconds: float = 0.0) -> Text:
    """Return the line above a view: its name, its state, and the time it took."""
    text = Text(f"{name}: ", "bold")
    text.append(words, STATE_STYLES.get(state, "bold"))
    if seconds:
        text.append(f" after {duration(seconds)}")
    return text


def result_text(value: Any) -> str:  # Any: whatever a user's function returned
    """Return the result of a stage: a few plain values on a line each, anything else truncated."""
    plain = isinstance(value, Mapping) and all(isinstance(v, str | int | float) for v in value.values())
    if not plain or len(value) > _FINDINGS:
        return truncated(value)
    width = max(len(str(key)) for key in value)
    return "\n".join(f"{key:<{width}}  {v if isinstance(v, str) else number(v)}" for key, v in value.items())


def rungs_view(rungs: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Return the ladder: how many trials have reached each rung, and the best there.

    Where the noise of gradients is known, also the batches of a step and the noise scale, in samples.
    """
    is_noise_known = any(r["noise_scale"]["trials"] for r in rungs)
    table = _table("rung", "epochs", "replicas", "trials", "best")
    for name in ("batches", "noise scale") if is_noise_known else ():
        table.add_column(name, justify="right")
    for r in rungs:
        best = number(r["best"]) if r["reached"] else ""
        noise = (batches_text(r), noise_text(r)) if is_noise_known else ()
        table.add_row(str(r["rung"]), str(r["epochs"]), str(r["replicas"]), str(r["reached"]), best, *noise)
    return table


def brackets_view(brackets: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Return how many trials each bracket has had, and the best that reached `max_t` there."""
    is_auto = any(b["agreement"] is not None for b in brackets)
    table = _table("bracket", "grace period", "trials", "completed", "best", *["agreement"] * is_auto)
    for b in brackets:
        best = "" if b["best"] is None else number(b["best"])
        cells = (str(b[key]) for key in ("bracket", "grace_period", "trials", "completed"))
        table.add_row(*cells, best, *[number(b["agreement"])] * is_auto)
    return table


def confirmation_view(confirm: Mapping[str, Any]) -> RenderableType:
    """Return the candidates of a confirmation with their means, and what else there is to say of them."""
    table = _table(*COLUMNS)
    for row in confirmation_rows(confirm):
        table.add_row(*row)
    return Group(table, *(Text(line) for line in confirmation_notes(confirm)))


def batches_text(rung: Mapping[str, Any]) -> str:
    """Return how many `batch_size` made a step on the way to a rung: the least and the most."""
    return "-".join(str(b) for b in sorted({*rung["batches"][:1], *rung["batches"][-1:]}))


def noise_text(rung: Mapping[str, Any]) -> str:
    """Return the noise scale at a rung: the median of the trials where it was measured."""
    found = rung["noise_scale"]
    if found["median"] is not None:
        return number(found["median"])
    return (_ALL_NOISE if found["hidden"] else _NO_NOISE) if found["trials"] else ""


def agreement_lines(summary: Summary) -> Iterator[str]:
    """Yield how far the rankings at neighbouring rungs agree, if that can be told."""
    found = summary["rank_agreement"]
    parts = [
        "{}-{} {:.2f} ({:.2f} to {:.2f}, {})".format(
            *pair["epochs"], pair["tau"], *pair["interval"], counted(pair["trials"], "trial")
        )
        for pair in found["rungs"]
    ]
    if parts:
        yield f"rank agreement of epochs, Kendall's tau-b with its 95 % interval: {'; '.join(parts)}"
    if found["sentence"]:
        yield found["sentence"]


def trials_view(summary: Summary, most: int | None = None, *, is_brief: bool = False) -> RenderableType:
    """Return the trials with the reason of each end, active ones first.

    Args:
        summary: The JSON document of a search.
        most: Rows at most.
        is_brief: Cut the reasons that do not fit into their line.
    """
    sign = -1.0 if summary.get("mode") == "max" else 1.0
    trials = sorted(summary["trial_list"], key=lambda t: _rank(t, sign))
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", expand=is_brief)
    for name in ("trial", "state"):
        table.add_column(name, no_wrap=True)
    others = other_metrics(summary)[:_OTHERS]
    slots = _slots(summary)
    has_brackets = bool(summary.get("brackets"))  # summaries of earlier versions have none
    for name in (
        *["bracket"] * has_brackets,
        "epoch",
        summary.get("metric", "metric"),
        *others,
        "replicas",
        slots,
        "tries",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    if is_brief:
        table.add_column("reason", overflow="ellipsis", no_wrap=True, ratio=1)
    else:
        table.add_column("reason", overflow="fold")
    for t in trials[:most]:
        table.add_row(
            t["trial"],
            Text(t["state"], STATE_STYLES.get(t["state"], "")),
            *[str(t["bracket"])] * has_brackets,
            str(t["epoch"]),
            number(t["metric"]),
            *(number(t.get("metrics", {}).get(name)) for name in others),
            str(t["replicas"]),
            str(t["width"] or ""),
            str(t["attempts"]),
            t["reason"],
        )
    rest = len(trials) - len(trials[:most])
    return Group(table, Text(f"and {rest} more: --json lists them all", "dim")) if rest else table


def status_view(
    summary: Summary, most: int | None = None, name: str | None = None, *, is_brief: bool = False
) -> RenderableType:
    """Return everything that people want to know about a search.

    Args:
        summary: Its JSON document.
        most: Trials listed at most.
        name: What to call it; its study's name by default.
        is_brief: Cut the reasons of trials that do not fit into their line; leave out the agreement of rungs.
    """
    parts = [summary_view(summary, name), Text(), rungs_view(summary["rungs"])]
    if summary.get("brackets"):
        parts += [Text(), brackets_view(summary["brackets"])]
    if confirm := summary.get("confirm"):
        parts += [Text(), confirmation_view(confirm)]
    if not is_brief:
        parts += [Text(line, "dim") for line in agreement_lines(summary)]
    if summary["trial_list"]:
        parts += [Text(), trials_view(summary, most, is_brief=is_brief)]
    return Group(*parts)


def _epochs_to_confirm(summary: Summary) -> int:
    found = summary.get("confirm")
    return sum(run["epoch"] for row in found["candidates"] for run in row["runs"]) if found else 0


def _best_in_words(best: Mapping[str, Any], metric: str) -> str:
    said = f"trial {best['trial']}: {metric} {number(best['metric'])} at epoch {best['epoch']}"
    last = best.get("last", best)  # summaries of earlier versions have none
    is_last = last["epoch"] == best["epoch"]
    return said if is_last else f"{said}, {number(last['metric'])} at its last, {last['epoch']}"


def _front(front: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield the trials of a front with all that they are judged by; of very many the first few."""
    for number_, one in enumerate(front[:_LISTED]):
        beyond = "" if one["keeps_limits"] else " (breaks a limit, as all do)"
        said = f"trial {one['trial']}: {metrics_text(one['values'])}{beyond}"
        yield "" if number_ else "front", said
    if len(front) > _LISTED:
        yield "", f"and {len(front) - _LISTED} more"


def _limits(summary: Summary) -> Iterator[tuple[str, str]]:
    """Yield why the search ended early, and what it has spent; summaries of earlier versions say neither."""
    if words := summary.get("stopped"):
        yield "stopped", words if words.startswith("budget: ") else f"{words} (stop_when)"
    if budget := summary.get("budget"):
        yield "budget", _budget_in_words(budget)
    if most := summary.get("at_most"):
        yield "at most", f"{counted(most, 'trial')} at a time"


def _budget_in_words(budget: Mapping[str, Any]) -> str:
    spent = {key: (part["spent"], part["limit"]) for key, part in budget.items() if key != "until"}
    words = [
        f"{duration(used)} of {duration(limit)}" if key == "wall_time_s" else f"{used:.3g} of {limit:g} {key}"
        for key, (used, limit) in spent.items()
    ]
    until = [f"until {day_time(budget['until'])}"] if "until" in budget else []
    return ", ".join([*words, *until]).replace("_hours", "-hours")


def _result(summary: Summary) -> Iterator[tuple[str, str | Text]]:
    """Yield what the search has found: its best trial, its front, and what a confirmation has come to."""
    best = summary["best"]
    if best is not None:
        metric = summary.get("metric", "metric")
        yield "best", _best_in_words(best, metric)
        if others := metrics_text(best.get("metrics", {}), but=metric):
            yield "", others
        if test := best.get("test"):
            yield "test", f"{test['metric']} {number(test['value'])}"
        yield "", config_text(best["config"])
        if best["checkpoint"]:
            yield "checkpoint", str(best["checkpoint"])
    yield from _front(summary.get("front", ()))
    if confirm := summary.get("confirm"):  # summaries of earlier versions have none
        yield "confirm", confirmation_sentence(confirm)


def _facts(summary: Summary) -> Iterator[tuple[str, str | Text]]:
    yield from _result(summary)
    yield "trials", _counts(summary["trials"])
    yield from _limits(summary)
    slots = _slots(summary)
    hours = f"{summary['gpu_hours']:.3g} {slots.removesuffix('s')}-hours"
    yield slots, f"{hours}, {percent(summary['gpu_busy_fraction'])} of them in epochs"
    restarts = summary["restarts"]
    words = f"{restarts['count']}"
    if restarts["count"]:
        words += f" (median {duration(restarts['median_s'])}, longest {duration(restarts['max_s'])})"
    repeated, confirming = summary["repeated_epochs"], _epochs_to_confirm(summary)
    yield "restarts", words
    yield (
        "epochs",
        f"{summary['epochs']}"
        + (f", {confirming} of them to confirm" if confirming else "")
        + (f", {repeated} of them repeated after a loss" if repeated else ""),
    )
    if asha := summary.get("asha"):  # summaries of earlier versions have none
        yield from zip(("ASHA", ""), asha_lines(asha, summary["makespan_s"]), strict=True)
    if preempted := summary["faults"]["preemptions"]:
        yield "preempted", f"{counted(preempted, 'attempt')}, taken up again at no cost in retries"
    if summary["state"] == StudyState.RUNNING:
        yield from _places(summary)
    yield from _codes(summary)
    yield from exactness(summary)
    for aside in summary.get("set_aside", ()):  # summaries of earlier versions have none
        again = f"tried again from {clock(aside['until'])} on"
        yield "set aside", f"{aside['name']}, {again}: {truncated(aside['cause'], 200)}"


def _slots(summary: Summary) -> str:
    """Return what slots are called; summaries of a search alone do not know."""
    return str(summary.get("slot_kind", "GPUs"))


def _codes(summary: Summary) -> Iterator[tuple[str, str]]:
    """Yield which trials have run which code, if not all have run the same."""
    ran = _by_cause(
        (code, trial["trial"]) for trial in summary["trial_list"] for code in trial.get("code", ())
    )
    if len(ran) > 1:
        yield "code", "changed in mid-search; " + "; ".join(f"{code}: {who}" for code, who in ran.items())


def exactness(summary: Summary) -> Iterator[tuple[str, str]]:
    """Yield whether the weights of trials are the same bits at any width, and which GPUs they ran on."""
    said = _by_cause((t["exact"], t["trial"]) for t in summary["trial_list"] if t.get("exact"))
    if len(said) == 1:
        yield "exact", next(iter(said))
    else:
        yield from _listed("exact", [f"{words}: trial {who}" for words, who in said.items()])
    kinds = _by_cause((name, t["trial"]) for t in summary["trial_list"] for name in t.get("devices", ()))
    if len(kinds) > 1:
        ran = "; ".join(f"{name}: {who}" for name, who in kinds.items())
        yield "GPU models", f"different ones, whose bits differ, so metrics differ by rounding: {ran}"


def _places(summary: Summary) -> Iterator[tuple[str, str | Text]]:
    if summary.get("left_s") is not None:  # summaries of earlier versions have none
        yield "time left", f"about {duration(summary['left_s'])}"
    for pilot in summary["pilots"]:
        yield "pilot", f"{pilot['pilot']}: {pilot['gpus']} {_slots(summary)} on {pilot['site']}"
    for pilot in summary["awaited"]:
        words = f"for a pilot of {pilot['site']}, since {clock(pilot['since'])}"
        if pilot.get("job") is None:  # summaries of earlier versions have none
            yield "waiting", words
            continue
        said = queue_words(*(pilot[key] for key in ("job", "state", "reason", "starts_at", "obstacle")))
        yield "waiting", Text(f"{words}: {said}", "bold red" if pilot["obstacle"] else "")
    for site in summary["resting"]:
        yield "cooling down", f"{site['site']}, which refused; asked again from {clock(site['until'])} on"


def _counts(trials: Mapping[str, int]) -> Text:
    text = Text(f"{trials['total']}")
    separator = ": "
    for state in (*_ORDER, NOT_TRIED):
        if trials.get(state):
            words = state.replace("_", " ")
            text.append(separator).append(f"{trials[state]} {words}", STATE_STYLES.get(state, ""))
            separator = ", "
    return text


def troubles(summary: Summary) -> Iterator[tuple[str, str]]:
    """Yield what went wrong: a name, unless it is the same as in the line before, and the cause."""
    failed = _by_cause(
        (t["reason"], t["trial"]) for t in summary["trial_list"] if t["state"] == TrialState.FAILED
    )
    if summary["cause"] and not failed:
        yield "cause", summary["cause"]
    yield from _listed("failed", [f"trial {who}: {truncated(reason, 200)}" for reason, who in failed.items()])
    faults = [f for f in summary["faults"]["list"] if f["cause"] not in failed]
    refused = {f["cause"] for f in faults if f.get("refusal")}  # summaries of earlier versions have none
    first = _by_cause((f["cause"], f["what"]) for f in faults if f["cause"] in refused)
    other = _by_cause((f["cause"], f["what"]) for f in faults if f["cause"] not in refused)
    lines = [f"{what}: {cause}" for cause, what in first.items()]  # in the scheduler's own words, uncut
    yield from _listed("faults", [*lines, *(f"{what}: {truncated(c, 200)}" for c, what in other.items())])


def _by_cause(found: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return cause -> the trials and jobs that had it: a mistake that all trials share is listed once."""
    met: dict[str, list[str]] = {}
    for cause, what in found:
        met.setdefault(cause, []).append(what)
    more = {cause: len(whats) - _NAMED for cause, whats in met.items()}
    return {
        cause: ", ".join(whats[:_NAMED]) + (f" and {more[cause]} more" if more[cause] > 0 else "")
        for cause, whats in met.items()
    }


def _listed(name: str, lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    for i, line in enumerate(lines[:_LISTED]):
        yield ("" if i else name), line
    if len(lines) > _LISTED:
        yield "", f"and {len(lines) - _LISTED} more"


def _rank(trial: Mapping[str, Any], sign: float) -> tuple[int, int, float, str]:
    metric = trial["metric"]
    return (
        _ORDER.index(trial["state"]),
        -trial["epoch"],
        math.inf if metric is None else sign * metric,
        trial["trial"],
    )


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table
