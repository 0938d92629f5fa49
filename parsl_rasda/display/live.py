"""A run in a terminal, redrawn in place at most four times a second."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from parsl_rasda.display.search_progress import RungProgress, SearchProgress, SearchSnapshot
from parsl_rasda.orchestration.machine import Machine
from parsl_rasda.orchestration.usage import Usage
from parsl_rasda.reporting.format import config_text, duration, number
from parsl_rasda.reporting.tables import STATE_STYLES, Harmless
from parsl_rasda.types import TrialState

_PER_SECOND = 4
_BAR = 24  # columns
_VERB_STYLES = {
    "promoted": "green",
    "widened": "green",
    "completed": "bold green",
    "failed": "bold red",
    "lost": "red",
    "left": "red",
    "stopped": "dim",
}


@dataclass(slots=True)
class _StageProgress:
    total: int
    began: float
    seconds: float | None = None
    reused: bool = False
    cause: str | None = None


class LiveView:
    """Shows stages, and of every search its trials, rungs, GPUs, best trial and last decisions."""

    def __init__(self, console: Console) -> None:
        """Begin to draw; nothing stays on the screen after `close`."""
        self._lock = threading.Lock()
        self._stages: dict[str, _StageProgress] = {}
        self._searches: dict[str, SearchProgress] = {}
        self._live = Live(
            get_renderable=self.render,
            console=console,
            refresh_per_second=_PER_SECOND,
            transient=True,
            redirect_stdout=False,
        )
        self._live.start()

    def stage_started(self, name: str, total: int) -> None:
        """Show that a stage runs."""
        with self._lock:
            self._stages[name] = _StageProgress(total, time.monotonic())

    def stage_ended(self, name: str, seconds: float, *, reused: bool) -> None:
        """Show that a stage is done."""
        with self._lock:
            stage = self._stages.setdefault(name, _StageProgress(1, time.monotonic()))
            stage.seconds, stage.reused = seconds, reused
            self._searches.pop(name, None)

    def stage_failed(self, name: str, cause: str) -> None:
        """Show why a stage has no result."""
        with self._lock:
            self._stages.setdefault(name, _StageProgress(1, time.monotonic())).cause = cause

    def search(self, stage: str, machine: Machine, usage: Usage, *, alone: bool) -> SearchProgress:
        """Return an observer that follows a search."""
        del alone  # its panel has its name in any case
        progress = SearchProgress(stage, machine, usage)
        with self._lock:
            self._searches[stage] = progress
        return progress

    def close(self) -> None:
        """Stop showing, and leave the screen clean."""
        self._live.stop()

    def render(self) -> RenderableType:
        """Return the picture of this moment."""
        now = time.monotonic()
        with self._lock:
            stages = [_stage_line(name, stage, now) for name, stage in self._stages.items()]
            searches = [p.snapshot() for p in self._searches.values()]
        return Harmless(Group(*stages, *(search_panel(found) for found in searches)))


def search_panel(found: SearchSnapshot) -> RenderableType:
    """Return the picture of one search."""
    ended = sum(n for state, n in found.states.items() if state.is_final)
    title = f"{found.stage}: {ended} of {found.total} trials have ended"
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(no_wrap=True, overflow="ellipsis")
    facts.add_row("trials", _states(found))
    facts.add_row("GPUs", _gpus(found))
    facts.add_row("best", _best(found))
    facts.add_row("done", f"{found.epochs} epochs, {found.restarts} restarts, {found.faults} faults")
    decisions = [_decision_line(str(line), line.verb) for line in found.decisions]
    return Panel(
        Group(facts, Text(), _rungs(found.rungs), Text(), *decisions),
        title=Text(title),
        title_align="left",
        border_style="cyan",
    )


def _stage_line(name: str, stage: _StageProgress, now: float) -> Text:
    calls = f"{stage.total} calls" if stage.total > 1 else ""
    if stage.cause is not None:
        return Text.assemble(("✗ ", "bold red"), (name, "bold"), f"  {calls}  ", (stage.cause, "red"))
    if stage.seconds is None:
        return Text.assemble(("▸ ", "cyan"), (name, "bold"), f"  {calls}  {duration(now - stage.began)}")
    how = "earlier result kept" if stage.reused else duration(stage.seconds)
    return Text.assemble(("✓ ", "green"), (name, "bold"), f"  {calls}  {how}")


def _states(found: SearchSnapshot) -> Text:
    text = Text()
    for state in TrialState:
        if found.states.get(state):
            separator = "  " if text else ""
            text.append(f"{separator}{found.states[state]} {state.value}", STATE_STYLES[state.value])
    return text or Text("none yet", "dim")


def _gpus(found: SearchSnapshot) -> RenderableType:
    if not found.gpus:
        return Text("; ".join(["waiting for a pilot", *found.queued]), "yellow")
    bar = ProgressBar(total=found.gpus, completed=found.busy, width=_BAR, finished_style="bar.complete")
    row = Table.grid(padding=(0, 1))
    row.add_row(bar, f"{found.busy} of {found.gpus} busy")
    return row


def _best(found: SearchSnapshot) -> Text:
    if found.best is None:
        return Text("none yet", "dim")
    best = found.best
    head = f"{found.metric} {number(best.metric)}"
    rest = f"  trial {best.trial}, epoch {best.epoch}  {config_text(best.config)}"
    return Text.assemble((head, "bold green"), rest)


def _rungs(rungs: tuple[RungProgress, ...]) -> Table:
    table = Table(box=None, padding=(0, 3, 0, 0), header_style="bold")
    for column in ("epochs", "replicas", "trials", "best"):
        table.add_column(column, justify="right")
    for r in rungs:
        style = "" if r.reached else "dim"
        best = number(r.best) if r.reached else ""
        table.add_row(str(r.epochs), str(r.replicas), str(r.reached), best, style=style)
    return table


def _decision_line(line: str, verb: str) -> Text:
    return Text(line, _VERB_STYLES.get(verb, ""), no_wrap=True, overflow="ellipsis")
