"""What `run` and `resume` share: watch a run, then say how it ended."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import typer
from rich.console import Console, Group, RenderableType
from rich.text import Text

from parsl_rasda.cli.live import LiveView
from parsl_rasda.cli.output import print_json, print_result, say
from parsl_rasda.cli.plain import PlainView
from parsl_rasda.errors import RasdaError, RunDirectoryError, SiteUnavailableError, StageFailedError
from parsl_rasda.orchestration.view import View
from parsl_rasda.reporting.tables import summary_view
from parsl_rasda.vocabulary import StudyState

MEND = "mend the training and run it with another --dir"
EXIT_CODES = {
    StudyState.DONE: 0,
    StudyState.FAILED: 3,
    StudyState.NO_SITE: 4,
    StudyState.INTERRUPTED: 130,
    StudyState.RUNNING: 130,
}


class Ended(Protocol):
    """How a run ended, as the pipeline tells it."""

    @property
    def state(self) -> StudyState:
        """How it ended."""
        ...

    @property
    def summary(self) -> Mapping[str, Any]:
        """The JSON document of its search; empty if none began."""
        ...

    @property
    def stages(self) -> Mapping[str, Any]:
        """What each finished stage returned."""
        ...


def carry_through(directory: Path, start: Callable[[View], Ended], *, as_json: bool) -> None:
    """Let a run take its course under a view, print what it has come to, and exit with its code.

    Raises:
        RunDirectoryError: If it may not use its directory.
    """
    try:
        with _watched() as view:
            ended = start(view)
    except KeyboardInterrupt:
        _say_how_to_go_on(directory)
        raise typer.Exit(EXIT_CODES[StudyState.INTERRUPTED]) from None
    except RunDirectoryError:
        raise
    except RasdaError as error:
        say(f"parsl-rasda: {error}")
        if isinstance(error, StageFailedError | SiteUnavailableError):
            _say_how_to_go_on(directory)
        raise typer.Exit(error.exit_code) from error
    if as_json:
        stages = {"directory": str(directory), "stages": ended.stages}
        print_json({**ended.summary, "state": ended.state.value, **stages})
    else:
        _print(directory, ended)
    if ended.state is StudyState.FAILED:
        say(f"No trial succeeded: {MEND}{_where_ranks_wrote(directory)}")
    elif ended.state is not StudyState.DONE:
        _say_how_to_go_on(directory)
    raise typer.Exit(EXIT_CODES[ended.state])


def _print(directory: Path, ended: Ended) -> None:
    parts: list[RenderableType] = [Text(f"all of it is in {directory}", "dim")]
    if ended.summary:
        parts.insert(0, summary_view({**ended.summary, "state": ended.state.value}, _beside(ended)))
    else:
        parts.insert(0, Text(f"{ended.state.value} before a search began", "bold"))
    print_result(Group(*parts))


def _beside(ended: Ended) -> Mapping[str, Any]:
    """Return what stages other than the search returned: its result is the best trial, told already."""
    best = ended.summary.get("best")
    return {name: value for name, value in ended.stages.items() if value != best}


def _where_ranks_wrote(directory: Path) -> str:
    first = min(directory.rglob("attempt-1/log.txt"), default=None)
    return f". What the ranks of the first trial wrote: {first}" if first else ""


def _say_how_to_go_on(directory: Path) -> None:
    if (directory / "study.yaml").exists():
        say(f"Resume with: {resume_command(directory)}")


def resume_command(directory: Path) -> str:
    """Return the command that goes on with a run, as a shell takes it."""
    return f"parsl-rasda resume {shlex.quote(str(directory))}"


@contextmanager
def _watched() -> Iterator[View]:
    """Give a view of stderr: live in a terminal, else a line a decision."""
    console = Console(stderr=True)
    live = console.is_terminal and not console.is_dumb_terminal
    view: View = LiveView(console) if live else PlainView(console.file)
    with _logged(console):
        try:
            yield view
        finally:
            view.close()


@contextmanager
def _logged(console: Console) -> Iterator[None]:
    """Show warnings of ours above the live view; those of Parsl are in its own log."""
    handler = _Handler(console)
    logger = logging.getLogger("parsl_rasda")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _Handler(logging.Handler):
    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(Text(self.format(record)), soft_wrap=True)
