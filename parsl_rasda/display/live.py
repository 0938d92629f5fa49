"""A run in a terminal, redrawn in place at most four times a second."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from parsl_rasda.display.search_progress import RungProgress, SearchProgress, SearchSnapshot
from parsl_rasda.orchestration.machine import Machine
from parsl_rasda.orchestration.usage import Usage
from parsl_rasda.reporting.format import clock, config_text, counted, duration, number, slot_kind_of
from parsl_rasda.reporting.tables import STATE_STYLES, Harmless

_PER_SECOND = 4
_BAR = 24  # columns
_SHOWN = 8  # decisions, where there is room
_LINES = 11  # of a panel without its rungs and decisions
_FEWEST_RUNGS = 4
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

    def __init__(self, console: Console, sites: Path | None = None) -> None:
        """Begin to draw; nothing stays on the screen after `close`.

        Args:
            console: Where.
            sites: The folder where the run keeps its sites, which tell what a slot is called.
        """
        self._console, self._sites = console, sites
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
        kind = "GPUs" if self._sites is None else slot_kind_of(self._sites)
        progress = SearchProgress(stage, machine, usage, kind)
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
        room = (self._console.height - 2 - len(stages)) // max(1, len(searches))
        return Harmless(above_the_echo(*stages, *(search_panel(found, room) for found in searches)))


def above_the_echo(*parts: RenderableType) -> RenderableType:
    """Return parts with an empty line below, on which a terminal shows the ``^C`` that a user types.

    At the end of a full line it would wrap, and what is drawn next would begin a line too low.
    """
    return Group(*parts, Text())


def search_panel(found: SearchSnapshot, height: int = 40) -> RenderableType:
    """Return the picture of one search, on so many lines at most."""
    rungs = _near(found.rungs, max(_FEWEST_RUNGS, height - _LINES - _SHOWN))
    room = min(_SHOWN, height - _LINES - len(rungs))
    left = "" if found.left_s is None else f", about {duration(found.left_s)} left"
    ended = f"{found.ended} of {counted(found.total, 'trial')} ended"
    title = f"{found.stage}: {ended}, {duration(found.seconds)}{left}"
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(no_wrap=True, overflow="ellipsis")
    facts.add_row("trials", _states(found))
    facts.add_row(found.slot_kind, _slots(found))
    facts.add_row("best", _best(found))
    facts.add_row("done", f"{counted(found.epochs, 'epoch')}, {counted(found.restarts, 'restart')}")
    facts.add_row("faults", _faults(found))
    parts: list[RenderableType] = [facts, Text(), _rungs(rungs)]
    if room > 0:
        parts += [Text(), _decisions(found, room)]
    return Panel(Group(*parts), title=Text(title), title_align="left", border_style="cyan")


def _faults(found: SearchSnapshot) -> Text:
    if not found.faults:
        return Text("none", "dim")
    return Text(f"{found.faults}, the last: {found.last_fault}", "red")


def _decisions(found: SearchSnapshot, room: int) -> Table:
    """Return the last decisions, a column for what most of them have."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", expand=True)
    for column in ("time", "decision", "trial"):
        table.add_column(column, no_wrap=True)
    for column in ("until", found.slot_kind):
        table.add_column(column, no_wrap=True, justify="right")
    table.add_column("what", no_wrap=True, overflow="ellipsis", ratio=1)
    for line in found.decisions[-room:]:
        facts = {name: value for name, value in line.facts.items() if value is not None}
        named = [str(facts.pop(name, "")) for name in ("trial", "until", "width")]
        why = facts.pop("reason", None) or facts.pop("cause", None)
        rest = str(why) if why else " ".join(f"{name}={value}" for name, value in facts.items())
        style = _VERB_STYLES.get(line.verb, "")
        table.add_row(clock(line.at), Text(line.verb, style), *named, Text(rest, style))
    return table


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
    for state, number_of in found.states.items():
        if number_of:
            separator = "  " if text else ""
            text.append(f"{separator}{number_of} {state.replace('_', ' ')}", STATE_STYLES.get(state, ""))
    return text


def _slots(found: SearchSnapshot) -> RenderableType:
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


def _near(rungs: tuple[RungProgress, ...], most: int) -> tuple[RungProgress, ...]:
    """Return so many rungs at most: the next one that nobody has reached, and those below it."""
    end = max(most, sum(1 for rung in rungs if rung.reached) + 1)
    return rungs[:end][-most:]


def _rungs(rungs: tuple[RungProgress, ...]) -> Table:
    table = Table(box=None, padding=(0, 3, 0, 0), header_style="bold")
    for column in ("epochs", "replicas", "trials", "best"):
        table.add_column(column, justify="right")
    for r in rungs:
        style = "" if r.reached else "dim"
        best = number(r.best) if r.reached else ""
        table.add_row(str(r.epochs), str(r.replicas), str(r.reached), best, style=style)
    return table
