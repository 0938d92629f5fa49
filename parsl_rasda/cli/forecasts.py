"""A forecast as tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from parsl_rasda.reporting.format import counted, duration, percent
from parsl_rasda.simulation.budgets import MOST
from parsl_rasda.simulation.forecast import Forecast, PolicyForecast

_MANY_HOURS = 100


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
    source = f"measured in {run}" if found.is_measured else "assumed (tune.estimates)"
    costs = f"epoch {duration(found.epoch_s)}, restart {duration(found.restart_s)}, {source}"
    return Group(
        Text.assemble(
            (f"{study}, stage {found.stage}", "bold"), f": {counted(found.trials, 'trial')} on {places}"
        ),
        Text(f"  {costs}", "dim"),
        Text(),
        Padding(_rungs(found), (0, 0, 0, 2)),
        Text(),
        Padding(_policies(found.policies), (0, 0, 0, 2)),
        Text("  * what the study declares; every policy trains the same trials", "dim"),
        *(Text(f"\n  {sentence}") for sentence in _budget(found)),
        *(Text(f"\n{sentence}", "yellow") for sentence in found.advice),
    )


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


def _policies(policies: Sequence[PolicyForecast]) -> Table:
    table = _table(
        "policy", "makespan", "GPU-hours", "node-hours", "in epochs", "restarts", "epochs", "x ASHA"
    )
    table.columns[0].justify = "left"
    for p in policies:
        name = Text(f"{p.name} *" if p.is_declared else p.name, "bold" if p.is_declared else "")
        if p.makespan_s is None:
            table.add_row(name, Text(f"needs {p.needed_gpus} GPUs at once", "red"))
            continue
        table.add_row(name, duration(p.makespan_s), *_facts(p))
    return table


def _facts(p: PolicyForecast) -> tuple[str, ...]:
    hours = (_hours(p.gpu_hours), _hours(p.node_hours))
    return (*hours, percent(p.gpu_busy_fraction), str(p.restarts), str(p.epochs), f"{p.speedup or 0:.2f}")


def _hours(hours: float | None) -> str:
    value = hours or 0.0
    return f"{value:,.0f}" if value >= _MANY_HOURS else f"{value:.3g}"


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table
