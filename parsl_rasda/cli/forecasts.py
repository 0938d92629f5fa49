"""A forecast as tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from parsl_rasda.reporting.format import counted, duration, percent
from parsl_rasda.simulation.budgets import MOST
from parsl_rasda.simulation.outcome import Forecast, PilotForecast, PolicyForecast, SizeForecast
from parsl_rasda.simulation.policies import ASHA

_MANY_HOURS = 100
_MUCH_TOO_LONG = 4  # times the walltime that would do
_QUEUE_S = 1.0  # that is worth a word


def forecast_view(study: str, forecasts: Sequence[Forecast], run: Path | None) -> RenderableType:
    """Return the forecast of each stage: rungs, then policies side by side, then advice.

    Args:
        study: Its name.
        forecasts: One per stage that optimises.
        run: The run that the costs were measured in, or None.
    """
    return Group(*(_view(study, found, run) for found in forecasts))


def _view(study: str, found: Forecast, run: Path | None) -> RenderableType:
    places = f"{counted(found.gpus, 'GPU')}, {counted(found.nodes, 'node')}: {', '.join(found.sites)}"
    source = (
        f"measured in {run}"
        if found.is_measured
        else f"{'guessed' if found.guessed else 'assumed'} (tune.estimates)"
    )
    costs = f"epoch {duration(found.epoch_s)}, restart {duration(found.restart_s)}, {source}"
    queue_s = found.declared.queue_s or 0.0
    queue = f"; first pilot after {duration(queue_s)}" if queue_s >= _QUEUE_S else ""
    parts: list[RenderableType] = [
        *([Text(_guess(found), "yellow")] if found.guessed else []),
        Text.assemble(
            (f"{study}, stage {found.stage}", "bold"), f": {counted(found.trials, 'trial')} on {places}"
        ),
        Text(f"  {costs}{queue}", "dim"),
        *_indented(_rungs(found)),
        *(Text(f"  {sentence}", "dim") for sentence in _early_comers(found)),
        *_indented(_policies(found.policies)),
        Text(f"  * what the study declares{_seeds(found)}", "dim"),
    ]
    if found.sizes:
        parts += _indented(_sizes(found.sizes))
    pilots = [Text(f"  {sentence}") for p in found.pilots for sentence in _pilots(p)]
    pilots += [Text(f"  {sentence}") for sentence in (*_budget(found), *_confirm(found))]
    parts += [Text(), *pilots] if pilots else []
    return Group(*parts, *(Text(f"\n{sentence}", "yellow") for sentence in found.advice))


def _guess(found: Forecast) -> str:
    """Return what nobody has measured or declared, and how to replace it."""
    how = "measure with a short run and `plan --from RUN`, or set `tune.estimates`"
    return f"Guessed, so believe no hour: {' and '.join(found.guessed)}; {how}."


def _indented(table: Table) -> list[RenderableType]:
    return [Text(), Padding(table, (0, 0, 0, 2))]


def _seeds(found: Forecast) -> str:
    return f"; medians and ranges of {found.seeds} seeds" if found.seeds > 1 else ""


def _budget(found: Forecast) -> Iterator[str]:
    """Yield what the search comes to under its budget, and the largest that fits, if that was asked."""
    under = found.budget
    if under is None:
        return
    if under.is_enough:
        yield f"the budget is enough: it ends after {duration(under.makespan_s)}"
    else:
        yield (
            f"the budget ends it after {duration(under.makespan_s)}, with {under.trials} of "
            f"{counted(found.trials, 'trial')} begun and {under.completed} trained to max_t"
        )
    if under.num_samples is None:
        return
    parts = [_largest("num_samples", under.num_samples), _largest("max_t", under.max_t or 0)]
    yield f"the largest that fit, each with the other as declared: {', '.join(parts)}"


def _confirm(found: Forecast) -> Iterator[str]:
    """Yield what training the best trials again adds."""
    if (more := found.confirm) is not None:
        yield (
            f"confirm: {counted(more.runs, 'training')} on top of that, {counted(more.epochs, 'epoch')}, "
            f"{duration(more.makespan_s)}, {_hours(more.gpu_hours)} GPU-hours"
        )


def _largest(name: str, number: int) -> str:
    if not number:
        return f"no {name}"
    return f"{name} {number}" + (" or more" if number >= MOST else "")


def _rungs(found: Forecast) -> Table:
    table = _table("rung", "epochs", "GPUs", "replicas", "batches", "trials")
    for r in found.rungs:
        batches = "-".join(map(str, sorted({*r.batches[:1], *r.batches[-1:]})))
        table.add_row(str(r.rung), str(r.epochs), str(r.workers), str(r.replicas), batches, str(r.trials))
    return table


def _early_comers(found: Forecast) -> Iterator[str]:
    """Yield how many go on at the first rung, if they are more than the reduction factor says."""
    for first, second in pairwise(found.rungs[:2]):
        if first.meant is not None and second.trials > first.meant:
            yield (
                f"{second.trials} of {first.trials} go on at epoch {first.epochs}, where reduction_factor "
                f"says {first.meant}: the first comers are judged against few (scheduler.min_compared)"
            )


def _policies(policies: Sequence[PolicyForecast]) -> Table:
    table = _table(
        "policy", "makespan", "range", "GPU-hours", "node-hours", "in epochs", "restarts", "epochs", "x ASHA"
    )
    table.columns[0].justify = "left"
    for p in policies:
        name = Text(f"{p.name} *" if p.is_declared else p.name, "bold" if p.is_declared else "")
        if p.makespan_s is None:
            table.add_row(name, Text(f"needs {p.needed_gpus} GPUs at once", "red"))
            continue
        table.add_row(name, duration(p.makespan_s), _range(p), *_facts(p))
    return table


def _range(p: PolicyForecast) -> str:
    """Return the shortest and the longest makespan of the draws; nothing if they are the same in words."""
    low, high = (duration(seconds) for seconds in p.ranges["makespan_s"])
    return "" if low == high else f"{low} - {high}"


def _facts(p: PolicyForecast) -> tuple[str, ...]:
    hours = (_hours(p.gpu_hours), _hours(p.node_hours))
    return (*hours, percent(p.gpu_busy_fraction), str(p.restarts), str(p.epochs), f"{p.speedup or 0:.2f}")


def _sizes(sizes: Sequence[SizeForecast]) -> Table:
    table = _table("nodes", "GPUs", "makespan", "range", "node-hours", "in epochs", "ASHA", "x ASHA")
    for size in sizes:
        head = (str(size.nodes), str(size.gpus))
        declared = next((p for p in size.policies if p.is_declared), None)
        if declared is None:
            table.add_row(*head, Text("too few GPUs", "red"))
            continue
        asha = next(p for p in size.policies if p.name == ASHA)
        hours, busy = _hours(declared.node_hours), percent(declared.gpu_busy_fraction)
        facts = (duration(declared.makespan_s), _range(declared), hours, busy, duration(asha.makespan_s))
        table.add_row(*head, *facts, f"{declared.speedup or 0:.2f}")
    return table


def _pilots(p: PilotForecast) -> Iterator[str]:
    """Yield what pilots of a site would do; nothing of one pilot of this machine."""
    if p.declared_s is None and p.pilots == 1:
        return
    declared = f" ({p.pilots} declared)" if p.enough < p.pilots else ""
    said = f"{p.site}: {counted(p.enough, 'pilot')} of {counted(p.nodes, 'node')}{declared} would do"
    if p.declared_s is None:
        yield said
        return
    yield f"{said}, with a walltime of {_walltime(p.walltime_s)}"
    if p.in_turn > 1:
        again = f", after {duration(p.queue_s)} in the queue each" if p.queue_s >= _QUEUE_S else ""
        yield (
            f"{p.site}: its walltime of {_walltime(p.declared_s)} ends before the study does: "
            f"{p.in_turn} pilots in turn{again}"
        )
    elif p.declared_s > _MUCH_TOO_LONG * p.walltime_s:
        yield f"{p.site}: its walltime is {_walltime(p.declared_s)}; shorter jobs often start sooner"


def _walltime(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest:02d}"


def _hours(hours: float | None) -> str:
    value = hours or 0.0
    return f"{value:,.0f}" if value >= _MANY_HOURS else f"{value:.3g}"


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table
